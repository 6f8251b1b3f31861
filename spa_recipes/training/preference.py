"""DPO and self-refinement on TRL's DPOTrainer: 0. Seed and 3. Refine of the method (spa_recipes/README.md)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import use_adapter

from spa_recipes.algo.decoupled import DecoupledLogps
from spa_recipes.algo.refine import ThresholdWindow, detection_margin, dpo_margin, flag_noisy, refined_loss
from spa_recipes.algo.variants import divergence_margin, divergence_term, pair_loss, sft_loss, sppo_loss
from spa_recipes.data.stage_rows import TraceRow
from spa_recipes.errors import StageError
from spa_recipes.recipe.schema import FixedThreshold
from spa_recipes.training.along_update import AlongUpdate
from spa_recipes.training.env import METHODS_LOSS, PairLoss, Refinement, Start
from spa_recipes.training.pair_logps import Both, PairLogps, of_answers, of_pairs, pairs_of
from spa_recipes.training.pair_rows import pair_lengths, references, rows_of_answers, token_weights
from spa_recipes.training.response_logps import IGNORED, Reference, add_response_logps
from spa_recipes.training.sharding import in_use, shard_frozen
from spa_recipes.training.token_rows import TrainsTokenRows

FAR_FROM_ZERO = 5.0
"""So many times the rounding noise, the margins of the first step say that the reference is another model."""


class _SeenPairs(NamedTuple):
    """Figures of the pairs of one micro-batch, (B,) each, without gradient.

    `moved` is how far beta times the difference of the log-ratios is from what it was before the first step; `logps` is
    the root of the sum of squares of the four log-probs of a pair, and `tokens` counts those of both responses.
    """

    row: torch.Tensor
    loss: torch.Tensor
    margin: torch.Tensor
    p_detect: torch.Tensor
    flagged: torch.Tensor
    reward_chosen: torch.Tensor
    reward_rejected: torch.Tensor
    moved: torch.Tensor
    logps: torch.Tensor
    tokens: torch.Tensor


@dataclass
class NoiseDetector:
    """The threshold tau, when it applies, and the pairs seen; its state is part of a checkpoint.

    Attributes:
        warmup_steps: optimizer steps with alpha = 0.
        trace: all judged pairs seen, in the order of steps and, inside a step, of rows.
    """

    settings: Refinement
    warmup_steps: int
    trace: list[TraceRow] = field(default_factory=list)
    window: ThresholdWindow | None = field(init=False)

    def __post_init__(self) -> None:
        threshold = self.settings.threshold
        if isinstance(threshold, FixedThreshold):
            self.window = None
        else:
            self.window = ThresholdWindow(threshold.k, threshold.window, threshold.min_pairs)

    def tau(self) -> float | None:
        """The threshold from the pairs of earlier steps."""
        if self.window is not None:
            return self.window.tau()
        assert isinstance(self.settings.threshold, FixedThreshold)
        return self.settings.threshold.tau

    def margin(self, policy_margin_B: torch.Tensor, row_B: torch.Tensor) -> torch.Tensor:
        """The detector's margin of a micro-batch; rows without a judge's margin (padding, replayed ones) have 0."""
        judge_margin_B = _of_rows(self.settings.judge_margins, row_B, like=policy_margin_B)
        return detection_margin(policy_margin_B, judge_margin_B, self.settings.detector)

    def tau_in_use(self, done_steps: int) -> float | None:
        """The threshold, or None while alpha = 0."""
        return None if done_steps < self.warmup_steps else self.tau()

    def reads(self, done_steps: int, pairs_per_step: int) -> bool:
        """Whether the p~ of a step flags anything: by itself, or in the window when the first pairs may be flagged.

        Args:
            pairs_per_step: judged pairs in a step, at least.
        """
        threshold = self.settings.threshold
        earlier = 0 if isinstance(threshold, FixedThreshold) else math.ceil(threshold.window / pairs_per_step)
        return done_steps >= self.warmup_steps - earlier

    def see(self, records: Sequence[TraceRow]) -> None:
        """Record the pairs of a finished step, in an order that does not depend on the micro-batches."""
        self.trace.extend(records)
        if self.window is not None:
            self.window.push(record["p_detect"] for record in records)

    def flagged_share(self) -> float:
        """Share of flagged pairs after the warm-up; 0 without any."""
        flags = [record["flagged"] for record in self.trace if record["step"] > self.warmup_steps]
        return sum(flags) / len(flags) if flags else 0.0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "window": None if self.window is None else self.window.state_dict(),
            "trace": [list(record.values()) for record in self.trace],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        if self.window is not None and state["window"] is not None:
            self.window.load_state_dict(state["window"])
        self.trace = [_record(*values) for values in state["trace"]]


def _root_mean_square(values_N: torch.Tensor) -> float:
    return values_N.double().square().mean().sqrt().item()


def _of_rows(known: Sequence[float], row_B: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """What is known of the rows of a micro-batch, (B,); 0 for others (padding, replayed ones)."""
    return like.new_tensor([known[row] if 0 <= row < len(known) else 0.0 for row in row_B.tolist()])


def _record(row: int, step: int, p_detect: float, margin: float, flagged: int) -> TraceRow:
    return {"row": row, "step": step, "p_detect": p_detect, "margin": margin, "flagged": flagged}


@contextmanager
def _without_hash() -> Iterator[None]:
    """TRL hashes all weights on one core, 48 s at 7B, for a cache of reference log-probs that are in the rows here."""
    hash_module = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = hash_module


class SpaTrainer(TrainsTokenRows, DPOTrainer):  # type: ignore[misc]
    """DPO and refinement of a policy on tokenised pairs.

    TRL has no hook for a loss: this overrides `_compute_loss`, `_prepare_dataset` and `_precompute_ref_logps`, which
    are private and may change with any minor version (so are transformers' `_get_train_sampler` and `_get_grad_norm`).
    That is why the package pins TRL to one minor and transformers to a range, and why a test compares loss and
    gradient with TRL's `sigmoid` loss.

    The reference is, in this order: a live model (`ref_model`), the reference log-probs of the rows, or, for LoRA,
    the policy with its adapter switched off. lambda > 0 needs one that is live.

    Args:
        rows: columns prompt_ids, chosen_ids, rejected_ids and perhaps ref_chosen_logps, ref_rejected_logps.
        global_batch_size: pairs per optimizer step over all processes.
        detector: None discounts no label.
        loss: what is minimised; by default the method's loss.
        replayed: the last so many rows are labelled seed pairs among judged ones: they are spread evenly over the
            batches, are never flagged, and the detector does not see them.
        start: as in `train_preference`.
        tolerance: difference between two ways to compute a log-prob that rounding explains, as a share of it.

    Attributes:
        logp_noise: the same, measured: standard error of a log-prob per root of a response token.
        along_update: in half precision, where the detector's log-ratios come from; None: from the log-probs of the
            training itself.
    """

    # The loss is divided by the pairs of the whole step here, not by transformers per micro-batch.
    loss_is_scaled_for_ga = True

    @_without_hash()
    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        rows: datasets.Dataset,
        *,
        global_batch_size: int,
        detector: NoiseDetector | None,
        loss: PairLoss = METHODS_LOSS,
        replayed: int = 0,
        start: Start | None = None,
        tolerance: float = 1e-4,
        ref_model: Any = None,
        **kwargs: Any,
    ) -> None:
        self.detector = detector
        self.along_update: AlongUpdate | None = None
        self._pair_loss = loss
        self._global_batch_size = global_batch_size
        self._seen: list[_SeenPairs] = []
        self._grad_norm: Any = None
        self._lengths = pair_lengths(rows)
        self._replayed = replayed
        self._start, self._tolerance = start, tolerance
        self.logp_noise: float | None = None
        self._given = ref_model
        self._reference_logps = references(rows) if args.precompute_ref_log_probs else []
        policy_head = add_response_logps(model)
        # Without a reference model it is the policy without its adapter, whose output layer is frozen.
        self._reference_head = policy_head if ref_model is None else add_response_logps(ref_model)
        with _no_model_of_trls_own():
            super().__init__(model=model, ref_model=ref_model, args=args, train_dataset=rows, **kwargs)
        self.add_callback(_StepEnd(self.finish_step))

    def create_accelerator_and_postprocess(self) -> None:
        """Share out the reference as the policy will be; TRL leaves one alone that is."""
        super().create_accelerator_and_postprocess()
        if in_use() == "fsdp2" and self._given is not None:
            shard_frozen(self._given, self.accelerator)

    # --- data ---

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The columns are in the rows already."""
        return dataset

    # --- one micro-batch ---

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> torch.Tensor:
        """The loss of the pairs of a micro-batch, as their share of the step's mean."""
        logps = self._pair_logps(model, inputs)
        margin_B = self._margin(logps.policy, logps.reference)
        if self.detector is None:
            p_detect_B = torch.sigmoid(margin_B.detach())
            flagged_B = torch.zeros_like(p_detect_B)
        else:
            detector_margin_B = self._margin(logps.detector, logps.detector_reference)
            p_detect_B = torch.sigmoid(self.detector.margin(detector_margin_B, inputs["row"]))
            flagged_B = flag_noisy(p_detect_B, self.detector.tau_in_use(self.state.global_step))
            flagged_B = flagged_B * self._judged(inputs["row"])
        loss_B = self._loss(margin_B, flagged_B, logps, inputs)
        self._seen.append(
            _SeenPairs(
                inputs["row"],
                loss_B.detach(),
                margin_B.detach(),
                p_detect_B,
                flagged_B,
                self._reward(logps.policy.chosen - logps.reference.chosen),
                self._reward(logps.policy.rejected - logps.reference.rejected),
                self._moved(logps, inputs["row"]),
                torch.stack([*logps.policy, *logps.reference]).detach().norm(dim=0),
                torch.stack(of_pairs(inputs["completion_mask"].sum(dim=1), inputs)).sum(dim=0),
            )
        )
        return self._share_of_step(loss_B, inputs["row"])

    def _margin(self, policy: Both, reference: Both) -> torch.Tensor:
        """The margin of log-probs against the reference's."""
        return divergence_margin(*policy, *reference, beta=self.beta, divergence=self._pair_loss.divergence)

    def _reward(self, log_ratio_B: torch.Tensor) -> torch.Tensor:
        """The implicit reward of log-ratios, without gradient."""
        reward_B: torch.Tensor = self.beta * divergence_term(log_ratio_B, self._pair_loss.divergence).detach()
        return reward_B

    def _moved(self, logps: PairLogps, row_B: torch.Tensor) -> torch.Tensor:
        """How far the policy has moved from its start, as a margin: 0 before the first step but for rounding."""
        margin_B = dpo_margin(*logps.policy, *logps.reference, beta=self.beta).detach()
        return margin_B - _of_rows(self._pair_loss.first_margins, row_B, like=margin_B)

    def _loss(
        self, margin_B: torch.Tensor, flagged_B: torch.Tensor, logps: PairLogps, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of each pair, or of all answers to its prompt; the label of a flagged pair is softened."""
        wanted = self._pair_loss
        if wanted.kind == "sppo":
            target_A = of_answers(wanted.targets, inputs, like=margin_B)
            loss_B = sppo_loss(logps.log_ratios, target_A, rows_of_answers(inputs["others"]))
            return loss_B + self._sft_loss(logps, inputs)
        judge_margin_B = _of_rows(wanted.judge_margins, inputs["row"], like=margin_B)

        def of_margin(margin_B: torch.Tensor) -> torch.Tensor:
            loss_B = pair_loss(margin_B, wanted.kind, self.beta, judge_margin_B)
            if wanted.consistency == 1.0:
                return loss_B
            flip_B = (1.0 - wanted.consistency) * self._judged(inputs["row"]).to(loss_B.dtype)
            return (1.0 - flip_B) * loss_B + flip_B * pair_loss(-margin_B, wanted.kind, self.beta, judge_margin_B)

        if self.detector is None:
            loss_B = of_margin(margin_B)
        else:
            loss_B = refined_loss(margin_B, flagged_B, self.detector.settings.alpha, of_margin)
        return loss_B + self._sft_loss(logps, inputs)

    def _sft_loss(self, logps: PairLogps, inputs: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """The behaviour cloning term of each pair, times its weight."""
        if not self._pair_loss.sft_weight:
            return 0.0
        tokens_B = of_pairs(inputs["completion_mask"].sum(dim=1), inputs).chosen
        return self._pair_loss.sft_weight * sft_loss(logps.plain.chosen, tokens_B)

    def _judged(self, row_B: torch.Tensor) -> torch.Tensor:
        """Which rows are judged pairs; the others are replayed ones."""
        return row_B < len(self._lengths) - self._replayed

    def _pair_logps(self, model: Any, inputs: dict[str, torch.Tensor]) -> PairLogps:
        """Log-probs of both responses under the policy, the reference and the detector's distribution."""
        labels_BT = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        log_ratios_B = self._log_ratios_along_update(inputs["input_ids"], labels_BT, inputs["row"])
        tokens = {"input_ids": inputs["input_ids"], "response_labels": labels_BT, "alone": self.reads_alone}
        if self._pair_loss.token_weights:
            return self._weighted_logps(model, inputs, tokens)
        if log_ratios_B is None and self.detector is not None and self.detector.settings.lam > 0:
            hidden_ND = self._reference_pass(**tokens, hidden_only=True)
            given = Reference(hidden_ND, self._reference_head(), self.detector.settings.lam)
            logps: DecoupledLogps = model(**tokens, reference=given)
            return pairs_of(inputs, logps.policy, logps.reference, logps.decoupled, logps.reference)
        policy_A: torch.Tensor = model(**tokens)
        if self.precompute_ref_logps:
            # Not from the batch: there, DeepSpeed would round them to the precision of its products.
            reference_A = of_answers(self._reference_logps, inputs, like=policy_A)
        else:
            reference_A = self._reference_pass(**tokens)
        if log_ratios_B is None:
            return pairs_of(inputs, policy_A, reference_A, policy_A, reference_A)
        return pairs_of(inputs, policy_A, reference_A, log_ratios_B.to(policy_A.dtype), torch.zeros_like(reference_A))

    def _weighted_logps(self, model: Any, inputs: dict[str, torch.Tensor], tokens: dict[str, Any]) -> PairLogps:
        """The same with log-probs that are summed with the weights of the tokens; in float32 only."""
        if self.detector is not None and self.detector.settings.lam > 0:
            hidden_ND = self._reference_pass(**tokens, hidden_only=True)
            given = Reference(hidden_ND, self._reference_head(), self.detector.settings.lam)
            logps: DecoupledLogps = model(**tokens, reference=given, by_token=True)
            weight_BT = token_weights(self._pair_loss.token_weights, inputs, like=logps.policy)
            policy_B, reference_B, decoupled_B = ((weight_BT * each_BT).sum(dim=1) for each_BT in logps)
            return pairs_of(inputs, policy_B, reference_B, decoupled_B, reference_B, logps.policy.sum(dim=1))
        policy_BT: torch.Tensor = model(**tokens, by_token=True)
        weight_BT = token_weights(self._pair_loss.token_weights, inputs, like=policy_BT)
        policy_B = (weight_BT * policy_BT).sum(dim=1)
        if self.precompute_ref_logps:
            reference_B = of_answers(self._reference_logps, inputs, like=policy_B)
        else:
            reference_B = (weight_BT * self._reference_pass(**tokens, by_token=True)).sum(dim=1)
        return pairs_of(inputs, policy_B, reference_B, policy_B, reference_B, policy_BT.sum(dim=1))

    def _log_ratios_along_update(
        self, input_ids: torch.Tensor, response_labels: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor | None:
        """The detector's log-ratios from derivatives, where there are any and the detector reads them.

        With a mixed reference the chosen response has the whole difference to the policy's start.
        """
        along = self.along_update
        if self.detector is None or along is None or not along.works:
            return None
        judged = 1.0 - self._replayed / len(self._lengths)
        if not self.detector.reads(self.state.global_step, max(1, int(judged * self._global_batch_size))):
            return None
        policy = self.accelerator.unwrap_model(self.model)
        log_ratios_2B = along.log_ratios(policy, input_ids, response_labels, alone=self.reads_alone)
        if log_ratios_2B is not None and self._pair_loss.first_margins:  # of the start against a mixed reference
            chosen_B = log_ratios_2B.chunk(2)[0]
            chosen_B += _of_rows(self._pair_loss.first_margins, row, like=chosen_B) / self.beta
        return log_ratios_2B

    def _reference_pass(self, **tokens: Any) -> torch.Tensor:
        """A forward pass of the reference: a model of its own, or the policy without its adapter."""
        with torch.no_grad():
            if self.ref_model is not None:
                return torch.as_tensor(self.ref_model(**tokens))
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                return torch.as_tensor(self.model(**tokens))

    # --- one optimizer step ---

    def finish_step(self) -> None:
        """Gather the pairs of the step over the processes; stop at a loss that is not finite; feed window and log."""
        micro_batches, self._seen = self._seen, []
        if self.along_update is not None:
            self.along_update.forget()
        columns = _SeenPairs(*self._pairs_of_step(micro_batches))
        step = self.state.global_step + 1
        self._stop_unless_finite(columns.loss, columns.row, self._grad_norm)
        if step == 1:
            self._stop_unless_reference(columns)
        metrics = {
            "rewards/chosen": columns.reward_chosen,
            "rewards/rejected": columns.reward_rejected,
            "rewards/margins": columns.margin,
            "rewards/accuracies": (columns.reward_chosen > columns.reward_rejected).double(),
        }
        if self.detector is not None:
            judged = _SeenPairs(*(column[self._judged(columns.row)] for column in columns))
            metrics |= {"spa/flagged": judged.flagged, "spa/p_detect": judged.p_detect}
            tau = self.detector.tau()
            if tau is not None:
                self._metrics["train"]["spa/tau"].append(tau)
            self.detector.see(
                [
                    _record(int(row), step, p, margin, int(flag))
                    for row, p, margin, flag in zip(
                        *(part.tolist() for part in (judged.row, judged.p_detect, judged.margin, judged.flagged)),
                        strict=True,
                    )
                ]
            )
        for name, values in metrics.items():
            if len(values):  # a step of replayed pairs alone has none that are judged
                self._metrics["train"][name].append(values.mean().item())

    def _stop_unless_reference(self, pairs: _SeenPairs) -> None:
        """Before the first step the policy has not moved: larger margins than rounding makes name another reference.

        The pairs of all processes are looked at, since on one of them alone the reference may be wrong.

        Raises:
            StageError: they are larger.
        """
        if self._start is None:
            return
        size, noise = _root_mean_square(pairs.moved), self._start.noise
        if noise is None and self.logp_noise is not None:
            noise = self.beta * self.logp_noise * math.sqrt(2.0 * pairs.tokens.mean().item())  # of four log-probs
        if noise is None:
            noise = self.beta * self._tolerance * _root_mean_square(pairs.logps)
        if size > FAR_FROM_ZERO * noise:
            raise StageError(
                f"the margins before the first step are {size:.3g} (root mean square) "
                f"{'from those of the judge' if self._pair_loss.first_margins else 'and should be 0'}: rounding "
                f"explains {noise:.2g}",
                fix="the reference is not the policy that is trained: look at the stage that gave its log-probs, or, "
                "where it is a live model, at compute.executor",
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Keep the norm for `finish_step`, which is called next."""
        self._grad_norm = super()._get_grad_norm(model, grad_norm)
        return self._grad_norm


@contextmanager
def _no_model_of_trls_own() -> Iterator[None]:
    """Under FSDP, TRL would load a reference even where its log-probs are in the rows."""
    load = dpo_trainer.create_model_from_path
    dpo_trainer.create_model_from_path = lambda *args, **kwargs: None
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = load


class _StepEnd(TrainerCallback):  # type: ignore[misc]
    """Calls `finish_step` after all micro-batches of a step, before the weights change."""

    def __init__(self, finish_step: Callable[[], None]) -> None:
        self._finish_step = finish_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finish_step()
