"""What judges better after the same few labels: the implicit reward of a DPO policy, or a reward model? On real labels.

    python -m tests.benchmarks.real_judge --model FOLDER --data pairs.jsonl --work FOLDER
        [--sizes 50 100 200 400] [--seeds 1 2 3] [--heldout 150] [--max-length 128]

`--data`: JSON lines with `prompt`, `chosen` and `rejected` as strings. For every seed the prompts are split: of some of
them one pair each is held out, the pairs of the others are seed labels, and a smaller number of these is part of each
larger one. On the seed labels the seed stage of a run trains pi_0 from the model by DPO, and the reward-model stage of
another run trains a reward model, from the same model. `spa judge` then labels the held-out pairs by each. "Longer
wins" prefers the answer with more characters.

Accuracy is the share of held-out pairs where the judge prefers what the data prefers. The length-balanced part of the
held-out pairs has as many pairs whose longer answer is preferred as others, with ratios of lengths as near as there
are: a judge that looks at lengths alone is right on half of it. In the part that is read alike the two answers of a
pair have as many tokens up to `--max-length`, mostly since both are cut off there: what is read has no lengths to judge
by.

What is done is found again in `--work` by model, data and settings: a command that was stopped goes on. Small sizes
come first. `results.md` in that folder has the tables of what is there. The version of the package is not looked at:
after a change of how it trains or judges, take another folder.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from spa_recipes import api
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.judge_job import JudgeRequest, judge_pairs
from spa_recipes.plan import MODEL, Stage
from spa_recipes.recipe.schema import ForkExecutor
from spa_recipes.run.executors import Executors
from spa_recipes.state.digests import file_digest
from spa_recipes.state.stagedir import Manifest
from tests.benchmarks.kit import where
from tests.benchmarks.precision.kept import Kept, NotMadeError
from tests.kit.quiet import Quiet

Pair = dict[str, str]
"""`prompt`, `chosen` and `rejected`."""

SIDES = ("chosen", "rejected")
IMPLICIT, REWARD, LONGER = "implicit reward", "reward model", "longer wins"
TRAINED = {IMPLICIT: "seed", REWARD: "reward-model"}
"""Stage of a run that trains what a judge reads."""

SCORED = {"log-ratios": IMPLICIT, "rewards": REWARD}
"""Stage of `spa judge` that reads the answers."""


class Outcome(NamedTuple):
    """What a judge says of the held-out pairs of a seed: 1 where it is right, 0 where it is wrong, 0.5 at a tie.

    Attributes:
        seconds: of judging a pair, loading of models and measuring of precision included; 0 for lengths.
    """

    right: list[float]
    seconds: float


class Told(Quiet):
    """Prints a line for each stage that is done, and keeps the seconds of the last one of each name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
        self.seconds[stage.id] = manifest.seconds
        print(f"    {stage.id}: {manifest.seconds:.0f} s", flush=True)


def usable(rows: Sequence[Pair]) -> list[Pair]:
    """Pairs without an answer that is given to several prompts: such an answer answers none of them."""
    prompts_of: dict[str, set[str]] = {}
    for row in rows:
        for side in SIDES:
            prompts_of.setdefault(row[side], set()).add(row["prompt"])
    return [
        {name: row[name] for name in ("prompt", *SIDES)}
        for row in rows
        if all(len(prompts_of[row[side]]) == 1 for side in SIDES)
    ]


