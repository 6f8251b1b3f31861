"""Stages, their inputs and keys, and the builder that collects them into a plan."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa_recipes.data.files import existing_path
from spa_recipes.data.sources import content_fingerprint
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.keys import key_material, stage_key
from spa_recipes.recipe.schema import (
    AnyRecipe,
    DatasetSource,
    Model,
    Source,
)
from spa_recipes.state.digests import DigestMemo

MODEL = "model"
"""Folder of a model inside the output of a stage that makes one."""

CARD, RECIPE_FILE = "README.md", "recipe.yaml"
"""What stands beside a model and tells of it: it changes nothing that the model does, and so no key."""

POLICY_KINDS = ("sft", "dpo", "refine")
"""Kinds of stages that make a policy."""

ADAPTER = "adapter"
"""Folder of the LoRA weights that were merged into that model."""

HEAVY_KINDS = frozenset(
    {"sft", "dpo", "reward_model", "generate", "score", "reward", "verdicts", "refine", "evaluate", "answers"}
)
"""Kinds that load a model; only these run under `accelerate launch`."""


@dataclass(frozen=True)
class StageOutput:
    """A file or folder in another stage's output."""

    stage: str
    path: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.path}"


@dataclass(frozen=True)
class External:
    """A model or dataset from outside the run; `fingerprint` stands for its content."""

    location: str
    fingerprint: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.location}@{self.revision}" if self.revision else self.location


Input = StageOutput | External


@dataclass(frozen=True)
class Stage:
    """One step of a plan.

    Attributes:
        id: unique in the plan, such as `generate-1`.
        kind: which code runs it.
        role: what it is for, with the method's symbols.
        settings: sections of the recipe that it reads, and scalars.
        inputs: what it reads, by role name.
        material: what its key is made from.
        key: 32 hex digits.
        rows: rows that it will produce or train on, if known before it runs.
    """

    id: str
    kind: str
    role: str
    settings: dict[str, Any]
    inputs: dict[str, Input]
    material: dict[str, Any]
    key: str
    rows: int | None


@dataclass(frozen=True)
class Plan:
    """A recipe (or a job of `spa judge` or `spa evaluate`) and its stages in the order in which they run."""

    recipe: AnyRecipe
    stages: tuple[Stage, ...]

    def stage(self, stage_id: str) -> Stage:
        """The stage with this id; RecipeError names the ids there are."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise RecipeError(f"no stage {stage_id!r}", fix="stages: " + ", ".join(stage.id for stage in self.stages))

    def until(self, stage_id: str | None) -> tuple[Stage, ...]:
        """The stages up to and including `stage_id`; all of them for None."""
        if stage_id is None:
            return self.stages
        return self.stages[: self.stages.index(self.stage(stage_id)) + 1]

    @property
    def initial_policy(self) -> "Input | None":
        """pi_init: what the seed stage or the first iteration starts from; None for a plan without either."""
        for stage in self.stages:
            if stage.kind in ("dpo", "generate"):
                return stage.inputs["policy"]
        return None

    def newest_model(self, done: Container[str]) -> Stage | None:
        """The last of the stages in `done` that makes a policy; None if none does."""
        makers = [stage for stage in self.stages if stage.kind in POLICY_KINDS and stage.id in done]
        return makers[-1] if makers else None


class Builder:
    """Collects stages and computes keys as inputs become known."""

    def __init__(self, memo: DigestMemo) -> None:
        self.memo = memo
        self.stages: dict[str, Stage] = {}

    def add(
        self,
        stage_id: str,
        kind: str,
        role: str,
        *,
        settings: dict[str, Any],
        inputs: dict[str, Input],
        rows: int | None = None,
    ) -> str:
        material = key_material(kind, settings, {name: self._identity(value) for name, value in inputs.items()})
        key = stage_key(material)
        self.stages[stage_id] = Stage(stage_id, kind, role, settings, inputs, material, key, rows)
        return stage_id

    def model(self, location: str, revision: str | None) -> External:
        folder = Path(location).expanduser()
        if folder.is_dir():
            return External(str(folder), f"sha256:{self.memo.of(folder, leave_out=(CARD, RECIPE_FILE))}")
        return External(location, f"hub:{location}@{revision or 'main'}", revision)

    def file(self, location: str) -> External:
        """A file of the user's; DataError if there is none."""
        path = existing_path(location)
        if path is None or not path.is_file():
            raise DataError("no such file", where=location, fix="check the path")
        return External(str(path), f"sha256:{self.memo.of(path)}")

    def source(self, source: Source) -> External:
        fingerprint = content_fingerprint(source, self.memo.of)
        if isinstance(source, DatasetSource):
            return External(source.source, fingerprint, source.revision)
        return External("sandbox", fingerprint)

    def _identity(self, value: Input) -> str:
        if isinstance(value, External):
            return value.fingerprint
        stage = self.stages[value.stage]
        if stage.kind == "data":
            return stage_key(part_material(stage.material, value.path))
        return f"{stage.key}/{value.path}"


def part_material(material: dict[str, Any], part: str) -> dict[str, Any]:
    """What one part of the shared-out rows depends on.

    The seed labels are the same whether or not iterations follow, so a plain DPO run and a SPA run share the seed
    stage; held-out rows come first and depend on nothing else.
    """
    data = dict(material["settings"]["data"])
    iteration = int(part.removeprefix("prompts-").removesuffix(".jsonl")) if part.startswith("prompts-") else 0
    data["prompts_per_iteration"] = data["prompts_per_iteration"][:iteration]
    if part == "heldout.jsonl":
        data["seed_labels"] = None
    inputs = material["inputs"] if iteration else {"pairs": material["inputs"]["pairs"]}
    return {**material, "settings": {"data": data}, "inputs": inputs, "part": part}


def source_settings(source: Source) -> dict[str, Any]:
    """How a source is read. Its place is left out of the key: the fingerprint stands for the content."""
    return {**source.model_dump(mode="json"), **({"source": ""} if isinstance(source, DatasetSource) else {})}


def model_settings(section: Model, memo: DigestMemo) -> dict[str, Any]:
    """The model section for stages: where the weights come from is an input and not part of it."""
    settings = section.model_dump(mode="json", exclude={"model_name_or_path", "revision", "num_parameters"})
    return settings | template_settings(section.chat_template, memo, "model.chat_template")


def template_settings(template: str | None, memo: DigestMemo, key: str) -> dict[str, Any]:
    """A chat template for stages: the file and its content."""
    if template is None:
        return {"chat_template": None}
    if not Path(template).is_file():
        raise RecipeError(f"{key}: no file {template}", fix="name a Jinja file")
    return {"chat_template": template, "chat_template_sha256": memo.of(Path(template))}
