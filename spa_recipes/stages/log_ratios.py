"""Log-ratios of completions under two models, by a way that is precise enough for them."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.noise import standard_error
from spa_recipes.data.arrow import rows_of
from spa_recipes.data.tables import COMPLETIONS, LogRatioTable, read_table, write_log_ratios
from spa_recipes.errors import StageError
from spa_recipes.generation.kept import FAR_FROM_KEPT
from spa_recipes.generation.log_ratios import (
    CHECKED_PAIRS,
    CHECKED_SHARE,
    FEWEST_CHECKED,
    MEASURED_PAIRS,
    BothModels,
    Choice,
    Way,
    choose,
    estimate_check,
    loaded,
    movable,
    subtracted,
    tangents,
)
from spa_recipes.generation.scoring import Scored
from spa_recipes.models.adapters import with_adapter
from spa_recipes.models.dtype import torch_dtype
from spa_recipes.models.loading import (
    for_inference,
    load_causal_lm,
    load_four_bit_values,
    local_device,
    stored_dtype,
)
from spa_recipes.models.lora_files import is_on_4bit
from spa_recipes.models.update import Update, adapter_update, difference, stored_difference
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import (
    BARRIER_POLL_SECONDS,
    mean,
    model_section,
    sharded_values,
    use_local_device,
)
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.score import ScoredRows, score_with
from spa_recipes.state import atomic
from spa_recipes.state.patience import look_again, patiently
from spa_recipes.state.reading import read_json

FAR_FROM_ESTIMATE = 2.0
"""Errors that are so many times as large as they were estimated, or as small, are told. With 16 pairs to estimate from
and 64 to check, chance explains about half of that."""


class LogRatios(NamedTuple):
    """Log-ratios of some responses in nats, their standard errors, and how they were computed.

    Attributes:
        error_check: errors of other margins than those that were measured, in units of their standard errors (rms);
            None where there were too few to look at.
    """

    values: list[float]
    errors: list[float]
    choice: Choice
    error_check: float | None


def run(context: Context) -> Result:
    """Write `log_ratios.parquet`, a row for each completion in their order."""
    completions = read_table(context.input("completions"), COMPLETIONS)
    items = ScoredRows(completions)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, item in enumerate(completions["item"].to_pylist()):
        groups[item].append(i)
    logps = completions["logps"]
    kept = None if logps.null_count else [sum(row["logps"]) for row in rows_of(completions.select(["logps"]))]
    adapter = context.input("adapter") if "adapter" in context.spec.inputs else None
    roles = ("policy", "reference")
    found = log_ratios(context, "log-ratios", roles, items, [*groups.values()], kept=kept, adapter=adapter)
    if found is None:
        return NO_RESULT
    choice = found.choice
    table = LogRatioTable(found.values, found.errors, {**choice.to_json(), "error_check": found.error_check})
    write_log_ratios(context.draft / "log_ratios.parquet", completions, table)
    tokens = sum(len(i.prompt_ids) + len(i.response_ids) for i in items)
    metrics: dict[str, Any] = {
        "method": str(choice.way),
        "why": choice.why,
        "median_margin": choice.margin,
        "logp_noise": choice.logp_noise,
    }
    if choice.measured:
        metrics["method_error"] = next(m.error for m in choice.measured if m.way == choice.way)
    if found.error_check is not None:
        metrics |= {"error_check": found.error_check, "checked_pairs": len(choice.others)}
    if choice.kept is not None:
        metrics["quantization_mismatch" if _in_4bit(adapter) else "kept_mismatch"] = choice.kept
    return Result(len(items), tokens, metrics)


def log_ratios(
    context: Context,
    name: str,
    roles: tuple[str, str],
    items: Sequence[Scored],
    groups: Sequence[Sequence[int]],
    *,
    kept: Sequence[float] | None = None,
    adapter: Path | None = None,
) -> LogRatios | None:
    """Log-ratios of `items` under the models of two roles, shard by shard, by the stage's `method`.

    The way is chosen and written before the first shard; all processes and later attempts read it.

    Args:
        name: of the shards and of the choice.
        roles: names of the inputs that are policy and reference.
        groups: places of responses that are compared with each other: the margins that matter.
        kept: for each item the log-prob under the policy that sampling kept.
        adapter: LoRA weights beside those of the policy.

    Returns:
        None in every process but the first.
    """
    sections = [model_section(context, role) for role in roles]
    models, in_4bit = _both_models(sections[0], sections[1], adapter), _in_4bit(adapter)
    dtype = str(torch_dtype(sections[0].dtype)).removeprefix("torch.")
    pairs, others = _measured_pairs(items, groups)
    if dtype == "float32":
        others = []  # rounding is far below the margins: no pair is worth a pass in float64
    choice = _chosen(context, name, lambda: _choice(context, name, models, dtype, items, pairs, others, kept, in_4bit))
    way = choice.way
    shards = f"{name}-{way}".replace(" ", "-")
    if way.kind == "tangent":
        values = _by_tangent(context, shards, models, items, way)
    else:
        policy, reference = (
            score_with(context, f"{shards}-{role}", partial(loaded, load, way.dtype), items)
            for role, load in (("policy", models.policy), ("reference", models.reference))
        )
        values = None if policy is None or reference is None else subtracted(policy, reference)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what comes next may be another process on this GPU, such as vLLM's
    if values is None:
        return None
    errors = [standard_error(choice.noise, len(item.response_ids)) for item in items]
    return LogRatios(values, errors, choice, _checked_errors(context, name, choice, values, items))


def _checked_errors(
    context: Context, name: str, choice: Choice, values: Sequence[float], items: Sequence[Scored]
) -> float | None:
    """`estimate_check`, which a person is told where it is far from 1."""
    check = estimate_check(choice, values, items)
    if check is not None and not 1 / FAR_FROM_ESTIMATE <= check <= FAR_FROM_ESTIMATE:
        context.notice(
            f"{name}: the standard errors of margins are estimated from {MEASURED_PAIRS} pairs; on "
            f"{len(choice.others)} others, errors are {check:.2g} times as large as estimated: multiply "
            "standard_error by that"
        )
    return check


Places = list[tuple[int, int]]
"""Places of two responses each."""


def _measured_pairs(items: Sequence[Scored], groups: Sequence[Sequence[int]]) -> tuple[Places, Places]:
    """Two different responses of some groups, spread evenly over all; and of other ones, to check what is estimated."""
    answers = [hash(tuple(item.response_ids)) for item in items]
    pairs = []
    for group in groups:
        other = next((i for i in group if answers[i] != answers[group[0]]), None)
        if other is not None:
            pairs.append((group[0], other))
    measured = _spread(pairs, MEASURED_PAIRS)
    count = min(CHECKED_PAIRS, int(CHECKED_SHARE * len(pairs)))
    left = [*dict.fromkeys(pairs).keys() - set(measured)] if count >= FEWEST_CHECKED else []
    return measured, _spread(sorted(left), count)


def _spread(pairs: Places, most: int) -> Places:
    """So many of some pairs, at equal distances."""
    count = min(most, len(pairs))
    return [pairs[len(pairs) * k // count] for k in range(count)]


def _chosen(context: Context, name: str, choose_now: Callable[[], Choice]) -> Choice:
    """The way that an attempt before this one chose, or the one that one process of the stage chooses now."""
    path = context.work / f"{name}.choice.json"
    while (choice := _written(path)) is None:
        if context.takes(path.name):
            choice = choose_now()
            atomic.write_json(path, choice.to_json())
            return choice
        time.sleep(BARRIER_POLL_SECONDS)  # if that process fails, this one is ended, or gets its task
        look_again(path.parent)
    return choice


def _written(path: Path) -> Choice | None:
    """The choice in a file; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return Choice.from_json(patiently(read_json, path))
    except (ValueError, KeyError, TypeError):
        return None