def split(rows: Sequence[Pair], heldout: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from, and held-out ones, one for each of so many prompts; both are shuffled by the seed.

    The other pairs of held-out prompts are in neither part: pairs of a prompt are no independent measurements.
    """
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    prompts = rng.sample(sorted({row["prompt"] for row in rows}), heldout)
    kept = [next(row for row in rows if row["prompt"] == prompt) for prompt in prompts]
    return [row for row in rows if row["prompt"] not in prompts], kept


def length_ratio(pair: Pair) -> float:
    """The logarithm of the lengths' ratio, in characters; positive where the longer answer is preferred."""
    return math.log(max(1, len(pair["chosen"]))) - math.log(max(1, len(pair["rejected"])))


def longer_wins(pair: Pair) -> float:
    """1 where the longer answer is preferred, 0 where the shorter one is, 0.5 where both are as long."""
    return 0.5 if (ratio := length_ratio(pair)) == 0 else float(ratio > 0)


def balanced(pairs: Sequence[Pair]) -> list[int]:
    """Places of the length-balanced part: as many pairs whose longer answer is preferred as others, alike in ratios.

    Each pair of the rarer kind takes the nearest pair of the other kind that is left; the largest ratios choose first.
    """
    ratios = [length_ratio(pair) for pair in pairs]
    longer = [i for i, ratio in enumerate(ratios) if ratio > 0]
    shorter = [i for i, ratio in enumerate(ratios) if ratio < 0]
    rare, left = sorted((shorter, longer), key=len)
    found: list[int] = []
    for i in sorted(rare, key=lambda i: (-abs(ratios[i]), i)):
        nearest = min(left, key=lambda j: (abs(abs(ratios[j]) - abs(ratios[i])), j))
        left = [j for j in left if j != nearest]
        found += [i, nearest]
    return sorted(found)


def read_alike(pairs: Sequence[Pair], renderer: Renderer) -> list[int]:
    """Places of the pairs whose answers have as many tokens, as far as they are read."""
    alike = []
    for i, pair in enumerate(pairs):
        given = renderer.render_given([{"role": "user", "content": pair["prompt"]}], [pair[side] for side in SIDES])
        if len({len(answer.ids) for answer in given.answers}) == 1:
            alike.append(i)
    return alike


def rightness(pairs: Sequence[Pair], labelled: Sequence[dict[str, Any]]) -> list[float]:
    """Of each pair whether the row that `spa judge` wrote of it prefers the same answer; half right at a margin of 0.

    Raises:
        ValueError: the rows are not those of the pairs.
    """
    right = []
    for pair, row in zip(pairs, labelled, strict=True):
        chosen, rejected = (row[side][0]["content"] for side in SIDES)
        if {chosen, rejected} != {pair[side] for side in SIDES} or row["prompt"][-1]["content"] != pair["prompt"]:
            raise ValueError(f"a row of another pair: {row['prompt'][-1]['content'][:60]!r}")
        right.append(0.5 if row["margin"] == 0 else float(chosen == pair["chosen"]))
    return right


class World:
    """The rows, the settings, and what was done with them.

    `parts` has for each seed the places of all its held-out pairs, of the length-balanced ones and of those read alike.

    Args:
        options: those of the command.
        executors: start the stages; None only looks at what is there.
    """

    def __init__(self, options: argparse.Namespace, executors: Executors | None) -> None:
        self.options, self._executors = options, executors
        self.kept = Kept(options.work, where(options.threads), only_look=executors is None)
        self.rows = usable([json.loads(line) for line in options.data.read_text().splitlines()])
        lengths = {"max_prompt_length": options.max_prompt_length, "max_length": options.max_length}
        renderer = Renderer(load_tokenizer(options.model), **lengths)
        self.parts: dict[int, list[list[int]]] = {}
        self._made_by = {"model": file_digest(options.model / "model.safetensors"), "data": file_digest(options.data)}
        for seed in options.seeds:
            prompts = len({row["prompt"] for row in self.rows})
            pool, heldout = split(self.rows, min(prompts, options.heldout), seed)
            if len(pool) < max(options.sizes) or len(heldout) < options.heldout:
                have = f"{len(self.rows)} usable pairs of {prompts} prompts; {len(pool)} are left beside {len(heldout)}"
                raise SystemExit(f"too few for {options.heldout} held-out and {max(options.sizes)} seed labels: {have}")
            for name, part in {"pool": pool, "heldout": heldout}.items():
                text = "".join(json.dumps(pair) + "\n" for pair in part)
                file = self._file(name, seed)
                if not file.exists() or file.read_text() != text:  # another command may be reading it
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text)
            self.parts[seed] = [list(range(len(heldout))), balanced(heldout), read_alike(heldout, renderer)]

    def heldout(self, seed: int) -> list[Pair]:
        """The held-out pairs of a seed."""
        return split(self.rows, self.options.heldout, seed)[1]

    def outcome(self, judge: str, size: int, seed: int) -> Outcome:
        """What a judge says that learned from so many labels of a seed."""
        if judge == LONGER:
            return Outcome([longer_wins(pair) for pair in self.heldout(seed)], 0.0)
        said = self._recipe(judge, size, seed)
        said["model"]["model_name_or_path"] = ""  # a place; what is there has a digest
        del said["compute"], said["storage"], said["data"]["pairs"], said["data"]["prompts"]
        del said["seed_training"]["per_device_train_batch_size"]  # how, not what
        made_by = {"judge": judge, "which": f"{size} labels, {seed}", "recipe": said, **self._made_by}
        made_by["heldout"] = self.options.heldout
        return Outcome(**self.kept.get("judged", made_by, lambda: self._judged(judge, size, seed)._asdict()))

    def _judged(self, judge: str, size: int, seed: int) -> Outcome:
        """Train what the judge reads, unless it is there, and let it judge."""
        options, told = self.options, Told()
        print(f"  {judge}, {size} labels, seed {seed}", flush=True)
        recipe = self._recipe(judge, size, seed)
        file = options.work / "recipes" / f"{recipe['name']}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
        prepared = api.prepare(file)
        api.run_recipe(prepared, told, until=TRAINED[judge], accept=True, executors=self._executors)
        model = prepared.run.stage_dir(prepared.plan.stage(TRAINED[judge]), prepared.plan).output / MODEL
        out = options.work / f"{recipe['name']}.jsonl"
        request = JudgeRequest(
            policy=str(model) if judge == IMPLICIT else None,
            reference=str(options.model) if judge == IMPLICIT else None,
            pairs=str(self._file("heldout", seed)),
            out=out,
            judge=judge.replace(" ", "_"),
            dtype=options.dtype,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            overwrite=True,
            settings=[
                f"compute.cpu_threads={options.threads}",
                *([f"judge.model_name_or_path={model}"] if judge == REWARD else []),
            ],
        )
        judge_pairs(request, told, self._executors)
        pairs = self.heldout(seed)
        right = rightness(pairs, [json.loads(line) for line in out.read_text().splitlines()])
        seconds = next(told.seconds[name] for name, who in SCORED.items() if who == judge)
        return Outcome(right, seconds / len(pairs))

    def _file(self, name: str, seed: int) -> Path:
        file: Path = self.options.work / f"{name}-{seed}.jsonl"
        return file

    def _recipe(self, judge: str, size: int, seed: int) -> dict[str, Any]:
        options = self.options
        rate = options.dpo_rate if judge == IMPLICIT else options.reward_rate
        training = {
            "num_train_epochs": options.epochs,
            "global_batch_size": options.batch,
            "per_device_train_batch_size": min(options.batch, options.per_device),
            "logging_steps": 1,
        }
        return {
            "name": f"{judge.replace(' ', '-')}-{size}-{seed}-{rate:g}",
            "seed": seed,
            "model": {
                "model_name_or_path": str(options.model),
                "max_length": options.max_length,
                "max_prompt_length": options.max_prompt_length,
                "dtype": options.dtype,
            },
            "data": {
                "pairs": {"source": str(self._file("pool", seed))},
                "prompts": {"source": str(self._file("heldout", seed)), "columns": {"ignore": list(SIDES)}},
                "shuffle_seed": seed,
                "seed_labels": size,
                "prompts_per_iteration": [1],  # of an iteration that is not reached
            },
            "seed_training": {**training, "learning_rate": rate},  # of the reward model, too
            "judge": {"type": judge.replace(" ", "_")},
            "sampling": {"max_tokens": 1, "backend": {"type": "transformers"}},
            "evaluation": {"enabled": False},
            "compute": {"executor": {"type": "fork"}, "cpu_threads": options.threads, "stall_minutes": None},
            "storage": {"runs_dir": str(options.work / "runs")},
        }


