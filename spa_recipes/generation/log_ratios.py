"""log pi(y|x) - log pi_ref(y|x): the ways to compute it, what they cost in precision, and the choice among them.

Two log-probs of some hundred nats, each with a rounding error, are subtracted (`difference`); or the log-prob is
differentiated along the difference of the weights (`tangent`), so that nothing large is subtracted. In half precision
the error of a difference is often larger than the margins that are judged by it. How large is measured here.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.noise import error_per_root_token
from spa_recipes.errors import StageError, TryAgainError
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.tangent import sequence_log_ratios
from spa_recipes.models.memory import is_out_of_memory
from spa_recipes.models.update import Update
from spa_recipes.recipe.schema import Method

MEASURED_PAIRS = 16
"""Pairs on which the ways are compared with exact arithmetic."""

ERROR_SHARE = 0.1
"""A way is precise enough if its median error is at most this share of the median margin."""

CHECKED_PAIRS, CHECKED_SHARE, FEWEST_CHECKED = 64, 0.1, 8
"""Other pairs on which the estimated standard errors are checked: the most of them, their largest share of all pairs,
since exact arithmetic is dear, and the fewest that say something."""

Load = Callable[[str], PreTrainedModel]
"""Loads a model in a precision."""


class BothModels(NamedTuple):
    """How policy and reference are loaded, each in a precision of the caller's choice.

    Attributes:
        update: what the policy's weights differ by from those of a loaded reference; takes less memory than the policy.
        on_cpu: the same models on the CPU, for the few exact passes that a GPU has no room for; None on a CPU.
    """

    policy: Load
    reference: Load
    update: Callable[[PreTrainedModel], Update]
    on_cpu: "BothModels | None" = None

    def logps(self, dtype: str, items: Sequence[Scored], **options: Any) -> tuple[list[float], list[float]]:
        """Log-probs of the items under the policy, then under the reference; one model is in memory at a time."""
        return (
            sequence_logps(loaded(self.policy, dtype), items, **options),
            sequence_logps(loaded(self.reference, dtype), items, **options),
        )


class Way(NamedTuple):
    """A way to compute log-ratios.

    Attributes:
        kind: `difference` or `tangent`.
        dtype: precision of weights and products.
        nodes: of the quadrature of a tangent; 0 for a difference.
    """

    kind: str
    dtype: str
    nodes: int = 0

    def __str__(self) -> str:
        return f"{self.kind} in {self.dtype}" + (" at two nodes" if self.nodes == 2 else "")


class Measured(NamedTuple):
    """A way on the measured pairs.

    Attributes:
        error: median of |margin - exact margin|, in nats.
        noise: the same error, per root of a response token; see `algo.noise`.
    """

    way: Way
    error: float
    noise: float


class Known(NamedTuple):
    """Places of two responses, and the exact margin of the first over the second, in nats."""

    first: int
    second: int
    margin: float


class Choice(NamedTuple):
    """The way that is taken, and why.

    Attributes:
        asked: `judge.method`.
        margin: median of the exact |margins| of the measured pairs, in nats; 0 where there was no pair.
        noise: standard error of a margin per root of a response token, by the way that is taken.
        logp_noise: that of one log-prob in the precision of the model.
        kept: root mean square of the differences between log-probs that sampling kept and those of a separate pass,
            in nats; None without kept ones.
        measured: what was measured, in this order.
        dropped: ways that could not be measured, with the reason.
        others: pairs that were not measured, on which `noise` is checked.
    """

    asked: Method
    way: Way
    margin: float
    noise: float
    logp_noise: float
    kept: float | None
    measured: list[Measured]
    dropped: dict[str, str]
    others: list[Known]

    @property
    def why(self) -> str:
        """One sentence for people."""
        if not self.measured:
            return f"{self.way}: there is no pair to measure"
        errors = "; ".join(f"{m.way} {m.error:.2g} nats ({_share(m.error, self.margin)})" for m in self.measured)
        unable = "".join(f"; {name}: {reason}" for name, reason in self.dropped.items())
        scale = f"share of the median margin, {self.margin:.3g} nats"
        return f"{self.way}; median error of a margin ({scale}): {errors}{unable}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        measured = [{**m._asdict(), "way": list(m.way)} for m in self.measured]
        others = [list(known) for known in self.others]
        lists = {"way": list(self.way), "measured": measured, "others": others}
        return {**self._asdict(), **lists, "method": str(self.way)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Choice":
        """What `to_json` made.

        Raises:
            KeyError, TypeError: it was not made by that.
        """
        measured = [Measured(**{**m, "way": Way(*m["way"])}) for m in value["measured"]]
        fields = {name: value[name] for name in cls._fields}
        others = [Known(*known) for known in value["others"]]
        return cls(**{**fields, "way": Way(*value["way"]), "measured": measured, "others": others})


def _share(error: float, margin: float) -> str:
    return f"{error / margin:.1%}" if margin else "the margins are 0"


def candidates(asked: Method, dtype: str, *, on_gpu: bool) -> list[Way]:
    """The ways to choose from, by rising cost in products of a layer.

    A difference takes two products, a tangent three, and one in float32 is several times as dear as one in half
    precision. float16 has eight times the resolution of bfloat16 at the same speed; only a GPU has fast products in it.
    """
    plain = Way("difference", dtype)
    if asked == "tangent":
        return [Way("tangent", dtype, 1), Way("tangent", dtype, 2)]
    if asked == "difference" or dtype == "float32":
        return [plain]
    finer = on_gpu and dtype == "bfloat16"
    return [
        plain,
        *([Way("difference", "float16")] if finer else []),
        Way("tangent", dtype, 1),
        *([Way("tangent", "float16", 1)] if finer else []),
        Way("difference", "float32"),
    ]


def choose(
    asked: Method,
    dtype: str,
    models: BothModels,
    items: Sequence[Scored],
    pairs: Sequence[tuple[int, int]],
    kept: Sequence[float] | None = None,
    others: Sequence[tuple[int, int]] = (),
    *,
    on_gpu: bool,
    **options: Any,
) -> Choice:
    """Measure the candidates on some pairs against exact arithmetic, and take the first that is precise enough.

    Where none is, that with the smallest error is taken; under `auto` the last one is exact by definition. Exact is
    float32, or float64 for models in float32.

    Args:
        asked: `judge.method`.
        dtype: precision of the models.
        items: responses.
        pairs: places of two responses whose margin is measured, at most `MEASURED_PAIRS`.
        kept: for each item the log-prob under the policy that sampling kept.
        others: places of two responses whose exact margin is to be known; not looked at where this process's device
            has no room for exact arithmetic.
        options: of `sequence_logps`.

    Raises:
        StageError: a tangent was asked for, and the architecture has no forward mode.
    """
    ways = candidates(asked, dtype, on_gpu=on_gpu)
    if not pairs:
        return Choice(asked, ways[-1], 0.0, 0.0, 0.0, None, [], {}, [])
    used = sorted({i for pair in pairs for i in pair})
    some, place = [items[i] for i in used], {i: k for k, i in enumerate(used)}
    tokens = [len(item.response_ids) for item in some]
    couples = [(place[i], place[j]) for i, j in pairs]
    of_both = [tokens[i] + tokens[j] for i, j in couples]

    def margins(ratios: Sequence[float]) -> list[float]:
        return [ratios[i] - ratios[j] for i, j in couples]

    exact_dtype = "float64" if dtype == "float32" else "float32"
    both, has_room = _exact(models, exact_dtype, some, [items[i] for pair in others for i in pair], **options)
    exact, further = [logps[: len(some)] for logps in both], subtracted(*(logps[len(some) :] for logps in both))
    plain = models.logps(dtype, some, **options)
    truth = margins(subtracted(*exact))
    plain_errors = [a - b for a, b in zip(margins(subtracted(*plain)), truth, strict=True)]

    def errors_of(way: Way) -> list[float]:
        if way == Way("difference", dtype):
            return plain_errors
        if way == Way("difference", exact_dtype):
            if not has_room:
                raise StageError("out of memory")
            # The measure itself. Its own errors are those of the plain difference, smaller by the step of rounding.
            return [error * _step(exact_dtype) / _step(dtype) for error in plain_errors]
        ratios = log_ratios(way, models, some, **options)
        return [a - b for a, b in zip(margins(ratios), truth, strict=True)]

    scale = median(map(abs, truth))
    measured: list[Measured] = []
    dropped: dict[str, str] = {}
    for way in ways:
        try:
            errors = errors_of(way)
        except (StageError, TryAgainError, RuntimeError) as error:
            if asked != "auto" or not (isinstance(error, StageError) or _no_room(error)):
                raise
            dropped[str(way)] = error.what if isinstance(error, StageError) else "out of memory"
            continue
        measured.append(Measured(way, median(map(abs, errors)), error_per_root_token(errors, of_both)))
        if measured[-1].error <= ERROR_SHARE * scale:
            break
    best = measured[-1] if measured[-1].error <= ERROR_SHARE * scale else min(measured, key=lambda m: m.error)
    off = [a - b for values, rights in zip(plain, exact, strict=True) for a, b in zip(values, rights, strict=True)]
    checked = zip(others if has_room else (), further[::2], further[1::2], strict=True)
    known = [Known(*pair, one - other) for pair, one, other in checked]
    return Choice(
        asked,
        best.way,
        scale,
        best.noise,
        error_per_root_token(off, tokens * 2),
        None if kept is None else _root_mean_square([kept[i] - plain[0][place[i]] for i in used]),
        measured,
        dropped,
        known if best.way != Way("difference", exact_dtype) else [],
    )


def estimate_check(choice: Choice, ratios: Sequence[float], items: Sequence[Scored]) -> float | None:
    """The errors of the margins of the other pairs, as a multiple of their estimated standard errors (rms).

    About 1 where the estimate from the measured pairs holds for all.

    Args:
        ratios: log-ratios of all items, by the way that was chosen.

    Returns:
        None where no other pair has a known margin.
    """
    if not choice.others or not choice.noise:
        return None
    errors = [ratios[i] - ratios[j] - margin for i, j, margin in choice.others]
    tokens = [len(items[i].response_ids) + len(items[j].response_ids) for i, j, _ in choice.others]
    return error_per_root_token(errors, tokens) / choice.noise


def _exact(
    models: BothModels, dtype: str, items: Sequence[Scored], more: Sequence[Scored], **options: Any
) -> tuple[tuple[list[float], list[float]], bool]:
    """Exact log-probs under both models, and whether this process's device has room for them; without it, no `more`."""
    try:
        return models.logps(dtype, [*items, *more], **options), True
    except (TryAgainError, RuntimeError) as error:
        if models.on_cpu is None or not _no_room(error):
            raise
    return models.on_cpu.logps(dtype, items, **options), False


