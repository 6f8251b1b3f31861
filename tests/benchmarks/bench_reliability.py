"""How good an estimate of a judge's accuracy is the agreement of two members? Against the gold reward, in the sandbox.

    python -m tests.benchmarks.bench_reliability --out /tmp/reliability     # 14 runs; about 12 min on one idle core

Development runs of different quality, an over-trained seed policy among them, each with two members that learned from
disjoint halves of the seed labels. In every iteration of each run: the share of the policy's own pairs on which the
members agree, what that says by each way to read it, and how often judge and members are right by the gold reward.
What is done is not done again: runs take over finished stages, and `reliability.json` keeps the figures of each run.
Writes `reliability.json`, `reliability.md` and `reliability.svg` in `--out`.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spa_recipes import api
from spa_recipes.algo.members import accuracy_of_independent, accuracy_on_the_line, agreement
from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.plan import MODEL, Stage
from spa_recipes.recipe.schema import ForkExecutor, Model, Recipe
from spa_recipes.run.executors import Executors
from spa_recipes.stages.common import renderer_of, token_pair
from spa_recipes.state.stagedir import Manifest

BASE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SEEDS = (101, 102)
PROMPTS = [600, 400]

Figures = dict[str, Any]
"""One iteration of one run."""

RUNS: dict[str, list[str]] = {
    "quickstart": [],
    "0.8 % of the labels": ["data.seed_labels=72"],
    "10 % of the labels": ["data.seed_labels=900"],
    "seed lr 2e-5": ["seed_training.learning_rate=2e-5"],
    "seed lr 1e-4, 10 epochs": ["seed_training.num_train_epochs=10"],
    "over-trained: seed lr 1e-3, 2 epochs": ["seed_training.learning_rate=1e-3", "seed_training.num_train_epochs=2"],
    "refine lr 2e-4": ["refine.learning_rate=2e-4"],
}
"""What each run changes in the quickstart."""


class Quiet:
    """A reporter that keeps silent."""

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """See `Reporter`."""

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """See `Reporter`."""

    def noticed(self, stage: Stage, text: str) -> None:
        """See `Reporter`."""

    def started(self, stage: Stage, attempt: int) -> None:
        """See `Reporter`."""

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """See `Reporter`."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""


def overrides(name: str, seed: int, runs_dir: Path) -> list[str]:
    """The changes of a run: fewer prompts than in the quickstart, two members, and no evaluation of policies."""
    return [
        f"name=s{seed}-{list(RUNS).index(name)}",
        f"seed={seed}",
        f"data.shuffle_seed={seed}",
        f"data.pairs.seed={seed}",
        f"sft.data.seed={seed}",
        f"data.prompts_per_iteration={PROMPTS}",
        "seed_training.members={count: 2}",
        "evaluation.enabled=false",
        f"storage.runs_dir={json.dumps(str(runs_dir))}",
        "compute.cpu_threads=1",
        *RUNS[name],
    ]


def measured(name: str, seed: int, out: Path, executors: Executors) -> list[Figures]:
    """Run it as far as its last labels, and give the figures of its iterations."""
    prepared = api.prepare(BASE, overrides=overrides(name, seed, out / "runs"))
    assert isinstance(prepared.plan.recipe, Recipe)
    section = prepared.plan.recipe.model
    manifests: dict[str, Manifest] = {}
    for i in range(1, len(PROMPTS) + 1):
        manifests |= api.run_recipe(
            prepared, Quiet(), until=f"reliability-{i}", accept=True, executors=executors
        ).manifests
    output = {stage.id: prepared.run.stage_dir(stage, prepared.plan).output for stage in prepared.plan.stages}
    pairs = read_rows(output["data"] / "heldout.jsonl", PairRow)
    init = _margins(output["sft"] / MODEL, section, pairs)

    def against_init(stage: str) -> list[float]:
        own = _margins(output[stage] / MODEL, section, pairs)
        return [ours - theirs for ours, theirs in zip(own, init, strict=True)]

    members = [against_init(f"seed-member{m}") for m in (1, 2)]
    return [
        {
            "run": name,
            "seed": seed,
            "iteration": i,
            "agreement": manifests[f"reliability-{i}"].metrics["member_agreement"],
            "members": manifests[f"reliability-{i}"].metrics["member_accuracy_vs_gold"],
            "judge": manifests[f"judge-{i}"].metrics["accuracy_vs_gold"],
            "heldout": _right(against_init("seed" if i == 1 else f"refine-{i - 1}")),
            "heldout_agreement": agreement(members),
            "heldout_members": [_right(member) for member in members],
        }
        for i in range(1, len(PROMPTS) + 1)
    ]