def write(options: argparse.Namespace) -> str:
    """Write `results.md` of what is there so far, and return its text."""
    world = World(options, None)
    lines = [*world.kept.machines(), "", *LENGTHS_HEAD, *(_lengths(world, seed) for seed in options.seeds), "", *HEAD]
    for size in options.sizes:
        found = {judge: _found(world, judge, size) for judge in TRAINED}
        lines += [_row(world, size, judge, outcomes) for judge, outcomes in found.items() if outcomes]
        if both := sorted(set.intersection(*(set(outcomes) for outcomes in found.values()))):
            lines.append(_difference(world, size, {judge: {s: found[judge][s] for s in both} for judge in found}))
    longer = {seed: world.outcome(LONGER, 0, seed) for seed in options.seeds}
    text = "\n".join([*lines, _row(world, 0, LONGER, longer), ""])
    (options.work / "results.md").write_text(text)
    return text


LENGTHS_HEAD = ["| seed | held-out pairs | of them length-balanced | of them read alike |", "|---|---|---|---|"]
HEAD = [
    "| labels | judge | accuracy, % | of each seed | length-balanced, % | of each seed | read alike, % | of each seed "
    "| s per pair |",
    "|---|---|---|---|---|---|---|---|---|",
]


def _lengths(world: World, seed: int) -> str:
    return f"| {seed} | {' | '.join(str(len(places)) for places in world.parts[seed])} |"


