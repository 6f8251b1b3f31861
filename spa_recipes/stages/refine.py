"""Self-refined DPO on judged pairs: makes pi_i from pi_{i-1}, with pi_{i-1} as the reference.

With lambda = 0 the reference's log-probs are those of the sampled tokens, and no reference model is loaded; in half
precision they are scored ones, and the detector differentiates the reference along the update. With lambda > 0 the
de-coupled detection needs the reference's whole distribution at every token, so the reference runs in training, too.
With LoRA that is the policy with its new adapter switched off; with QLoRA at any lambda.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from spa_recipes.algo.consistency import consistency
from spa_recipes.algo.noise import standard_error
from spa_recipes.algo.variants import mixed_reference
from spa_recipes.data.arrow import take
from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.data.stage_rows import JudgmentRow, TraceRow
from spa_recipes.data.tables import COMPLETIONS, LOGPS, log_ratios_choice, read_table, read_values
from spa_recipes.errors import DataError
from spa_recipes.models.dtype import dtype_name, torch_dtype
from spa_recipes.plan import MODEL
from spa_recipes.recipe.schema import Noise, RefineTraining
from spa_recipes.stages.all_answers import orders_of, sppo_targets, with_others
from spa_recipes.stages.common import TokenPair, mean, model_section, renderer_of, share, token_pair
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.token_credit import Both, credit_of
from spa_recipes.stages.training import add_reference_logps, stage_result, train_env
from spa_recipes.training.order import replayed_rows
from spa_recipes.training.run import PAIRS_TRACE, PairLoss, Refinement, Start, train_preference


def run(context: Context) -> Result:
    """Write `model/`; `pairs_trace.jsonl` beside its weights says what the detector saw of every pair."""
    settings = context.spec.settings
    model = model_section(context, "policy")
    judgments = read_rows(context.input("judgments"), JudgmentRow)
    lam = settings["lambda"]
    training = RefineTraining.model_validate(settings["training"])
    completions = read_table(context.input("completions"), COMPLETIONS)
    given = lam == 0 and not model.in_4bit  # the reference's log-probs
    reference_logps = None
    if given:
        reference_logps = mixed(judgments, _reference_logps(context, judgments, completions), training.reference_mix)
    weights: list[Both] = []
    if training.token_credit is not None:
        of_tokens = context.input("token_logps")
        credit = credit_of(
            training.token_credit, training.beta, judgments, completions, _places(completions), of_tokens
        )
        weights, reference_logps = credit.weights, credit.reference_logps if given else None
    judged = _judged(judgments, completions, reference_logps)
    targets: list[list[float]] = []
    if training.loss == "sppo":
        place = _places(completions)
        orders = orders_of(judgments, completions, place)
        judged = with_others(judged, judgments, orders, completions, place, reference_logps)
        targets = sppo_targets(judgments, orders, training.beta, win_shares=settings.get("win_shares", False))
    refinement = _refinement(settings, judgments)
    renderer = renderer_of(model)
    replayed = _replayed(context, renderer, training.seed_replay, len(judged), with_reference=given)
    first_margins = _first_margins(context, judged, training.beta)
    result = train_preference(
        model.model_name_or_path,
        datasets.Dataset(pa.concat_tables([judged, pa.Table.from_pylist(replayed, schema=judged.schema)])),
        training,
        train_env(context, model, renderer),
        reference_path=context.input("reference") if lam > 0 and not model.in_4bit else None,
        refinement=refinement,
        loss=replace(_loss(training, judgments), targets=targets, token_weights=weights),
        replayed=len(replayed),
        start=Start(first_margins or None),
    )
    outcome = stage_result(result)
    outcome.metrics.update(replayed_pairs=len(replayed), removed_ends=renderer.removed_ends)
    if context.rank == 0 and refinement is not None:
        trace = read_rows(context.draft / MODEL / PAIRS_TRACE, TraceRow)
        outcome.metrics.update(_audit(judgments, trace))
        if "log_ratios" in context.spec.inputs and refinement.detector != "judge":
            if result.detects_along_update:
                share = _error_of_derivatives(context)
            else:
                share = _share_of_rounding(trace, _first_margins(context, judged, training.beta))
            if share is not None:
                outcome.metrics["detector_noise"] = share
    return outcome


def _places(completions: pa.Table) -> dict[tuple[int, int], int]:
    """The row of each completion by its item and sample."""
    ids = [completions[name].to_pylist() for name in ("item", "sample")]
    return {key: i for i, key in enumerate(zip(*ids, strict=True))}


def _reference_logps(
    context: Context, judgments: Sequence[JudgmentRow], completions: pa.Table
) -> list[list[float | None]]:
    """For each judgment the log-probs of its answers under pi_{i-1}: scored, or those that the sampling kept."""
    if "reference_logps" not in context.spec.inputs:
        return [judgment["policy_logps"] for judgment in judgments]
    scored, place = read_values(context.input("reference_logps"), completions, LOGPS), _places(completions)
    return [[scored[place[j["item"], k]] for k in range(len(j["policy_logps"]))] for j in judgments]


def mixed(
    judgments: Sequence[JudgmentRow], previous_logps: Sequence[list[float | None]], kappa: float
) -> list[list[float | None]]:
    """For each judgment the log-probs of its answers under the mix of pi_{i-1} and pi_init, the judge's reference."""
    if not kappa:
        return [*previous_logps]
    return [
        [
            None if logp is None else mixed_reference(logp, log_ratio, kappa)
            for logp, log_ratio in zip(logps, _log_ratios(judgment), strict=True)
        ]
        for judgment, logps in zip(judgments, previous_logps, strict=True)
    ]