def _choice(
    context: Context,
    name: str,
    models: BothModels,
    dtype: str,
    items: Sequence[Scored],
    pairs: Places,
    others: Places,
    kept: Sequence[float] | None,
    in_4bit: bool,
) -> Choice:
    """Measure and choose, and say what came out.

    Args:
        in_4bit: the policy is an adapter on weights in 4 bits, while the answers were sampled from their sum with the
            weights that were never in 4 bits: log-probs differ by that, however exact they are.

    Raises:
        StageError: log-probs that sampling kept are not those of the policy; as `choose`.
    """
    choice = choose(
        context.spec.settings["method"],
        dtype,
        models,
        items,
        pairs,
        kept,
        others,
        on_gpu=local_device().type == "cuda",
        on_progress=lambda done, tokens: context.progress(done, 2 * len([*pairs, *others]), "measured responses", name),
        **_options(context),
    )
    context.notice(f"{name}: {choice.why}")
    if choice.kept is not None and in_4bit:
        context.notice(
            f"{name}: the answers were sampled from the merged model, whose weights are not in 4 bits, and those that "
            f"adapters are trained on are: the log-probs of the two differ by {choice.kept:.2g} nats (rms)"
        )
    if choice.kept is None or in_4bit or dtype == "float32":
        return choice
    context.notice(f"{name}: the log-probs that sampling kept differ from scored ones by {choice.kept:.2g} nats (rms)")
    tokens = mean([len(items[i].response_ids) for pair in pairs for i in pair])
    limit = FAR_FROM_KEPT * standard_error(choice.logp_noise, round(2 * tokens))  # both sides are rounded
    if choice.kept > limit:
        raise StageError(
            f"the log-probs that sampling kept differ from those of the policy by {choice.kept:.3g} nats (rms), and "
            f"rounding explains {limit / FAR_FROM_KEPT:.2g}",
            fix="look at whether the engine sampled from this policy",
        )
    return choice


