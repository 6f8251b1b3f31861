"""Judging speed in pairs per second, from one run: this package against what else does it.

    python -m tests.benchmarks.bench_judge [--pairs 400] [--vocab 1000 32000] [--repeats 3] [--sides ...] [--bf16]
    python -m tests.benchmarks.bench_judge --model FOLDER --data pairs.jsonl [--pairs 40] ...

Two models score both responses of each pair, as the judge does without kept log-probs; `one model` is what is left to
do when the generation has kept the policy's.

- plain N: whole logits of both models, log-softmax over all positions, batches of N pairs padded as they come, which is
  what the method's research code does.
- TRL N: `compute_ref_log_probs` of DPOTrainer (its fused output layer) for both models, batches of N pairs.
- floor: the bare matrix products of one pass of each model over the same tokens: no padding, no attention, and logits
  at the response tokens only.
- unshared: this package with every response behind a prompt of its own.

All sides must give the same log-probs. `of peak` is what the operations of the floor in the time of a side are of those
that one large product reaches on this machine (model FLOP utilization). On a GPU the shapes are those of a Llama with
1 B parameters in bfloat16 (by default one vocabulary and 200 pairs, and no turn begins after a minute: it ends within
two), and the peak memory of each side is printed as well. With `--model` a real model scores real
pairs (`prompt`, `chosen`, `rejected` as strings); it is both models, as only the time matters.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import Message
from spa_recipes.generation import packing, scoring
from spa_recipes.generation.scoring import Scored, sequence_logps
from tests.benchmarks.kit import (
    linear_weights,
    llama,
    pairs,
    peak_flops,
    product_flops,
    said,
    take_turns,
    tokens_of,
    where,
    work_device,
)


def padded(items: list[Scored], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, attention_mask and response mask of a batch, padded on the right."""
    width = max(len(item.prompt_ids) + len(item.response_ids) for item in items)
    rows: tuple[list[list[int]], ...] = ([], [], [])
    for item in items:
        a, b = len(item.prompt_ids), len(item.response_ids)
        pad = [0] * (width - a - b)
        for row, values in zip(
            rows, (item.prompt_ids + item.response_ids, [1] * (a + b), [0] * a + [1] * b), strict=True
        ):
            row.append(values + pad)
    input_ids, mask, response = (torch.tensor(values, device=device) for values in rows)
    return input_ids, mask, response


@torch.no_grad()
def plain(model: PreTrainedModel, items: list[Scored], batch: int) -> list[float]:
    """Scores from whole logits; `batch` counts responses."""
    scores: list[float] = []
    for begin in range(0, len(items), batch):
        input_ids, mask, response = padded(items[begin : begin + batch], model.device)
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
        logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
        scores.extend((logps * response[:, 1:]).sum(-1).tolist())
    return scores


@torch.no_grad()
def trl(model: PreTrainedModel, items: list[Scored], batch: int) -> list[float]:
    """Scores as `DPOTrainer.compute_ref_log_probs` gets them; the model went through `add_fused_lm_head`."""
    scores: list[float] = []
    for begin in range(0, len(items), batch):
        input_ids, mask, response = padded(items[begin : begin + batch], model.device)
        labels = input_ids.masked_fill(response == 0, -100)
        output = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        scores.extend(output.log_probs.sum(dim=1).tolist())
    return scores


@torch.inference_mode()
def floor(model: PreTrainedModel, items: list[Scored]) -> None:
    """The matrix products that one pass cannot do without, on tokens in chunks and in the model's precision."""
    tokens = tokens_of(items)
    chunk = scoring.CPU_TOKENS if model.device.type == "cpu" else 16384
    body = linear_weights(model)
    head = model.get_output_embeddings().weight
    inputs = {w.shape[1]: torch.randn(chunk, w.shape[1], dtype=w.dtype, device=w.device) for w in [*body, head]}
    for weights, count, size in ((body, tokens.all, chunk), ([head], tokens.response, 512)):
        for begin in range(0, count, size):
            for weight in weights:
                inputs[weight.shape[1]][: min(size, count - begin)] @ weight.T