def _log_ratios(judgment: JudgmentRow) -> list[float]:
    """log pi_{i-1} - log pi_init of the answers: computed from both models together, or subtracted in float32.

    Raises:
        DataError: the judge kept neither.
    """
    if "log_ratios" in judgment:
        known = judgment["log_ratios"]
    else:
        both = zip(judgment["policy_logps"], judgment["reference_logps"], strict=True)
        known = [None if ours is None or theirs is None else ours - theirs for ours, theirs in both]
    found = [value for value in known if value is not None]
    if len(found) < len(known):
        raise DataError(
            "the judgments hold no log-probs of pi_init to mix into the reference",
            where="refine.reference_mix",
            fix="judge by implicit_reward with reference init",
        )
    return found


def _judged(
    judgments: Sequence[JudgmentRow], completions: pa.Table, reference_logps: Sequence[list[float | None]] | None
) -> pa.Table:
    """The judged pairs as a table of `TokenPair`; token ids are taken from the completions as they are."""
    place = _places(completions)
    chosen, rejected = (
        take(completions, [place[judgment["item"], judgment[side]] for judgment in judgments])
        for side in ("chosen", "rejected")
    )
    columns = {
        "prompt_ids": chosen["prompt_ids"],
        "chosen_ids": chosen["response_ids"],
        "rejected_ids": rejected["response_ids"],
    }
    if reference_logps is not None:
        both = [*zip(judgments, reference_logps, strict=True)]
        columns["ref_chosen_logps"] = pa.array([logps[j["chosen"]] for j, logps in both], pa.float64())
        columns["ref_rejected_logps"] = pa.array([logps[j["rejected"]] for j, logps in both], pa.float64())
    return pa.table(columns)


def _first_margins(context: Context, judged: pa.Table, beta: float) -> float:
    """What rounding does to the margins before the first step, which are 0 without it; 0 where it was not measured.

    Both sides are log-probs in the precision of the model, so the noise is that of four of them.
    """
    if "log_ratios" not in context.spec.inputs:
        return 0.0
    noise = log_ratios_choice(context.input("log_ratios"))["logp_noise"]
    tokens = sum(mean(pc.list_value_length(judged[name]).to_pylist()) for name in ("chosen_ids", "rejected_ids"))
    return beta * standard_error(noise, round(2 * tokens))


