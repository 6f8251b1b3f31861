"""Log-ratios of answers, in each way to get them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import PairRow
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.tangent import sequence_log_ratios
from spa_recipes.models import rounding
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import token_pair
from tests.benchmarks.precision.kept import digest
from tests.benchmarks.precision.policies import Policy, World

Saved = Literal["as it is", "to nearest", "stochastically", "update apart"]

TOKENS_PER_BATCH = 1536


class Way(NamedTuple):
    """How log-ratios are got.

    Attributes:
        saved: how the trained weights are stored. update apart: base and update, each in bfloat16.
        arithmetic: precision of the products.
        method: two passes, subtracted; or one pass along the stored difference.
    """

    label: str
    saved: Saved
    arithmetic: torch.dtype
    method: Literal["difference", "tangent"]


WAYS = {
    "truth": Way("float32 throughout (the truth)", "as it is", torch.float32, "difference"),
    "today": Way("to nearest, bfloat16, two passes: **before**", "to nearest", torch.bfloat16, "difference"),
    "new": Way("stochastically, bfloat16, tangent: **now**", "stochastically", torch.bfloat16, "tangent"),
    "two-passes": Way("stochastically, bfloat16, two passes", "stochastically", torch.bfloat16, "difference"),
    "stochastic": Way("stochastically, float32, two passes", "stochastically", torch.float32, "difference"),
    "nearest": Way("to nearest, float32, two passes", "to nearest", torch.float32, "difference"),
    "apart": Way("base and update apart, float32, two passes", "update apart", torch.float32, "difference"),
    "nearest-tangent": Way("to nearest, bfloat16, tangent", "to nearest", torch.bfloat16, "tangent"),
    "apart-tangent": Way("base and update apart, bfloat16, tangent", "update apart", torch.bfloat16, "tangent"),
}
"""In the order in which they are measured and shown."""

TRUTH, NEW = WAYS["truth"], WAYS["new"]


class Passes:
    """Makes passes over answers, or finds those that were made."""

    def __init__(self, world: World) -> None:
        sizes = world.sizes
        self._world = world
        self._settings = Model(
            model_name_or_path=str(world.model), max_length=sizes.max_length, max_prompt_length=sizes.max_prompt_length
        )
        self._pi_init = lru_cache(maxsize=2)(self._load)
        self.renderer = Renderer(
            load_tokenizer(world.model), max_prompt_length=sizes.max_prompt_length, max_length=sizes.max_length
        )

    def items(self, pairs: Sequence[PairRow]) -> list[Scored]:
        """Chosen and rejected answer of each pair, one after the other."""
        rows = [token_pair(self.renderer, pair) for pair in pairs]
        return [Scored(row["prompt_ids"], ids) for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]

    def log_ratios(self, policy: Policy, way: Way, items: Sequence[Scored]) -> list[float]:
        """log pi(y|x) - log pi_init(y|x) of each item, in nats."""
        if way.method == "tangent":
            return self._kept(policy, way.saved, way.arithmetic, "tangent", items, self._tangents)
        trained, base = (
            self._kept(model, saved, way.arithmetic, "logps", items, self._logps)
            for model, saved in ((policy, way.saved), (None, TRUTH.saved))
        )
        return [ours - theirs for ours, theirs in zip(trained, base, strict=True)]

    def model(self, policy: Policy | None, saved: Saved, arithmetic: torch.dtype) -> PreTrainedModel:
        """A policy as it is after saving, or pi_init (None), ready to score."""
        if policy is None:
            return self._pi_init(self._world.model, arithmetic)
        model = self._load(policy.folder, torch.float32)
        base = self._base_weights()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(stored(weight, base[name], saved, key=policy.key, name=name))
        return model.to(arithmetic).eval()

    def update(self, policy: Policy, saved: Saved) -> dict[str, float]:
        """What the saved weights keep of the update: the package's own figures."""

        def figures() -> dict[str, float]:
            base, update = self._base_weights(), rounding.Update()
            for name, weight in self._load(policy.folder, torch.float32).named_parameters():
                update.add(base[name], weight, stored(weight, base[name], saved, key=policy.key, name=name).bfloat16())
            return update.figures()

        found: dict[str, float] = self._world.kept.get("updates", {"policy": policy.key, "saved": saved}, figures)
        return found

    def _kept(
        self,
        policy: Policy | None,
        saved: Saved,
        arithmetic: torch.dtype,
        method: str,
        items: Sequence[Scored],
        make: Callable[[Policy | None, Saved, torch.dtype, Sequence[Scored]], list[float]],
    ) -> list[float]:
        made_by = {
            "policy": "pi_init" if policy is None else policy.key,
            "saved": saved,
            "arithmetic": str(arithmetic),
            "method": method,
            "model": self._world.made_by["model"],
            "items": digest([list(item) for item in items]),
        }
        found: list[float] = self._world.kept.get("passes", made_by, lambda: make(policy, saved, arithmetic, items))
        return found

    def _logps(
        self, policy: Policy | None, saved: Saved, arithmetic: torch.dtype, items: Sequence[Scored]
    ) -> list[float]:
        return sequence_logps(self.model(policy, saved, arithmetic), items, tokens_per_batch=TOKENS_PER_BATCH)

    def _tangents(
        self, policy: Policy | None, saved: Saved, arithmetic: torch.dtype, items: Sequence[Scored]
    ) -> list[float]:
        # The stored weights in float32, so that their difference from the base is rounded once.
        models = self.model(policy, saved, torch.float32), self.model(None, TRUTH.saved, arithmetic)
        ratios = sequence_log_ratios(*models, items, tokens_per_batch=TOKENS_PER_BATCH)
        return [ratio.log_ratio for ratio in ratios]

    def _base_weights(self) -> dict[str, torch.Tensor]:
        return dict(self._pi_init(self._world.model, torch.float32).named_parameters())

    def _load(self, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        return load_causal_lm(folder, self._settings, dtype)


@torch.no_grad()
def stored(weight: torch.Tensor, base: torch.Tensor, saved: Saved, *, key: str, name: str) -> torch.Tensor:
    """A trained float32 weight as it is after saving, in float32 again."""
    if saved == "to nearest":
        return weight.bfloat16().float()
    if saved == "stochastically":
        return rounding.stochastic(weight, torch.bfloat16, key=key, name=name).float()
    if saved == "update apart":
        return base + (weight - base).bfloat16().float()
    return weight
