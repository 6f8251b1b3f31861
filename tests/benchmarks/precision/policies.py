"""The policies that are compared, each trained by the package's own runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from spa_recipes import api
from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.plan import MODEL, Stage
from spa_recipes.recipe.schema import ForkExecutor
from spa_recipes.run.executors import Executors
from spa_recipes.state.stagedir import Manifest
from tests.benchmarks.precision.kept import Kept, digest
from tests.kit.quiet import Quiet


class Loop(NamedTuple):
    """What a loop's recipe says that others' do not.

    Attributes:
        seed_shift: other random numbers in training and sampling; the rows stay as they are.
    """

    label: str
    dtype: str
    model: Mapping[str, str] = MappingProxyType({})
    judge: Mapping[str, str] = MappingProxyType({})
    seed_shift: int = 0


PAIRS, PROMPTS = "pairs.jsonl", "prompts.jsonl"
SIDES = ("chosen", "rejected")

LOOPS = {
    "float32": Loop("float32", "float32"),
    "new": Loop("bfloat16, now", "bfloat16"),
    "today": Loop("bfloat16, before", "bfloat16", {"save_rounding": "nearest"}, {"method": "difference"}),
    "again": Loop("float32, other random numbers", "float32", seed_shift=1000),
}
"""By name. `today` is what the package did, and what other tools do; `again` says how far chance alone leads."""


@dataclass(frozen=True)
class Sizes:
    """Rows and tokens.

    Attributes:
        labels: that pi_0 is trained on; heldout: pairs that are measured.
        batch: pairs of an optimizer step.
        prompts: rows of an iteration; those whose prompt is in another part are dropped from it.
    """

    labels: int
    heldout: int
    prompts: int
    iterations: int
    batch: int
    max_length: int
    max_prompt_length: int
    max_tokens: int


FULL = Sizes(72, 150, 100, 3, 8, max_length=128, max_prompt_length=56, max_tokens=64)
QUICK = Sizes(8, 6, 14, 2, 4, max_length=64, max_prompt_length=32, max_tokens=8)


@dataclass(frozen=True)
class World:
    """What all that is measured starts from.

    Attributes:
        model: a folder with a chat model, stored in bfloat16; made_by: digests of its weights and of the data.
        work: holds all that was made.
        kept: what was measured; where that is only looked at, nothing is trained either.
    """

    model: Path
    made_by: Mapping[str, str]
    work: Path
    sizes: Sizes
    threads: int
    kept: Kept


class Case(NamedTuple):
    """A training: its shuffle and random numbers, and its learning rate."""

    seed: int
    rate: float

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.rate:g}"


class Policy(NamedTuple):
    """A trained model; `key` changes with all that made it."""

    folder: Path
    key: str


class Runs:
    """Runs of the package in `work/runs`. Runs that share a beginning do it once.

    A policy is found by its recipe and its data. Stage keys say more: they change with the package, too.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._executors = Executors(ForkExecutor(type="fork"))

    def close(self) -> None:
        """End the process that stages are forked from."""
        self._executors.close()

    def policy(self, loop: str, case: Case, iteration: int) -> Policy:
        """pi_0 (iteration 0) or pi_i of a loop, trained unless it is there."""
        stage = "seed" if iteration == 0 else f"refine-{iteration}"

        def trained() -> tuple[str, str]:
            folder, key = self._output(loop, case, stage)
            return str((folder / MODEL).relative_to(self.world.work)), key

        folder, key = self.world.kept.get("policies", self._made_by(loop, case, stage), trained)
        return Policy(self.world.work / folder, key)

    def heldout(self, case: Case) -> list[PairRow]:
        """The pairs of a seed that nothing is trained on."""

        def rows() -> list[PairRow]:
            return read_rows(self._output("float32", case, "data")[0] / "heldout.jsonl", PairRow)

        found: list[PairRow] = self.world.kept.get("heldout", self._made_by("float32", case, "data"), rows)
        return found

    def _made_by(self, loop: str, case: Case, stage: str) -> dict[str, Any]:
        said = recipe(self.world, loop, case)
        said["model"]["model_name_or_path"] = ""  # a place; what is there has a digest
        for place in ("compute", "storage"):
            del said[place]
        del said["data"]["pairs"], said["data"]["prompts"]
        return {"loop": loop, "case": str(case), "stage": stage, "recipe": said, **self.world.made_by}

    def _output(self, loop: str, case: Case, stage: str) -> tuple[Path, str]:
        """Output folder and key of a stage, which is run unless it is done."""
        file = self.world.work / "recipes" / f"{loop}-{case.seed}-{case.rate:g}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(recipe(self.world, loop, case), indent=1))  # JSON is YAML
        prepared = api.prepare(file)
        api.run_recipe(prepared, Told(), until=stage, accept=True, executors=self._executors)
        planned = prepared.plan.stage(stage)
        return prepared.run.stage_dir(planned, prepared.plan).output, planned.key