def _no_room(error: BaseException) -> bool:
    """Whether memory ran out, while a model was loaded or while it worked."""
    return is_out_of_memory(error) or (isinstance(error, TryAgainError) and "out of memory" in error.what)


def log_ratios(way: Way, models: BothModels, items: Sequence[Scored], **options: Any) -> list[float]:
    """The log-ratio of each item, in nats.

    Args:
        options: of `sequence_logps`.

    Raises:
        StageError: a result is NaN or infinite; the architecture has no forward mode; a weight does not fit.
    """
    if way.kind == "difference":
        return subtracted(*models.logps(way.dtype, items, **options))
    reference = movable(models.reference, way.dtype)
    return tangents(way, models.update(reference), reference, items, **options)


def tangents(
    way: Way, update: Update, reference: PreTrainedModel, items: Sequence[Scored], **options: Any
) -> list[float]:
    """The log-ratio of each item by derivatives; options and errors as in `log_ratios`."""
    nodes: Literal[1, 2] = 2 if way.nodes == 2 else 1
    return [ratio.log_ratio for ratio in sequence_log_ratios(update, reference, items, nodes=nodes, **options)]


def loaded(load: Load, dtype: str) -> PreTrainedModel:
    """A model in a precision that its values fit into.

    Raises:
        StageError: a weight is infinite or NaN there.
    """
    model = load(dtype)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise StageError(
                f"the weight {name} is infinite or NaN in {dtype}",
                where=model.name_or_path,
                fix="look at how the model was made",
            )
    return model


def movable(load: Load, dtype: str) -> PreTrainedModel:
    """A reference that derivatives pass through: flash attention has no forward mode, torch's own gets a rule."""
    model = loaded(load, dtype)
    if str(model.config._attn_implementation).startswith("flash"):
        model.set_attn_implementation("sdpa")
    return model


def subtracted(policy_logps: Sequence[float], reference_logps: Sequence[float]) -> list[float]:
    """Log-ratios from the log-probs under both models."""
    return [policy - reference for policy, reference in zip(policy_logps, reference_logps, strict=True)]


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _step(dtype: str) -> float:
    """The distance from 1 to the next number of a precision."""
    return torch.finfo(getattr(torch, dtype)).eps
