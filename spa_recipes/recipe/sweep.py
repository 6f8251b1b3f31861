"""Sweeps: the schema of the file that `spa sweep` reads, and the recipe of each variant and seed."""

# No `from __future__ import annotations`: pydantic would compile each annotation from its text at every start.

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from spa_recipes.errors import RecipeError
from spa_recipes.recipe import rules
from spa_recipes.recipe.extends import read_mapping, refuse_other_files
from spa_recipes.recipe.job import checked
from spa_recipes.recipe.load import LoadedRecipe, Setting, load_recipe
from spa_recipes.recipe.rules import Conflict, Conflicts
from spa_recipes.recipe.schema import LOCATION, Document, PositiveInt, Section, Seed
from spa_recipes.recipe.shipped import shipped_file
from spa_recipes.recipe.text import Keys, Values

SEEDED = ("seed", "data.shuffle_seed")
"""Keys of a recipe that get a sweep's seed, besides those of rows that the sandbox generates."""
_SOURCES = ("data.pairs", "data.prompts", "sft.data")
_FIRST = "name: my-sweep"
_STARTER = "see the example in `spa sweep --help`"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,29}$")]
Settings = dict[str, Any]


class Variant(Section):
    """What is compared: a recipe with other settings."""

    name: Name = Field(description="Short name, a part of the names of its runs.")
    label: str = Field("", description="What tables call it; empty: its name.")
    recipe: str | None = Field(
        None,
        min_length=1,
        description="Recipe instead of the sweep's: a file, relative to this one, or the name of a shipped recipe.",
        json_schema_extra=LOCATION,
    )
    set: Settings = Field(
        {}, description="Settings that differ from the recipe's, by dotted keys, as of --set: {sampling.n: 4}."
    )
    policy: Annotated[int, Field(ge=0)] | Literal["last", "init", "extrapolated"] = Field(
        "last", description="The policy of the run that is measured: the last one, or init, 0, 1, 2, ..., extrapolated."
    )

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.label or self.name


class Difference(Section):
    """Two variants that are compared."""

    of: Name = Field(description="Name of a variant.")
    minus: Name = Field(description="Name of the variant that it is compared with.")


class Round(Section):
    """A round of successive halving."""

    seeds: PositiveInt = Field(description="The first so many seeds are run in this round and those before it.")
    keep: PositiveInt = Field(description="So many variants go on, besides the control: the best ones by the metric.")


def names_are_known(sweep: "Sweep") -> Conflicts:
    known = [variant.name for variant in sweep.variants]
    for i, name in enumerate(known):
        if name in known[:i]:
            yield Conflict((f"variants.{i}.name",), f"{name} is the name of another variant", "give it its own")
    named = {
        "control": sweep.control,
        **{f"hypotheses.{i}": name for i, name in enumerate(sweep.hypotheses or [])},
        **{f"differences.{i}.{key}": name for i, pair in enumerate(sweep.differences or []) for key, name in pair},
    }
    for key, name in named.items():
        if name not in known:
            yield Conflict((key,), f"there is no variant {name}", f"variants: {', '.join(known)}")
    if sweep.control in (sweep.hypotheses or []):
        at = f"hypotheses.{(sweep.hypotheses or []).index(sweep.control)}"
        yield Conflict((at,), f"{sweep.control} is the control itself", "remove it")


def nothing_is_listed_twice(sweep: "Sweep") -> Conflicts:
    for key in ("seeds", "metrics", "hypotheses"):
        twice = [value for value, count in Counter(getattr(sweep, key) or []).items() if count > 1]
        if twice:
            yield Conflict((key,), f"has {twice[0]} twice", "remove one of them")


def every_variant_has_a_recipe(sweep: "Sweep") -> Conflicts:
    for i, variant in enumerate(sweep.variants):
        if variant.recipe is None and sweep.recipe is None:
            yield Conflict((f"variants.{i}",), "has no recipe", "add recipe here or to the sweep")


