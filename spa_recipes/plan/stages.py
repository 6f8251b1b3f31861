"""Stages, their inputs and keys, and the builder that collects them into a plan."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa_recipes.data.commits import Commits
from spa_recipes.data.hub import MAIN
from spa_recipes.data.places import content_fingerprint, existing_path, is_local, is_path
from spa_recipes.errors import DataError, RecipeError, setting
from spa_recipes.plan.graph import Graph, ancestors, descendants
from spa_recipes.plan.keys import key_material, stage_key
from spa_recipes.plan.kinds import KINDS, Kind
from spa_recipes.recipe.schema import Data, DatasetSource, Model, Source
from spa_recipes.recipe.shipped import find_template
from spa_recipes.state.digests import DigestMemo

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

CARD, RECIPE_FILE = "README.md", "recipe.yaml"
"""What stands beside a model and tells of it: it changes nothing that the model does, and so no key."""


@dataclass(frozen=True)
class StageOutput:
    """A file or folder in another stage's output."""

    stage: str
    path: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.path}"


@dataclass(frozen=True)
class External:
    """A model or dataset from outside the run.

    Attributes:
        fingerprint: stands for its content.
        key: the setting that names it, for messages: such as `data.pairs.source`, or an option of the command line.
    """

    location: str
    fingerprint: str
    revision: str | None = None
    key: str = field(default="", compare=False)

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
        after: stages that it waits for although it reads nothing of theirs. They are no part of its key.
    """

    id: str
    kind: str
    role: str
    settings: dict[str, Any]
    inputs: dict[str, Input]
    material: dict[str, Any]
    key: str
    rows: int | None
    after: tuple[str, ...] = ()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Ids of the stages that have to be done before this one can run: those that it reads, then `after`."""
        read = (value.stage for value in self.inputs.values() if isinstance(value, StageOutput))
        return tuple(dict.fromkeys((*read, *self.after)))


