"""The vLLM engine beside the transformers one, in the environment that has both; leaves what it saw as JSON.

PYTHON -m tests.vllm_cpu.engine FOLDER
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.errors import DataError
from spa_recipes.generation.engines import Engine, open_engine
from spa_recipes.generation.requests import Completion, Request, request_seed
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.recipe.schema import Backend, Model, Sampling, TransformersBackend, VllmBackend
from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import preference_rows

PROMPTS, SAMPLES, MAX_TOKENS = 24, 2, 40
CONTROL_ID = 11
"""A word that ends an answer in these checks, so that many answers end; the config's own end must not."""


def seed_of(request: Request) -> int:
    """As the generate stage does it."""
    return request_seed(7, "generate-1", request.prompt_id, request.sample)


def sampling_of(backend: Backend, temperature: float) -> Sampling:
    """The settings of both engines."""
    return Sampling(temperature=temperature, max_tokens=MAX_TOKENS, backend=backend)


def answers(engine: Engine, groups: Sequence[Sequence[Request]]) -> tuple[dict[str, Completion], list[int]]:
    """Completions by request, and the numbers of the groups as they came."""
    found: dict[str, Completion] = {}
    order = []
    for number, completions in engine.stream(iter(groups), seed_of=seed_of):
        assert [(c.prompt_id, c.sample) for c in completions] == [(r.prompt_id, r.sample) for r in groups[number]]
        found |= {f"{c.prompt_id}/{c.sample}": c for c in completions}
        order.append(number)
    return found, order


def as_json(completions: dict[str, Completion]) -> dict[str, Any]:
    """Completions as the test reads them."""
    return {name: completion._asdict() for name, completion in completions.items()}


def engine_processes() -> list[str]:
    """Names of this process's children that belong to an engine."""
    return [process.name() for process in psutil.Process().children(recursive=True) if "VLLM" in process.name()]


def main(folder: Path) -> None:
    """Ask both engines the same."""
    # vLLM's attention on the CPU takes heads of 32, not of the sandbox model's 24.
    build_model(folder / "model", num_heads=3)
    model = Model(
        model_name_or_path=str(folder / "model"), dtype="float32", max_length=MAX_TOKENS + 48, max_prompt_length=48
    )
    renderer = Renderer(load_tokenizer(folder / "model"), max_prompt_length=48, max_length=model.max_length)
    requests = [
        Request(f"p{i}", k, renderer.prompt_ids(row["chosen"][:1]))
        for i, row in enumerate(preference_rows(PROMPTS, seed=5))
        for k in range(SAMPLES)
    ]
    groups = [requests[:7], requests[7:8], [], requests[8:]]
    vllm = VllmBackend(type="vllm", enforce_eager=True, gpu_memory_utilization=0.1)
    result: dict[str, Any] = {}

    stops = [renderer.end_of_turn_id, CONTROL_ID]
    engine: Any = open_engine(model, sampling_of(vllm, 0.7), stops)
    sampled, order = answers(engine, groups)
    result["groups"] = sorted(order)
    result["sampled"] = as_json(sampled)
    mixed = [requests[::-2], requests[-2::-2]]
    result["sampled in another order"] = as_json(answers(engine, mixed)[0])
    engine._sampling = sampling_of(vllm, 0.0)  # a second engine would cost half a minute
    result["greedy"] = as_json(answers(engine, groups)[0])
    engine._stop_ids = [CONTROL_ID]
    result["own end ignored"] = as_json(answers(engine, groups[:1])[0])
    try:
        answers(engine, [[requests[0]._replace(prompt_ids=[9] * 49)]])
    except DataError as error:
        result["too long"] = str(error)
    result["processes"] = engine_processes()
    engine.close()
    result["processes after"] = engine_processes()

    plain = open_engine(model, sampling_of(TransformersBackend(), 0.0), stops)
    result["greedy by transformers"] = as_json(answers(plain, groups)[0])
    scorer = for_inference(load_causal_lm, model)
    for name in ("sampled", "greedy"):
        items = [Scored(r.prompt_ids, result[name][f"{r.prompt_id}/{r.sample}"]["response_ids"]) for r in requests]
        logps = sequence_logps(scorer, items, tokens_per_batch=2048)
        result[f"{name}: logps by transformers"] = {
            f"{r.prompt_id}/{r.sample}": logp for r, logp in zip(requests, logps, strict=True)
        }
    result["stops"] = stops
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