def rounds_narrow(sweep: "Sweep") -> Conflicts:
    seeds, kept = 0, len(sweep.variants) - 1
    for i, round_ in enumerate(sweep.halving):
        if not seeds < round_.seeds < len(sweep.seeds):
            what = f"{round_.seeds} is not between the {seeds} seeds before it and the {len(sweep.seeds)} of the sweep"
            yield Conflict((f"halving.{i}.seeds",), what, "give each round more seeds than the one before it")
        if round_.keep >= kept:
            what = f"{round_.keep} are all that are left: {kept} besides the control"
            yield Conflict((f"halving.{i}.keep",), what, "keep fewer")
        seeds, kept = round_.seeds, round_.keep
    if sweep.halving and sweep.hypotheses:
        yield Conflict(
            ("hypotheses", "halving"),
            "are not tested on the seeds by which halving chose the variants: their p would be too small",
            "remove one of the two, and test what was chosen in a sweep with fresh seeds",
        )


class Sweep(Document):
    """Variants of a recipe x seeds, and what is compared with what."""

    RULES: ClassVar[rules.Rules] = (
        names_are_known,
        nothing_is_listed_twice,
        every_variant_has_a_recipe,
        rounds_narrow,
    )

    name: Name = Field(description="Name of the sweep, with which the names of its runs begin.")
    description: str = Field("", description="Free text for readers.")
    recipe: str | None = Field(
        None,
        min_length=1,
        description="What variants change: a recipe file, relative to this one, or the name of a shipped recipe.",
        json_schema_extra=LOCATION,
    )
    set: Settings = Field({}, description="Settings of every variant, by dotted keys, as of --set.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(description="Every variant is run with each of them.")
    seed_keys: list[str] | None = Field(
        None,
        description="Keys of the recipe that get the seed; null: seed, data.shuffle_seed (which rows are the labels), "
        "and the seeds of rows that the sandbox generates. Stages that read none of them are shared by all seeds.",
    )
    variants: Annotated[list[Variant], Field(min_length=1)] = Field(description="What is compared.")
    control: Name = Field(description="Name of the variant that the others are compared with, seed by seed.")
    metrics: Annotated[list[str], Field(min_length=1)] = Field(
        ["win_rate"],
        description="Figures of the table: columns of `spa compare --json`, or figures of the report. The first one is "
        "what hypotheses and halving are about; more of it is better.",
    )
    hypotheses: list[Name] | None = Field(
        None,
        description="Variants whose difference from the control is tested, with Holm's correction for their number; "
        "null: all of them, or none with halving. State them before the runs.",
    )
    differences: list[Difference] | None = Field(
        None,
        description="Differences in the table besides those that are tested; null: of every variant from the control.",
    )
    halving: list[Round] = Field(
        [],
        description="Successive halving: in each round all variants that are left get more seeds, and the best go on. "
        "The last ones get all seeds.",
    )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of the variants whose difference is shown: (of, minus)."""
        tested = [(name, self.control) for name in self.tested]
        if self.differences is not None:
            return [*tested, *((pair.of, pair.minus) for pair in self.differences)]
        return [*tested, *((variant.name, self.control) for variant in self.variants if variant.name != self.control)]

    @property
    def tested(self) -> list[str]:
        """Names of the variants whose difference from the control is tested."""
        if self.hypotheses is not None:
            return self.hypotheses
        return [] if self.halving else [variant.name for variant in self.variants if variant.name != self.control]


class LoadedSweep(NamedTuple):
    """A checked sweep, its file, and what the file says with the place of every key."""

    sweep: Sweep
    path: Path
    values: Values

    def where(self, *keys: str | int) -> str:
        """Where a key stands: `file:line: key`."""
        return f"{self.values.places[keys].text}: {'.'.join(map(str, keys))}"


def load_sweep(path: Path) -> LoadedSweep:
    """Read and check a sweep; its recipes are read by `recipe_of`.

    Raises:
        RecipeError: the file cannot be read as a sweep.
        InvalidRecipeError: values are wrong. It is about the first problem, its `others` about the remaining ones.
    """
    values, _ = read_mapping(path, "sweep", _STARTER, _FIRST)
    loaded = LoadedSweep(checked(Sweep, values, str(path)), path, values)
    _refuse_own_keys(loaded)
    return loaded


def _refuse_own_keys(loaded: LoadedSweep) -> None:
    """RecipeError where a `set` has the name or a seed of the runs, which come from the sweep."""
    sweep = loaded.sweep
    own = {"name", *(SEEDED if sweep.seed_keys is None else sweep.seed_keys)}
    places: list[tuple[Keys, Settings]] = [(("set",), sweep.set)]
    places += [(("variants", i, "set"), variant.set) for i, variant in enumerate(sweep.variants)]
    for keys, settings in places:
        for key in sorted(own & settings.keys()):
            fix = "remove it" if key == "name" else "remove it, or give seed_keys without it"
            raise RecipeError("is set by the sweep itself", where=loaded.where(*keys, key), fix=fix)


def recipe_of(loaded: LoadedSweep, variant: Variant, seed: int) -> LoadedRecipe:
    """The recipe of one variant and seed.

    Raises:
        RecipeError, InvalidRecipeError: as `load_recipe`; what the sweep sets wrongly is named by its line there.
    """
    sweep, i = loaded.sweep, sweep_place(loaded.sweep, variant)
    at: Keys = ("variants", i, "recipe") if variant.recipe is not None else ("recipe",)
    named = variant.recipe or sweep.recipe
    assert named is not None
    settings = [*_settings(loaded, ("set",)), *_settings(loaded, ("variants", i, "set"))]
    named_so = [Setting("name", Values(run_name(sweep, variant, seed)), loaded.values.places["variants", i, "name"])]
    place = loaded.values.places["seeds", sweep.seeds.index(seed)]

    def seeds(root: dict[str, Any]) -> Sequence[Setting]:
        return [Setting(key, Values(seed, written={(): str(seed)}), place) for key in _seed_keys(sweep, root)]

    path = _found(loaded.path, named)
    refuse_other_files(path, loaded.where(*at))
    try:
        return load_recipe(path, settings=[*settings, *named_so], then=seeds)
    except RecipeError as error:
        if error.where == str(path):
            raise RecipeError(f"{error.where}: {error.what}", where=loaded.where(*at), fix=error.fix) from None
        raise


def sweep_place(sweep: Sweep, variant: Variant) -> int:
    """The place of a variant in the list, from 0."""
    return [other.name for other in sweep.variants].index(variant.name)


def run_name(sweep: Sweep, variant: Variant, seed: int) -> str:
    """The name of the run of a variant and seed."""
    return f"{sweep.name}-{variant.name}-{seed}"


def sweep_schema() -> dict[str, Any]:
    """The JSON Schema of sweeps (draft 2020-12), for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Sweep.model_json_schema(),
        "title": "sweep of spa sweep",
    }