@dataclass(frozen=True)
class Plan:
    """A recipe (or a job of `spa judge` or `spa evaluate`) and its stages, each behind those that it waits for.

    Attributes:
        commits: what is read of repositories on the Hub, by branch or tag, as `Commits.kept`.
    """

    recipe: AnyRecipe
    stages: tuple[Stage, ...]
    commits: Mapping[str, str] = field(default_factory=dict)

    def stage(self, stage_id: str) -> Stage:
        """The stage with this id; RecipeError names the ids there are."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise RecipeError(f"no stage {stage_id!r}", fix="stages: " + ", ".join(stage.id for stage in self.stages))

    @property
    def graph(self) -> Graph:
        """For each stage the ids of those that it waits for, in the order of the plan."""
        return {stage.id: stage.waits_for for stage in self.stages}

    def until(self, stage_id: str | None) -> tuple[Stage, ...]:
        """The stage `stage_id` and all that it needs, in the order of the plan; all stages for None."""
        if stage_id is None:
            return self.stages
        wanted = {self.stage(stage_id).id, *ancestors(self.graph, stage_id)}
        return tuple(stage for stage in self.stages if stage.id in wanted)

    def from_on(self, stage_id: str) -> set[str]:
        """Ids of the stage `stage_id` and of all that need it."""
        return {stage_id, *descendants(self.graph, stage_id)}

    @property
    def initial_policy(self) -> Input | None:
        """pi_init: what the seed stage or the first iteration starts from; None for a plan without either."""
        for stage in self.stages:
            if stage.kind in ("dpo", "generate"):
                return stage.inputs["policy"]
        return None

    def newest_model(self, done: Container[str]) -> Stage | None:
        """The last of the stages in `done` that makes a policy; None if none does."""
        makers = [stage for stage in self.stages if KINDS[stage.kind].policy and stage.id in done]
        return makers[-1] if makers else None


class Builder:
    """Collects stages and computes keys as inputs become known."""

    def __init__(self, memo: DigestMemo, commits: Commits | None = None) -> None:
        self.memo = memo
        self.commits = commits or Commits()
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
        """Add a stage, whose inputs are in the plan already; returns its id.

        Raises:
            ValueError: the table of kinds says that a stage of this kind has other inputs or settings, or that one of
                its inputs is nothing that the other stage writes.
        """
        self._check(stage_id, KINDS[kind], settings, inputs)
        identities = {name: self._identity(value) for name, value in inputs.items()}
        material = key_material(kind, KINDS[kind].version, settings, identities)
        self.stages[stage_id] = Stage(stage_id, kind, role, settings, inputs, material, stage_key(material), rows)
        return stage_id

    def model(self, location: str, revision: str | None, key: str) -> External:
        """A model that the setting `key` names."""
        folder = Path(location).expanduser()
        if folder.is_dir():
            return External(str(folder), f"sha256:{self.memo.of(folder, leave_out=(CARD, RECIPE_FILE))}", key=key)
        if not is_path(location):  # a path where nothing is stays what it is; the look at all inputs says so
            with setting(key):
                revision = self.commits.of("model", location, revision)
        return External(location, f"hub:{location}@{revision or MAIN}", revision, key)

    def file(self, location: str, key: str) -> External:
        """A file that the setting `key` names; DataError if there is none."""
        path = existing_path(location)
        if path is None or not path.is_file():
            raise DataError("no such file", where=f"{key}: {location}", fix="check the path")
        return External(str(path), f"sha256:{self.memo.of(path)}", key=key)

    def folder(self, location: str, key: str) -> External:
        """A folder that the setting `key` names; DataError if there is none."""
        path = Path(location).expanduser()
        if not path.is_dir():
            raise DataError("no such folder", where=f"{key}: {location}", fix="check the path")
        return External(str(path), f"sha256:{self.memo.of(path)}", key=key)

    def source(self, source: Source, key: str) -> External:
        """Rows that the section `key` names; DataError if a local file is missing."""
        if isinstance(source, DatasetSource) and not is_local(source):
            with setting(f"{key}.source"):
                commit = self.commits.of("dataset", source.name, source.revision)
            source = source.model_copy(update={"revision": commit})
        fingerprint = content_fingerprint(source, self.memo.of)
        if isinstance(source, DatasetSource):
            return External(source.name, fingerprint, source.revision, f"{key}.source")
        return External("sandbox", fingerprint, key=key)

    def hub_dataset(self, name: str, key: str) -> External:
        """A dataset of the Hub that is read where the setting `key` names no file."""
        with setting(key):
            commit = self.commits.of("dataset", name, None)
        return External(name, f"hub:{name}@{commit or MAIN}", commit, key)

    def model_settings(self, section: Model, key: str = "model") -> dict[str, Any]:
        """The settings that a model section is to a stage: the section, and the content of its chat template.

        Raises:
            RecipeError: there is no such template.
        """
        if section.chat_template is None:
            return {"model": section}
        template = find_template(section.chat_template)
        if not template.is_file():
            raise RecipeError(f"no file {template}", where=f"{key}.chat_template", fix="name a Jinja file")
        found = section.model_copy(update={"chat_template": str(template)})
        return {"model": found, "chat_template_sha256": self.memo.of(template)}

    def _check(self, stage_id: str, kind: Kind, settings: dict[str, Any], inputs: dict[str, Input]) -> None:
        problems = kind.wrong_inputs(set(inputs))
        problems += [f"has no setting {name}" for name in sorted(settings.keys() - kind.settings.keys())]
        problems += [
            f"cannot read {value}: no {self.stages[value.stage].kind} stage writes that"
            for value in inputs.values()
            if isinstance(value, StageOutput) and not KINDS[self.stages[value.stage].kind].has_output(value.path)
        ]
        if problems:
            raise ValueError(f"{stage_id} ({kind.module}) {'; '.join(problems)} (see spa_recipes/plan/kinds.py)")

    def _identity(self, value: Input) -> str:
        """What stands for an input in a key: its content, or the key of the stage that writes it and its path."""
        if isinstance(value, External):
            return value.fingerprint
        stage = self.stages[value.stage]
        if stage.kind == "data":
            return stage_key(_part_material(stage, value.path))
        return f"{stage.key}/{value.path}"


def _part_material(stage: Stage, part: str) -> dict[str, Any]:
    """What one part of the shared-out rows depends on.

    The seed labels are the same whether or not iterations follow, so a plain DPO run and a SPA run share the seed
    stage; held-out rows come first and depend on nothing else.
    """
    data: Data = stage.settings["data"]
    iteration = int(part.removeprefix("prompts-").removesuffix(".jsonl")) if part.startswith("prompts-") else 0
    changes: dict[str, Any] = {"prompts_per_iteration": data.prompts_per_iteration[:iteration]}
    if part == "heldout.jsonl":
        changes["seed_labels"] = 0
    inputs = stage.material["inputs"]
    read = {name: value for name, value in inputs.items() if iteration or name != "prompts"}
    settings = {**stage.settings, "data": data.model_copy(update=changes)}
    return {**key_material(stage.kind, KINDS[stage.kind].version, settings, read), "part": part}
