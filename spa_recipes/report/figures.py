"""The figures of a run: for each one its name in manifests, what it is called, how it is written and where it is shown.

A new figure is one entry of `FIGURES`, and a line in the stage that measures it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spa_recipes.algo.interval import wilson_interval
from spa_recipes.state.stagedir import Manifest

COUNT, LARGE_COUNT, PERCENT = "{}", "{:,}", "{:.1%}"
SHORT, TENTHS, HUNDREDTHS, WHOLE = "{:.3g}", "{:.1f}", "{:.2f}", "{:.0f}"

REFINED = ("refine", "peer")
TRAINED = ("sft", "dpo", "member", "reward_model", *REFINED, "control")
SAVED = (*TRAINED, "extrapolate")
ANSWERED = ("generate", "evaluate", "answers")
ASKED = ("verdicts", "endpoint_verdicts")


class Shown(NamedTuple):
    """How a figure is shown in one place.

    Attributes:
        label: what people call it there.
        pattern: how the number is written, as for `str.format`.
        place: figures stand by rising places; those of the same place stand in the order of `FIGURES`.
    """

    label: str
    pattern: str
    place: int = 0


class Figure(NamedTuple):
    """A key figure of a stage.

    Attributes:
        name: its name in the metrics of a manifest.
        kinds: the stage kinds that measure it.
        line: in the one-line account of a stage: progress, summary and `spa status`.
        silent_at_zero: the line leaves it out where it is 0.
        iteration: in the account of an iteration: report and card.
        column: in the table of policies: report, card and `spa compare`. A policy has the figure of its own evaluation;
            what the stages of the iterations measure is averaged over their rows.
        key: name of the column in `spa compare --json`; the figure's name if empty.
        is_win_rate: a share of prompts on which a policy won; its 95 % interval stands behind it.
        of_a_coin: what stands in the place of the number where it is that of a coin, one half or less; empty: nothing.
    """

    name: str
    kinds: tuple[str, ...]
    line: Shown | None = None
    silent_at_zero: bool = False
    iteration: Shown | None = None
    column: Shown | None = None
    key: str = ""
    is_win_rate: bool = False
    of_a_coin: str = ""


def _dropped(name: str, words: str, iteration: str) -> Figure:
    """Pairs that a judge stage left out for one reason."""
    shown = Shown(iteration, COUNT, place=1)
    return Figure(name, ("judge",), Shown(words, COUNT), silent_at_zero=True, iteration=shown)


FIGURES: tuple[Figure, ...] = (
    # What was read
    Figure("pairs", ("data",), Shown("pairs", COUNT)),
    Figure("seed", ("data",), Shown("seed labels", COUNT)),
    Figure("heldout", ("data",), Shown("held out", COUNT)),
    Figure(
        "skipped",
        ("data", "prompts", "sft", "candidates", "answers"),
        Shown("bad rows skipped", COUNT),
        silent_at_zero=True,
    ),
    Figure(
        "removed_ends",
        (*TRAINED, "candidates", "evaluate"),
        Shown("answers that brought an end of turn, which was removed", COUNT),
        silent_at_zero=True,
    ),
    Figure("skipped_prompts", ("data",), Shown("bad rows of the prompts skipped", COUNT), silent_at_zero=True),
    Figure("repeated_pairs", ("data",), Shown("pairs that repeat another", COUNT), silent_at_zero=True),
    Figure("conflicting_pairs", ("data",), Shown("pairs that contradict another", COUNT), silent_at_zero=True),
    Figure("most_frequent_answer", ("data",), Shown("rows with one and the same answer", COUNT), silent_at_zero=True),
    Figure("near_equal_prompts", ("data",), Shown("prompts nearly of another part", COUNT), silent_at_zero=True),
    Figure("added", ("added",), Shown("labels added", COUNT)),
    Figure(
        "dropped_rows",
        ("data", "added"),
        Shown("left out of their part (skipped, or with a prompt of another part)", COUNT),
        silent_at_zero=True,
    ),
    # What was sampled
    Figure(
        "mean_tokens",
        ANSWERED,
        Shown("tokens/answer", SHORT),
        column=Shown("tokens", HUNDREDTHS, place=3),
        key="tokens",
    ),
    Figure("length_cut", ANSWERED, Shown("cut off", PERCENT)),
    Figure("thinking", ("generate", "evaluate"), Shown("with a think block", PERCENT), silent_at_zero=True),
    Figure("identical", ("generate",), Shown("identical", PERCENT), silent_at_zero=True),
    Figure("same_as_init", ("evaluate",), Shown("equal to pi_init's", PERCENT), silent_at_zero=True),
    Figure("empty", ("generate", "answers"), Shown("empty", PERCENT), silent_at_zero=True),
    Figure("logp_difference_max", ("generate",), Shown("kept log-probs off by at most", SHORT)),
    # What a language model was asked
    Figure("questions", ASKED, Shown("questions", COUNT), iteration=Shown("questions to the judge", LARGE_COUNT)),
    Figure(
        "unparsed",
        ASKED,
        Shown("without a verdict", PERCENT),
        silent_at_zero=True,
        iteration=Shown("questions without a verdict", PERCENT, place=2),
    ),
    Figure("too_long", ASKED, Shown("too long", COUNT), silent_at_zero=True),
    Figure(
        "verdict_ties",
        ASKED,
        Shown("verdict a tie", PERCENT),
        silent_at_zero=True,
        iteration=Shown("verdicts that are ties", PERCENT, place=1),
    ),
    Figure(
        "same_score",
        ASKED,
        Shown("prompts with one score", PERCENT),
        iteration=Shown("prompts whose answers all have one score", PERCENT),
    ),
    Figure(
        "order_disagreement",
        ASKED,
        Shown("orders disagree", PERCENT),
        iteration=Shown("pairs whose two orders disagree", PERCENT),
    ),
    Figure(
        "first_place",
        ASKED,
        Shown("for the first place", PERCENT),
        iteration=Shown("verdicts for the first place", PERCENT),
    ),
    # How precise the log-ratios are
    Figure(
        "median_margin",
        ("log_ratios",),
        Shown("median margin", SHORT),
        iteration=Shown("median margin of the measured pairs, in nats", SHORT),
    ),
    Figure(
        "method_error",
        ("log_ratios",),
        Shown("median error", SHORT),
        iteration=Shown("median error of these margins, in nats", SHORT),
    ),
    Figure(
        "kept_mismatch",
        ("log_ratios",),
        Shown("kept log-probs off by", SHORT),
        iteration=Shown("kept log-probs off by, in nats", SHORT),
    ),
    Figure(
        "quantization_mismatch",
        ("log_ratios",),
        Shown("log-probs of merged and 4-bit policy differ by", SHORT),
        iteration=Shown("log-probs of the merged and the trained (4-bit) policy differ by, in nats", SHORT),
    ),
    # What was labelled
    Figure(
        "accuracy_vs_gold",
        ("judge",),
        Shown("judge accuracy", PERCENT),
        iteration=Shown("judge accuracy by the gold reward", PERCENT),
        column=Shown("judge accuracy", PERCENT, place=4),
        key="judge_accuracy",
    ),
    Figure(
        "reliability",
        ("reliability",),
        Shown("judge reliability", PERCENT),
        iteration=Shown("judge reliability by the agreement of members, without gold", PERCENT),
        of_a_coin="no better than chance",
    ),
    Figure(
        "member_agreement",
        ("reliability",),
        Shown("members agree", PERCENT),
        iteration=Shown("pairs on which members agree", PERCENT),
    ),
    Figure("heldout_agreement", ("reliability",), Shown("on held-out pairs", PERCENT)),
    Figure("member_accuracy_vs_gold", ("reliability",), Shown("member accuracy", PERCENT)),
    Figure(
        "agreement_with_labels",
        ("judge",),
        Shown("agreement", PERCENT),
        iteration=Shown("agreement with labels", PERCENT),
    ),
    Figure(
        "consistency",
        ("judge",),
        Shown("consistency", HUNDREDTHS),
        iteration=Shown("consistency: the weight of a label", HUNDREDTHS),
    ),
    Figure("mean_margin", ("judge",), Shown("margin", SHORT), iteration=Shown("mean margin", SHORT)),
    Figure(
        "standard_error",
        ("judge",),
        Shown("standard error", SHORT),
        iteration=Shown("standard error of a margin", SHORT),
    ),
    Figure(
        "error_check",
        ("judge",),
        Shown("errors of other pairs over the estimated ones", HUNDREDTHS),
        iteration=Shown("errors of other pairs over the estimated ones", HUNDREDTHS),
    ),
    Figure(
        "labels_in_noise",
        ("judge",),
        Shown("within two of it", PERCENT),
        iteration=Shown("margins within two standard errors of 0", PERCENT),
    ),
    Figure(
        "labels_by_noise",
        ("judge",),
        Shown("labels by rounding", PERCENT),
        iteration=Shown("labels that rounding decides", PERCENT),
    ),
    Figure("chosen_tokens", ("judge",), iteration=Shown("tokens, chosen", TENTHS)),
    Figure("rejected_tokens", ("judge",), iteration=Shown("tokens, rejected", TENTHS)),
    Figure("length_gap", ("judge",), Shown("chosen longer by", SHORT)),
    Figure("length_gap_characters", ("judge",), Shown("characters that chosen ones are longer by", SHORT)),
    Figure("length_penalty", ("judge",), Shown("length penalty", SHORT), silent_at_zero=True),
    _dropped("dropped_identical", "dropped as identical", "dropped: the same answers"),
    _dropped("dropped_empty", "dropped as empty", "dropped: empty answers"),
    _dropped("dropped_uncertain", "dropped as uncertain", "dropped: margins in the noise"),
    _dropped("dropped_small_margin", "dropped for small margins", "dropped: small margins (judge.keep)"),
    _dropped("dropped_by_peer", "dropped by the peer", "dropped: by the peer (judge.peers)"),
    Figure(
        "peer_agreement",
        ("judge",),
        Shown("the peer agrees", PERCENT),
        iteration=Shown("labels that the peer would give, too", PERCENT),
    ),
    Figure(
        "dropped_accuracy_vs_gold",
        ("judge",),
        Shown("accuracy of dropped labels", PERCENT),
        iteration=Shown("accuracy of the labels that the peer dropped, by the gold reward", PERCENT),
    ),
    Figure("ties", ("judge",), Shown("ties", COUNT), silent_at_zero=True, iteration=Shown("ties", COUNT)),
    # What was trained
    Figure("train_loss", TRAINED, Shown("loss", SHORT)),
    Figure(
        "update_kept",
        SAVED,
        Shown("update kept", PERCENT),
        iteration=Shown("update kept by the saved model", PERCENT, place=2),
    ),
    Figure(
        "update_visible",
        SAVED,
        Shown("by rounding to nearest", PERCENT),
        iteration=Shown("update that rounding to nearest would keep", PERCENT, place=2),
    ),
    Figure(
        "rounding_to_update",
        SAVED,
        Shown("rounding/update", SHORT),
        iteration=Shown("length of the rounding, in lengths of the update", SHORT, place=2),
    ),
    Figure(
        "replayed_pairs",
        REFINED,
        Shown("replayed", COUNT),
        silent_at_zero=True,
        iteration=Shown("replayed seed pairs", COUNT, place=1),
    ),
    Figure("flagged_pairs", REFINED, iteration=Shown("flagged pairs", COUNT)),
    Figure("flagged_of_all", REFINED, Shown("flagged", PERCENT), iteration=Shown("flagged of all", PERCENT)),
    Figure(
        "flagged_judge_margin",
        REFINED,
        Shown("flagged margin", SHORT),
        iteration=Shown("judge's margin of flagged pairs", SHORT),
    ),
    Figure(
        "flag_precision",
        REFINED,
        Shown("flagged wrong", PERCENT),
        iteration=Shown("wrong among flagged", PERCENT),
    ),
    Figure("flag_recall", REFINED, Shown("of all wrong ones flagged", PERCENT)),
    Figure(
        "detector_noise",
        REFINED,
        Shown("rounding in p~", PERCENT),
        iteration=Shown("rounding in the spread of the detector's margins", PERCENT),
    ),
    Figure("wrong_base_rate", REFINED, Shown("wrong", PERCENT), iteration=Shown("wrong among all", PERCENT)),
    # What a policy is worth
    Figure(
        "mean_reward",
        ("reward", "evaluate"),
        Shown("reward", SHORT),
        column=Shown("reward", HUNDREDTHS, place=2),
        key="reward",
    ),
    Figure(
        "win_rate_vs_init",
        ("evaluate",),
        Shown("win rate", PERCENT),
        column=Shown("win rate (95 %)", PERCENT, place=1),
        key="win_rate",
        is_win_rate=True,
    ),
    Figure(
        "length_controlled_win_rate_vs_init",
        ("evaluate",),
        Shown("at equal length", PERCENT),
        column=Shown("at equal length", PERCENT, place=1),
        key="length_controlled",
        is_win_rate=True,
    ),
    Figure(
        "heldout_accuracy",
        ("evaluate", "heldout"),
        Shown("label accuracy", PERCENT),
        column=Shown("label accuracy", PERCENT, place=5),
        key="label_accuracy",
    ),
    Figure("heldout_in_noise", ("evaluate",), Shown("margins in the noise", PERCENT), silent_at_zero=True),
    # What became of the answers besides
    Figure(
        "kl_to_init",
        ("evaluate",),
        Shown("KL to pi_init", SHORT),
        column=Shown("KL to pi_init", HUNDREDTHS, place=3),
        key="kl_to_init",
    ),
    Figure(
        "sampled_kl_to_init", ("judge",), iteration=Shown("KL of the judge to pi_init, nats per answer", HUNDREDTHS)
    ),
    Figure(
        "refusals",
        ("evaluate",),
        Shown("refusals", PERCENT),
        silent_at_zero=True,
        column=Shown("refusals", PERCENT, place=3),
        key="refusals",
    ),
    # What SPA is worth beside a control
    Figure("spa_win_rate", ("evaluate",), Shown("SPA's win rate against it", PERCENT), is_win_rate=True),
    Figure("spa_gain", ("evaluate",), Shown("SPA wins more often against pi_init by", PERCENT)),
    # What the field's benchmarks say
    Figure("alpaca_win_rate", ("alpaca_score",), Shown("AlpacaEval win rate", PERCENT)),
    Figure("alpaca_standard_error", ("alpaca_score",), Shown("standard error", PERCENT)),
    Figure("alpaca_length_controlled", ("alpaca_score",), Shown("length-controlled", PERCENT)),
    Figure("mt_bench_score", ("mt_bench_grades",), Shown("MT-Bench", SHORT)),
    Figure("mt_bench_turn_1", ("mt_bench_grades",), Shown("turn 1", SHORT)),
    Figure("mt_bench_turn_2", ("mt_bench_grades",), Shown("turn 2", SHORT)),
    Figure("unrated", ("mt_bench_grades",), Shown("without a rating", COUNT), silent_at_zero=True),
    Figure("pairwise_win_rate", ("win_rate",), Shown("win rate", PERCENT)),
    Figure("pairwise_low", ("win_rate",), Shown("from", PERCENT)),
    Figure("pairwise_high", ("win_rate",), Shown("to", PERCENT)),
    Figure("tasks", ("lm_eval", "lm_eval_scores"), Shown("tasks", COUNT)),
    # What went differently than planned
    Figure("requests_cut", ("lm_eval",), Shown("requests cut", COUNT), silent_at_zero=True),
    Figure("prompts_cut", ("answers",), Shown("prompts cut", COUNT), silent_at_zero=True),
    Figure("without_preference", ("alpaca_annotations",), Shown("without a preference", COUNT), silent_at_zero=True),
    Figure("resumed_from_step", TRAINED, Shown("went on from step", WHOLE), silent_at_zero=True),
)
"""Every figure that people are shown, in the order of the one-line account."""


def phrase(manifest: Manifest, name: str) -> str:
    """A figure of a stage with its label, as in the one-line account."""
    figure = _figure(name)
    assert figure.line is not None
    return f"{figure.line.label} {written(manifest, name)}"


def written(manifest: Manifest, name: str) -> str:
    """A figure of a stage without its label, as in the one-line account."""
    figure = _figure(name)
    assert figure.line is not None
    return _written(figure, figure.line, manifest)


def win_rate(manifest: Manifest, name: str) -> str:
    """A win rate of a stage with its interval, such as `74.0% (68.2% to 79.1%)`."""
    return _written(_figure(name), Shown("", PERCENT), manifest)


def with_interval(share: float, low: float, high: float) -> str:
    """A win rate with its interval."""
    return f"{PERCENT.format(share)} ({PERCENT.format(low)} to {PERCENT.format(high)})"


def interval(manifest: Manifest, name: str) -> tuple[float, float]:
    """The 95 % interval of a win rate. Prompts are independent; several answers to one prompt are not.

    A stage that knows more of a rate than its prompts writes the interval itself. Earlier versions did not for the rate
    at equal length; theirs is a little too narrow.

    Raises:
        DataError: the manifest was altered.
    """
    if f"{name}_low" in manifest.metrics:
        return manifest.number(f"{name}_low"), manifest.number(f"{name}_high")
    prompts = manifest.number("prompts") if "prompts" in manifest.metrics else manifest.rows
    return wilson_interval(min(1.0, max(0.0, manifest.number(name))), max(1, int(prompts)))


def _figure(name: str) -> Figure:
    return next(figure for figure in FIGURES if figure.name == name)


def _written(figure: Figure, shown: Shown, manifest: Manifest) -> str:
    value = manifest.number(figure.name)
    if figure.of_a_coin and value <= 0.5:
        return figure.of_a_coin
    return with_interval(value, *interval(manifest, figure.name)) if figure.is_win_rate else shown.pattern.format(value)


def line(manifest: Manifest) -> str:
    """The key figures of a stage on one line."""
    words = {"form": "read as", "method": "by"}
    parts = [f"{word} {manifest.metrics[name]}" for name, word in words.items() if name in manifest.metrics]
    for figure in FIGURES:
        if figure.line is None or manifest.kind not in figure.kinds or manifest.metrics.get(figure.name) is None:
            continue
        value = manifest.number(figure.name)
        if value or not figure.silent_at_zero:
            parts.append(phrase(manifest, figure.name))
    return ", ".join(parts)


def iterations(found: Mapping[str, Manifest]) -> dict[int, dict[str, str]]:
    """The figures of every iteration that has labelled something, by label: of its judge first, then of the others."""
    numbers = [int(name.removeprefix("judge-")) for name in found if is_numbered(name, "judge")]
    return {i: _facts([stage for name, stage in found.items() if name.rpartition("-")[2] == str(i)]) for i in numbers}


def _facts(stages: Sequence[Manifest]) -> dict[str, str]:
    """Figures of the stages of one iteration."""
    facts = {}
    for manifest in sorted(stages, key=lambda stage: stage.kind != "judge"):
        if manifest.kind == "log_ratios":
            facts["log-ratios"] = str(manifest.metrics["method"])
        shown = [
            (figure.iteration, _written(figure, figure.iteration, manifest))
            for figure in FIGURES
            if figure.iteration and manifest.kind in figure.kinds and manifest.metrics.get(figure.name) is not None
        ]
        for (label, _, _), value in sorted(shown, key=lambda one: one[0].place):
            facts[label] = value
    return facts


def columns() -> dict[str, tuple[Figure, Shown]]:
    """The figures in the table of policies, by the name of their column, in the table's order."""
    shown = [(figure, figure.column) for figure in FIGURES if figure.column is not None]
    return {figure.key or figure.name: (figure, column) for figure, column in sorted(shown, key=lambda c: c[1].place)}


def is_numbered(stage: str, kind: str) -> bool:
    """Whether a stage's id is its kind and the number of an iteration."""
    return stage.startswith(f"{kind}-") and stage.removeprefix(f"{kind}-").isdigit()