def _found(world: World, judge: str, size: int) -> dict[int, Outcome]:
    """The outcomes that are there, by seed."""
    found = {}
    for seed in world.options.seeds:
        with suppress(NotMadeError):
            found[seed] = world.outcome(judge, size, seed)
    return found


def _row(world: World, size: int, judge: str, outcomes: dict[int, Outcome]) -> str:
    """Accuracies with the binomial standard error of all their pairs, and the shortest time."""
    parts = []
    for rights in _parts(world, {seed: outcome.right for seed, outcome in outcomes.items()}):
        every = [right for seed in rights for right in rights[seed]]
        mean = fmean(every)
        error = math.sqrt(mean * (1 - mean) / len(every))
        parts += [f"{mean:.1%} ± {error:.1%}", ", ".join(f"{fmean(right):.0%}" for right in rights.values())]
    seconds = min(outcome.seconds for outcome in outcomes.values())
    cells = [str(size or ""), judge, *(part.replace("%", "") for part in parts), f"{seconds:.2f}" if seconds else ""]
    return f"| {' | '.join(cells)} |"


def _difference(world: World, size: int, found: dict[str, dict[int, Outcome]]) -> str:
    """The accuracy of the implicit reward minus the reward model's, with the standard error of paired differences."""
    ours, theirs = found[IMPLICIT], found[REWARD]
    gaps = {seed: [a - b for a, b in zip(ours[seed].right, theirs[seed].right, strict=True)] for seed in ours}
    parts = []
    for rights in _parts(world, gaps):
        every = [gap for seed in rights for gap in rights[seed]]
        parts += [f"{100 * fmean(every):+.1f} ± {100 * pstdev(every) / math.sqrt(len(every)):.1f}"]
        parts += [", ".join(f"{100 * fmean(gap):+.0f}" for gap in rights.values())]
    return f"| {size} | implicit minus reward model | {' | '.join(parts)} |  |"


def _parts(world: World, values: dict[int, list[float]]) -> list[dict[int, list[float]]]:
    """The values of all held-out pairs of each seed, and those of each part of them."""
    of_seeds = [[[values[seed][i] for i in places] for places in world.parts[seed]] for seed in values]
    return [dict(zip(values, part, strict=True)) for part in zip(*of_seeds, strict=True)]


def main() -> None:
    """Measure what is missing, and write the tables after each part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a small chat model")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with prompt, chosen and rejected")
    parser.add_argument("--work", type=Path, default=Path("runs/real-judge"), help="keeps all that was made")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 400], help="numbers of seed labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--judges", nargs="+", choices=list(TRAINED), default=list(TRAINED), help="what is measured now"
    )
    parser.add_argument("--heldout", type=int, default=150, help="held-out pairs of each seed")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of prompt and answer; more are cut off")
    parser.add_argument("--max-prompt-length", type=int, default=56)
    parser.add_argument("--dpo-rate", type=float, default=2e-5, help="learning rate of the policy")
    parser.add_argument("--reward-rate", type=float, default=1e-4, help="learning rate of the reward model")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="pairs of an optimizer step")
    parser.add_argument("--per-device", type=int, default=2, help="pairs that are in memory at a time in training")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.model, options.work = options.model.resolve(), options.work.resolve()
    with closing(Executors(ForkExecutor(type="fork"))) as executors:
        world = World(options, executors)
        for size in options.sizes:
            for seed in options.seeds:
                for judge in options.judges:
                    world.outcome(judge, size, seed)
                write(options)
    print(write(options))


if __name__ == "__main__":
    main()