def _margins(folder: Path, section: Model, pairs: Sequence[PairRow]) -> list[float]:
    """log pi(y_w|x) - log pi(y_l|x) of labelled pairs under a model of a run."""
    model = section.model_copy(update={"model_name_or_path": str(folder)})
    renderer = renderer_of(model)
    rows = [token_pair(renderer, pair) for pair in pairs]
    items = [Scored(row["prompt_ids"], ids) for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]
    logps = sequence_logps(for_inference(load_causal_lm, model), items, tokens_per_batch=16384)
    return [chosen - rejected for chosen, rejected in zip(logps[::2], logps[1::2], strict=True)]


def _right(margins: Sequence[float]) -> float:
    return statistics.fmean(0.5 if margin == 0 else float(margin > 0) for margin in margins)


def estimates(line: Figures) -> tuple[float, float]:
    """What the agreement says of an iteration: with errors taken as independent, and by that on held-out pairs."""
    there = line["heldout_agreement"], statistics.fmean(line["heldout_members"])
    return accuracy_of_independent(line["agreement"]), accuracy_on_the_line(line["agreement"], *there)


def markdown(found: Sequence[Figures]) -> str:
    """The table for people, and how far each estimate is from the truth on average."""
    lines = [
        "| run | seed | pi | held-out accuracy | members agree | if independent | by held-out pairs | judge by gold "
        "| members by gold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        plain, corrected = estimates(line)
        said = f"{corrected:.0%}" if corrected > 0.5 else "chance"
        lines.append(
            f"| {line['run']} | {line['seed']} | {line['iteration'] - 1} | {line['heldout']:.0%} | "
            f"{line['agreement']:.0%} | {plain:.0%} | {said} | {line['judge']:.0%} | {line['members']:.0%} |"
        )
    truths = {name: [line[name] for line in found] for name in ("members", "judge")}
    for name, values in {
        "held-out accuracy": [line["heldout"] for line in found],
        "if independent": [estimates(line)[0] for line in found],
        "by held-out pairs": [estimates(line)[1] for line in found],
    }.items():
        for who, truth in truths.items():
            gaps = [abs(value - gold) for value, gold in zip(values, truth, strict=True)]
            linear = statistics.correlation(values, truth) if len({*values}) > 1 else 0.0
            lines.append(f"\n{name}: {statistics.fmean(gaps):.1%} from {who} by gold, correlation {linear:+.2f}")
    return "\n".join(lines) + "\n"


def figure(found: Sequence[Figures]) -> str:
    """Estimate over truth as SVG: hollow with errors taken as independent, filled less the shared ones."""
    side, low, high = 360, 0.45, 0.9

    def place(value: float) -> float:
        return 40 + (side - 60) * (value - low) / (high - low)

    def dot(truth: float, estimate: float, style: str) -> str:
        return f'<circle cx="{place(truth):.1f}" cy="{side - place(estimate):.1f}" r="4" {style}/>'

    grid = [0.5, 0.6, 0.7, 0.8]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side + 10}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{place(low)} {side - place(low)}L{place(high)} {side - place(high)}" stroke="#999"/>',
        *(f'<text x="{place(v) - 10}" y="{side - 22}">{v:.0%}</text>' for v in grid),
        *(f'<text x="8" y="{side - place(v) + 4}">{v:.0%}</text>' for v in grid),
        f'<text x="90" y="{side - 4}">judge right on the policy\'s own pairs, by gold</text>',
        '<text x="8" y="14">estimate: hollow, errors independent; filled, by held-out pairs</text>',
    ]
    for line in found:
        plain, corrected = estimates(line)
        parts.append(dot(line["judge"], plain, 'fill="none" stroke="#c50"'))
        parts.append(dot(line["judge"], corrected, 'fill="#06c"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Run, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", choices=[*RUNS], default=list(RUNS), metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    record = asked.out / "reliability.json"
    found: list[Figures] = json.loads(record.read_text()) if record.exists() else []
    asked.out.mkdir(parents=True, exist_ok=True)
    executors = Executors(ForkExecutor(type="fork"))
    try:
        for seed in asked.seeds:
            for name in asked.only:
                if not any((line["run"], line["seed"]) == (name, seed) for line in found):
                    found += measured(name, seed, asked.out, executors)
                    record.write_text(json.dumps(found, indent=1) + "\n")
                    print(f"seed {seed}: {name}", flush=True)
    finally:
        executors.close()
    (asked.out / "reliability.md").write_text(markdown(found))
    (asked.out / "reliability.svg").write_text(figure(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