def _share_of_rounding(trace: Sequence[TraceRow], noise: float) -> float:
    """The noise of the detector's margins, which are differences of log-probs, over their spread.

    The spread is that of a normal distribution with the same quartiles: a few large margins are no help to the others.
    """
    margins = [math.log(p / (1.0 - p)) for row in trace if 0.0 < (p := row["p_detect"]) < 1.0]
    low, _, high = statistics.quantiles(margins, n=4) if len(margins) > 1 else (0.0, 0.0, 0.0)
    spread = (high - low) / 1.349
    return min(1.0, noise / spread) if spread else float(noise > 0)


def _error_of_derivatives(context: Context) -> float | None:
    """The error of margins from derivatives, as a share of them; None where it was not measured.

    It is that of the judge's margins, by the same pass in the same precision along the update before.
    """
    choice = log_ratios_choice(context.input("log_ratios"))
    dtype = dtype_name(torch_dtype(model_section(context, "policy").dtype))
    for measured in choice["measured"]:
        kind, precision, _ = measured["way"]
        if kind == "tangent" and precision == dtype and choice["margin"]:
            return min(1.0, float(measured["error"]) / float(choice["margin"]))
    return None


def _refinement(settings: dict[str, Any], judgments: Sequence[JudgmentRow]) -> Refinement | None:
    noise = Noise.model_validate(settings["noise"])
    if not noise.enabled:
        return None
    margins = [judgment["margin"] for judgment in judgments]
    return Refinement(noise.alpha, settings["lambda"], noise.threshold, noise.warmup_ratio, noise.detector, margins)


def _loss(training: RefineTraining, judgments: Sequence[JudgmentRow]) -> PairLoss:
    margins = [judgment["margin"] for judgment in judgments]
    starts = _starts(training, judgments)
    taus = [judgment["rank_agreement"] for judgment in judgments if "rank_agreement" in judgment]
    weight = consistency(taus) if taus else 1.0
    return PairLoss(training.loss, training.divergence, training.sft_weight, margins, starts, consistency=weight)


def _starts(training: RefineTraining, judgments: Sequence[JudgmentRow]) -> list[float]:
    """The margins before the first step: kappa times the judge's, without its length penalty and with our beta."""
    if not training.reference_mix:
        return []
    ratios = [(_log_ratios(judgment), judgment["chosen"], judgment["rejected"]) for judgment in judgments]
    return [training.beta * training.reference_mix * (known[w] - known[r]) for known, w, r in ratios]


def _replayed(
    context: Context, renderer: Renderer, share: float, judged: int, *, with_reference: bool
) -> list[TokenPair]:
    """Labels that were added, once at least, then seed pairs; repeated until they are the wanted share of all rows.

    Their reference is pi_{i-1}, as for the other rows; no answer to them was sampled, so they are scored here.
    """
    added, seed = (
        read_rows(context.input(name), PairRow) if name in context.spec.inputs else []
        for name in ("added_pairs", "seed_pairs")
    )
    pairs = [token_pair(renderer, pair) for pair in (*added, *seed)]
    if with_reference and pairs:
        add_reference_logps(context, pairs)
    return [pairs[k % len(pairs)] for k in range(replayed_rows(judged, share, len(added)))]


def _audit(judgments: Sequence[JudgmentRow], trace: Sequence[TraceRow]) -> dict[str, Any]:
    """Share and judge margin of flagged pairs; where the truth is known, how often flagged pairs were wrong."""
    flagged = {line["row"] for line in trace if line["flagged"]}
    metrics: dict[str, Any] = {"flagged_pairs": len(flagged), "flagged_of_all": len(flagged) / len(judgments)}
    if flagged:
        metrics["flagged_judge_margin"] = sum(judgments[i]["margin"] for i in flagged) / len(flagged)
    wrong = {
        i: gold[judgment["chosen"]] < gold[judgment["rejected"]]
        for i, judgment in enumerate(judgments)
        if (gold := judgment["gold"]) and gold[judgment["chosen"]] != gold[judgment["rejected"]]
    }
    known = [wrong[i] for i in flagged if i in wrong]
    if wrong:
        metrics["wrong_base_rate"] = share(list(wrong.values()))
        metrics["flag_precision"] = share(known) if known else None
        metrics["flag_recall"] = sum(known) / sum(wrong.values()) if any(wrong.values()) else None
    return metrics
