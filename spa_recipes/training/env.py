"""What a training run is given besides data and settings, and what it gives back. Imports nothing heavy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spa_recipes.recipe.schema import Model, Threshold

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKPOINT_MARKER = "spa_checkpoint.json"
"""Written last into a checkpoint's folder: a checkpoint without it was not finished."""

Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
"""How the weights of a training are shared out over its processes."""

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called with (optimizer steps done, optimizer steps in all, figures of a log line or {}), on the first process."""


def ignore_progress(done: int, total: int, logs: dict[str, Any]) -> None:
    """The `OnProgress` that reports to nobody."""


@dataclass(frozen=True)
class TrainEnv:
    """Where and with what a model is trained.

    Attributes:
        model: dtype, attention, LoRA and the like; the path of the model to train is given separately.
        key: the stage's; it chooses the random bits by which weights are rounded when the model is saved.
        output_dir: the trained model is saved here: weights, config, generation config, tokenizer, training log.
        adapter_dir: where the trained LoRA weights are kept once they are merged; None keeps the merged model only.
        checkpoint_dir: checkpoints of the running training, which continues from the newest one that it finds there.
        checkpoints_kept: whole checkpoints to keep; while the next one is written there is one more.
        tokenizer: the policy's, with its chat template; saved beside the model and never changed.
        base: QLoRA: the model whose weights are kept in 4 bits; None: the policy that is trained.
        stack: QLoRA: the adapter on `base` that makes it the policy that is trained; None where `base` is that itself.
        sharding: how the training is shared out; `none` also where accelerate's own configuration says it.
        onednn_products: as in `compute` of a recipe.
        report_to: trackers of transformers; none by default.
        on_notice: called with what a person should know, such as a damaged checkpoint; on the first process.
    """

    model: Model
    key: str
    seed: int
    output_dir: Path
    checkpoint_dir: Path
    tokenizer: "PreTrainedTokenizerBase"
    adapter_dir: Path | None = None
    checkpoints_kept: int = 2
    base: Model | None = None
    stack: Path | None = None
    sharding: Sharding = "none"
    onednn_products: bool = True
    report_to: list[str] = field(default_factory=list)
    run_name: str | None = None
    on_progress: OnProgress = ignore_progress
    on_notice: Callable[[str], None] = print


@dataclass(frozen=True)
class Refinement:
    """How doubtful labels are discounted: the method in spa_recipes/README.md, 3. Refine.

    Attributes:
        alpha: weight of the flipped label of a flagged pair.
        lam: lambda of the de-coupled detection; 0 is the plain detector.
        threshold: how tau is set.
        warmup_ratio: share of the optimizer steps with alpha = 0.
        detector: whose margin decides: the policy's in training, the judge's, or the sum of both.
        judge_margins: the judge's margin of every judged row, in their order; needed unless `detector` is policy.
    """

    alpha: float
    lam: float
    threshold: Threshold
    warmup_ratio: float
    detector: Literal["policy", "judge", "both"] = "policy"
    judge_margins: Sequence[float] = ()


@dataclass(frozen=True)
class PairLoss:
    """What is minimised for a pair: by default the method's loss. See `spa_recipes.algo.variants`.

    Attributes:
        kind, divergence, sft_weight: the settings `loss`, `divergence` and `sft_weight` of a recipe's `refine`.
        judge_margins: the judge's margin of every row, in their order; `distill` needs them.
        first_margins: beta times the difference of the log-ratios before the first step, row by row; empty where they
            are 0, as they are unless the reference is mixed.
        token_weights: of the tokens of the chosen and of the rejected answer of every row, with which log-probs are
            summed, as those of a reference that is given were; empty where all tokens count alike.
        targets: for `sppo`, eta*(P_k - 1/2) of the chosen, the rejected and the other answers of every row.
        consistency: c, the weight of the label of a judged pair as it is; 1 - c is that of its flip.
    """

    kind: Literal["sigmoid", "ipo", "distill", "sppo"] = "sigmoid"
    divergence: Literal["reverse_kl", "chi_squared"] = "reverse_kl"
    sft_weight: float = 0.0
    judge_margins: Sequence[float] = ()
    first_margins: Sequence[float] = ()
    targets: Sequence[Sequence[float]] = ()
    token_weights: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    consistency: float = 1.0


METHODS_LOSS = PairLoss()


@dataclass(frozen=True)
class Start:
    """Before its first step a policy is its reference: the margins of the first step are rounding and nothing else.

    Attributes:
        noise: what rounding does to a margin (standard error), where it was measured; None measures it.
    """

    noise: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        steps: optimizer steps; rows: rows given; tokens: tokens of all sequences over all epochs, without padding.
        metrics: train_loss (mean over all steps), resumed_from_step (0: from the start), and for preferences the last
            rewards/accuracies, rewards/margins and, with refinement, spa/flagged over the steps after the warm-up.
            Where the model was rounded when it was saved, also what it keeps of the update: see
            `spa_recipes.models.rounding.Update`.
        history: one dict per log line, as in `training_log.jsonl`.
        detects_along_update: whether the detector's p~ came from derivatives along the update.
    """

    steps: int
    rows: int
    tokens: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    detects_along_update: bool = False
