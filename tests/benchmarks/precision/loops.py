"""Which answers of a policy are preferred to those of pi_init."""

from collections.abc import Sequence

import torch

from spa_recipes.algo.winrate import outcomes
from spa_recipes.data.rows import PairRow
from spa_recipes.generation.requests import Request, request_seed
from spa_recipes.generation.scoring import Scored
from spa_recipes.generation.transformers import sample
from tests.benchmarks.precision.kept import digest
from tests.benchmarks.precision.passes import TRUTH, Passes
from tests.benchmarks.precision.policies import Policy, World

TEMPERATURE, BATCH = 0.7, 20
ANSWERED = 60
"""Held-out prompts."""


def wins(
    world: World, passes: Passes, policy: Policy, dtype: torch.dtype, judge: Policy, pairs: Sequence[PairRow]
) -> list[float]:
    """For each prompt, whether the judge's implicit reward, in float32, prefers the policy's answer to pi_init's."""
    ours = answers(world, passes, policy, dtype, pairs)
    init = answers(world, passes, None, torch.float32, pairs)
    return outcomes(passes.log_ratios(judge, TRUTH, ours), passes.log_ratios(judge, TRUTH, init))


def answers(
    world: World, passes: Passes, policy: Policy | None, dtype: torch.dtype, pairs: Sequence[PairRow]
) -> list[Scored]:
    """An answer to each of the first prompts, sampled in the policy's own precision."""
    requests = [Request(pair["prompt_id"], 0, passes.renderer.prompt_ids(pair["prompt"])) for pair in pairs[:ANSWERED]]

    def sampled() -> list[list[int]]:
        completions = sample(
            passes.model(policy, TRUTH.saved, dtype),
            requests,
            temperature=TEMPERATURE,
            top_p=1.0,
            max_tokens=world.sizes.max_tokens,
            stop_ids=passes.renderer.stop_ids,
            seed_of=lambda request: request_seed(0, "bench_precision", request.prompt_id, request.sample),
            batch_size=BATCH,
        )
        return [completion.response_ids for completion in completions]

    made_by = {
        "policy": "pi_init" if policy is None else policy.key,
        "model": world.made_by["model"],
        "dtype": str(dtype),
        "tokens": world.sizes.max_tokens,
        "prompts": digest([request.prompt_ids for request in requests]),
    }
    found: list[list[int]] = world.kept.get("answers", made_by, sampled)
    return [Scored(request.prompt_ids, ids) for request, ids in zip(requests, found, strict=True)]