def ours(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Scores by this package."""
    return sequence_logps(model, items, tokens_per_batch=16384)


def unshared(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """Scores by this package, every response in a row of its own."""
    with patch.object(scoring, "groups_of", lambda items, most: packing.alone(items)):
        return ours(model, items)


def real_pairs(data: Path, model: Path, count: int) -> list[Scored]:
    """Two responses to each prompt of a file, rendered as every stage does it."""
    renderer = Renderer(load_tokenizer(model), max_prompt_length=512, max_length=1024)
    items = []
    with data.open() as lines:
        for row in map(json.loads, islice(lines, count)):
            prompt: list[Message] = [{"role": "user", "content": row["prompt"]}]
            prompt_ids = renderer.prompt_ids(prompt)
            items += [Scored(prompt_ids, renderer.response_ids(prompt, row[name])) for name in ("chosen", "rejected")]
    return items


def main() -> None:
    """Print pairs per second of every side and ours as a multiple of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--pairs", type=int, default=200 if gpu else 400)
    parser.add_argument("--vocab", type=int, nargs="*", default=[32000] if gpu else [1000, 32000])
    parser.add_argument("--limit", type=float, default=60 if gpu else float("inf"), help="seconds for further turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="*", default=[], help="only these, and ours")
    parser.add_argument("--bf16", action="store_true", help="weights and products in bfloat16")
    parser.add_argument("--model", type=Path, help="a folder with a real chat model")
    parser.add_argument("--data", type=Path, help="with --model: JSON lines with prompt, chosen and rejected")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data go together")
    torch.set_num_threads(arguments.threads)
    device = work_device()
    dtype = torch.bfloat16 if arguments.bf16 or gpu else torch.float32
    peak = peak_flops(device, dtype)
    print(f"{arguments.pairs} pairs, {dtype}, best of {arguments.repeats}; {where(arguments.threads)}")
    print(f"one large product: {peak / 1e12:.2f} TFLOP/s")

    def loaded(vocab: int, seed: int) -> PreTrainedModel:
        if arguments.model is not None:
            return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval().to(device)
        hidden, layers, heads = (2048, 16, 32) if gpu else (256, 4, 4)
        return llama(hidden, layers, vocab, seed=seed, heads=heads, device=device, dtype=dtype)

    for vocab in arguments.vocab if arguments.model is None else [0]:
        with said(f"two models, each for us and for TRL, on {device}"):
            models, fused = ([loaded(vocab, seed) for seed in (0, 1)] for _ in range(2))
            for model in fused:
                add_fused_lm_head(model)
        items = (
            real_pairs(arguments.data, arguments.model, arguments.pairs)
            if arguments.model is not None
            else pairs(arguments.pairs, vocab)
        )
        compare(models, fused, items, arguments, peak, exact=dtype == torch.float32)


def compare(
    models: list[PreTrainedModel],
    fused: list[PreTrainedModel],
    items: list[Scored],
    arguments: argparse.Namespace,
    peak: float,
    *,
    exact: bool,
) -> None:
    """Time every side on one pair of models."""
    logps: dict[str, list[float]] = {}

    def judge(
        name: str, score: Callable[..., list[float]], both: list[PreTrainedModel], *arguments: int
    ) -> Callable[[], None]:
        def work() -> None:
            logps[name] = [logp for model in both for logp in score(model, items, *arguments)]

        return work

    sides: dict[str, Callable[[], object]] = {
        "ours": judge("ours", ours, models),
        "unshared": judge("unshared", unshared, models),
        "one model": lambda: ours(models[0], items),
        **{f"plain {n}": judge(f"plain {n}", plain, models, 2 * n) for n in (1, 8)},
        **{f"TRL {n}": judge(f"TRL {n}", trl, fused, 2 * n) for n in (1, 8, 32)},
        "floor": lambda: [floor(model, items) for model in models],
    }
    if arguments.sides:
        sides = {name: work for name, work in sides.items() if name in ("ours", "one model", *arguments.sides)}
    seconds = take_turns(sides, arguments.repeats, limit=arguments.limit, say=partial(print, flush=True))
    tokens = tokens_of(items).all
    flops = product_flops(models[0], items)
    print(f"\nvocabulary {models[0].config.vocab_size:,}: pairs per second (ours and one model, as multiples of it)")
    for name, time in seconds.items():
        passes = 1 if name == "one model" else 2
        print(
            f"  {name:10} {len(items) / 2 / time:8.1f}   {time / seconds['ours']:6.2f}x  "
            f"{time / seconds['one model']:6.2f}x   {passes * tokens / time:9,.0f} tokens/s   "
            f"{passes * flops / time / peak:4.0%} of peak{gpu_memory(sides[name])}",
            flush=True,
        )
    for name, values in logps.items():
        worst = max(abs(a - b) for a, b in zip(values, logps["ours"], strict=True))
        assert not exact or worst < 1e-2, f"{name} differs by {worst}"


def gpu_memory(work: Callable[[], object]) -> str:
    """The most memory that a side holds beyond what was there; empty without a GPU."""
    if not torch.cuda.is_available():
        return ""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return f"   {(torch.cuda.max_memory_allocated() - before) / 1e6:7,.0f} MB"


if __name__ == "__main__":
    main()
