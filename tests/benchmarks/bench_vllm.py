"""Throughput of the generate stage's engine against raw `vllm.LLM.generate`, from one run and one engine.

    VLLM_PYTHON -m tests.benchmarks.bench_vllm [--prompts 256] [--max-tokens 64] [--shard 32] [--repeats 3]

Both ask for the same answers with the same settings: two per prompt, a seed and the log-prob of each token. The stage's
engine gives them back shard by shard and each shard is written to disk, as the stage does. `no seeds` is the raw engine
without a seed per request, which is what reproducible samples cost. The engine's start is printed and left out.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from spa_recipes.data.tables import write_completions
from spa_recipes.generation.engines import open_engine
from spa_recipes.generation.requests import Request, request_seed
from spa_recipes.recipe.schema import Model, Sampling, VllmBackend
from tests.benchmarks.kit import llama, pairs, take_turns, where


def seed_of(request: Request) -> int:
    """As the stage does it."""
    return request_seed(0, "bench", request.prompt_id, request.sample)


def main() -> None:
    """Print answers' tokens per second of every side and ours as a share of the raw engine's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--shard", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hidden, layers, heads = (2048, 16, 32) if gpu else (256, 4, 4)
        llama(hidden, layers, 1000, heads=heads).save_pretrained(folder / "model")
        model = Model(model_name_or_path=str(folder / "model"), max_length=256, max_prompt_length=120)
        backend = VllmBackend(type="vllm", enforce_eager=not gpu, gpu_memory_utilization=0.8 if gpu else 0.1)
        sampling = Sampling(max_tokens=arguments.max_tokens, backend=backend)
        begin = time.perf_counter()
        engine = open_engine(model, sampling, [0])
        print(f"engine ready after {time.perf_counter() - begin:.1f} s; {where(torch.get_num_threads())}", flush=True)
        prompts = [item.prompt_ids for item in pairs(arguments.prompts, 1000)[::2]]
        requests = [Request(f"p{i}", k, ids) for i, ids in enumerate(prompts) for k in range(2)]
        compare(engine, requests, 2 * arguments.shard, folder, arguments.repeats)
        engine.close()


def compare(engine: Any, requests: list[Request], group: int, folder: Path, repeats: int) -> None:
    """Time the sides in turns; every run makes the same tokens."""
    groups = [requests[i : i + group] for i in range(0, len(requests), group)]
    tokens = {}

    def stage() -> None:
        made = 0
        for number, completions in engine.stream(groups, seed_of=seed_of):
            rows: list[Any] = [
                {"item": 0, "text": "", "prompt_ids": request.prompt_ids, **completion._asdict()}
                for request, completion in zip(groups[number], completions, strict=True)
            ]
            write_completions(folder / f"{number}.parquet", rows)
            made += sum(len(completion.response_ids) for completion in completions)
        tokens["stage"] = made

    def raw(*, seeded: bool) -> None:
        outputs = engine._llm.generate(
            [{"prompt_token_ids": request.prompt_ids} for request in requests],
            [engine._params(seed_of(request) if seeded else None) for request in requests],
            use_tqdm=False,
        )
        tokens["raw" if seeded else "no seeds"] = sum(len(output.outputs[0].token_ids) for output in outputs)

    sides = {"stage": stage, "raw": lambda: raw(seeded=True), "no seeds": lambda: raw(seeded=False)}
    raw(seeded=True)  # the first call compiles and allocates
    # Prefixes that an earlier run left in the cache are there for all sides.
    seconds = take_turns(sides, repeats)
    assert tokens["stage"] == tokens["raw"], tokens
    for side, best in seconds.items():
        speed = tokens[side] / best
        print(f"  {side:9} {speed:8,.0f} tokens/s   stage / it: {tokens['stage'] / seconds['stage'] / speed:.3f}")


if __name__ == "__main__":
    main()