def recipe(world: World, name: str, case: Case) -> dict[str, Any]:
    """A loop's recipe."""
    sizes, loop = world.sizes, LOOPS[name]
    training = {
        "learning_rate": case.rate,
        "global_batch_size": sizes.batch,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
    }
    return {
        "name": f"{name}-{case.seed}-{case.rate:g}",
        "seed": case.seed + loop.seed_shift,
        "model": {
            "model_name_or_path": str(world.model),
            "max_length": sizes.max_length,
            "max_prompt_length": sizes.max_prompt_length,
            "dtype": loop.dtype,
            **loop.model,
        },
        "data": {
            "pairs": {"source": str(world.work / PAIRS)},
            "prompts": {"source": str(world.work / PROMPTS)},
            "shuffle_seed": case.seed,
            "seed_labels": sizes.labels,
            "prompts_per_iteration": [sizes.prompts] * sizes.iterations,
            "heldout": sizes.heldout,
        },
        "seed_training": training,
        "judge": {"type": "implicit_reward", **loop.judge},
        "refine": training,
        "sampling": {
            "max_tokens": sizes.max_tokens,
            "check_logps": 0,
            "max_identical": 1.0,
            "max_empty": 1.0,
            "backend": {"type": "transformers", "batch_size": 20},
        },
        "noise": {
            "lambdas": [0.5 / 2**i for i in range(sizes.iterations)],
            "threshold": {"type": "percentile", "k": 10, "window": 64, "min_pairs": 8},
        },
        "evaluation": {"enabled": False},
        "compute": {"executor": {"type": "fork"}, "cpu_threads": world.threads, "stall_minutes": None},
        "storage": {"runs_dir": str(world.work / "runs")},
    }


def prepare_rows(data: Path, work: Path) -> str:
    """Write the first pair of each prompt, and all prompts; returns a digest of them.

    An answer that is given to several prompts answers none of them (some benchmarks have such entries): pairs with one
    are left out.
    """
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    prompts_of: dict[str, set[str]] = {}
    for row in rows:
        for side in SIDES:
            prompts_of.setdefault(row[side], set()).add(row["prompt"])
    pairs: dict[str, dict[str, str]] = {}
    for row in rows:
        if all(len(prompts_of[row[side]]) == 1 for side in SIDES):
            pairs.setdefault(row["prompt"], {name: row[name] for name in ("prompt", *SIDES)})
    prompts = dict.fromkeys(row["prompt"] for row in rows)
    work.mkdir(parents=True, exist_ok=True)
    (work / PAIRS).write_text("".join(json.dumps(pair) + "\n" for pair in pairs.values()))
    (work / PROMPTS).write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return digest([list(pairs.values()), list(prompts)])


class Told(Quiet):
    """Prints a line for each stage that is done."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
        print(f"  {stage.id}: {manifest.seconds:.0f} s", flush=True)