def _by_tangent(
    context: Context, name: str, models: BothModels, items: Sequence[Scored], way: Way
) -> list[float] | None:
    """Log-ratios shard by shard; the models are loaded only if a shard is missing."""

    @cache
    def both() -> tuple[Update, PreTrainedModel]:
        reference = movable(models.reference, way.dtype)
        return models.update(reference), reference

    def compute(start: int, end: int) -> list[float]:
        return tangents(
            way,
            *both(),
            items[start:end],
            on_progress=lambda done, tokens: context.progress(start + done, len(items), "responses", name),
            first_item=start,
            **_options(context),
        )

    return sharded_values(context, name, "log_ratio", len(items), compute)


def _both_models(policy: Model, reference: Model, adapter: Path | None) -> BothModels:
    """How two models are loaded; with `adapter`, the policy is its own model with these LoRA weights.

    An adapter of QLoRA was trained on weights in 4 bits, so both are loaded with the values that those have.
    """
    load = partial(_load, in_4bit=_in_4bit(adapter))

    def load_policy(dtype: str, *, on_cpu: bool = False) -> PreTrainedModel:
        model = load(policy, dtype, on_cpu=on_cpu)
        return model if adapter is None else with_adapter(model, adapter)

    def update(loaded_reference: PreTrainedModel) -> Update:
        if adapter is not None:
            return adapter_update(adapter, loaded_reference)
        # What a lower precision takes from the reference's weights is no part of the update.
        stored = stored_dtype(reference)
        lossless = stored is not None and torch.promote_types(stored, loaded_reference.dtype) == loaded_reference.dtype
        finer = None if lossless else load(reference, "float32", on_cpu=True)
        folder = Path(policy.model_name_or_path)
        if folder.is_dir():
            return stored_difference(folder, loaded_reference, stored=finer)
        return difference(load(policy, "float32", on_cpu=True), loaded_reference, stored=finer)

    on_cpu = BothModels(partial(load_policy, on_cpu=True), partial(load, reference, on_cpu=True), update)
    return BothModels(load_policy, partial(load, reference), update, on_cpu if local_device().type == "cuda" else None)


def _in_4bit(adapter: Path | None) -> bool:
    """Whether a policy is an adapter of QLoRA; merged models and those from outside are read as they are stored."""
    return adapter is not None and is_on_4bit(adapter)


def _load(model: Model, dtype: str, *, on_cpu: bool = False, in_4bit: bool = False) -> PreTrainedModel:
    """A model in a precision that need not be its own, on this process's device or on the CPU."""
    use_local_device()
    section = model.model_copy(update={"dtype": dtype})
    if dtype in ("float32", "float64") and (model.attn_implementation or "").startswith("flash"):
        section = section.model_copy(update={"attn_implementation": "sdpa"})  # flash has half precision only
    load = partial(load_four_bit_values, trained_in=torch_dtype(model.dtype)) if in_4bit else load_causal_lm
    if on_cpu:
        return load(section.model_name_or_path, section, torch_dtype(dtype)).eval()
    return for_inference(load, section)


def _options(context: Context) -> dict[str, Any]:
    """Options of the passes."""
    settings = context.spec.runtime["compute"]
    return {"tokens_per_batch": settings["score_tokens_per_batch"], "onednn_products": settings["onednn_products"]}