def _found(sweep: Path, named: str) -> Path:
    """The file of a recipe that a sweep names, as `extends` finds one."""
    path = sweep.parent / Path(named).expanduser()
    return path if path.is_file() else shipped_file(Path(named)) or path


def _settings(loaded: LoadedSweep, keys: Keys) -> Iterator[Setting]:
    """The settings under a `set`, each with its place in the sweep."""
    places, written = loaded.values.places, loaded.values.written
    if keys not in places:
        return
    for name, value in loaded.values.get(keys).items():
        here = (*keys, name)
        below = {k[len(here) :]: place for k, place in places.items() if k[: len(here)] == here}
        spelled = {k[len(here) :]: text for k, text in written.items() if k[: len(here)] == here}
        yield Setting(name, Values(value, below, spelled), places[here])


def _seed_keys(sweep: Sweep, root: dict[str, Any]) -> list[str]:
    """The keys that get the seed, in a recipe with all other settings of its variant."""
    if sweep.seed_keys is not None:
        return sweep.seed_keys
    return [*SEEDED, *(f"{key}.seed" for key in _SOURCES if _is_sandbox(root, key))]


def _is_sandbox(root: dict[str, Any], key: str) -> bool:
    section, name = key.split(".")
    outer = root.get(section)
    source = outer.get(name) if isinstance(outer, dict) else None
    return isinstance(source, dict) and source.get("type") == "sandbox"
