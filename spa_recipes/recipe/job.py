"""Reads jobs: a YAML file of `spa evaluate`, or the options of a command; `--set` overrides both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.extends import read_mapping
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.recipe.load import next_order, override, put
from spa_recipes.recipe.problems import EXAMPLES, explain
from spa_recipes.recipe.schema import Document
from spa_recipes.recipe.shape import shape_of, types_of
from spa_recipes.recipe.text import Place, Values

JobT = TypeVar("JobT", bound=Document)

_KEYS = {"benchmark": "benchmark.type", "against": "benchmark.against", "backend": "backend.type", "out": "out"}
"""The keys that options set, but for `prompts`, whose key depends on the benchmark."""

_PROMPTS = {"mt_bench": "benchmark.questions", "pairwise": "benchmark.prompts.source"}
"""The keys of a benchmark's prompts; that of any other is `benchmark.prompts`."""


def load_job(
    subject: str | None, options: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> BenchmarkJob:
    """Read and check a job.

    Args:
        subject: a YAML file, or the model of the job: a folder, a Hub id or the name of a finished run.
        options: values of the options `benchmark`, `against`, `prompts`, `out` and `backend`, by name.
        overrides: `key=value` texts as of `--set`.

    Raises:
        RecipeError: there is no model or no benchmark, or the file cannot be read as a job.
        InvalidRecipeError: values are wrong; it is about the first one, its `others` about the other ones.
    """
    of_file = subject is not None and is_file_of_job(subject)
    values = _read(Path(str(subject))) if of_file else Values({})
    if subject is not None and not of_file:
        put_option(values, "model.model_name_or_path", subject, "MODEL")
    override(values, overrides)
    for option, value in (options or {}).items():
        put_option(values, _key(option, values), value, f"--{option}")
    if not of_file:
        _refuse_gaps(values.root)
    return checked(BenchmarkJob, values, subject or "--set")


def checked(document: type[JobT], values: Values, place: str) -> JobT:
    """The job that values are.

    Args:
        place: names what the values come from as a whole.

    Raises:
        InvalidRecipeError: values are wrong; it is about the first one, its `others` about the other ones.
    """
    try:
        return document.model_validate(values.root)
    except ValidationError as error:
        raise explain(error, values, Path(place), document) from None


def is_file_of_job(subject: str) -> bool:
    """Whether a YAML file is named, and no model."""
    return Path(subject).suffix.lower() in (".yaml", ".yml") and not Path(subject).is_dir()


def _read(path: Path) -> Values:
    return read_mapping(path, "job", starter="see the example in `spa evaluate --help`", first=EXAMPLES["model"])[0]


def _refuse_gaps(root: Mapping[str, Any]) -> None:
    """Without a file, the command itself has to name a model and a benchmark."""
    benchmarks = ", ".join(types_of(shape_of(BenchmarkJob)["properties"]["benchmark"]))
    for section, key, where, fix in (
        ("model", "model_name_or_path", "MODEL", "name a folder, a Hub id, a finished run, or a job file (YAML)"),
        ("benchmark", "type", "--benchmark", f"choose one of {benchmarks}"),
    ):
        if isinstance(inner := root.get(section, {}), dict) and key not in inner:
            raise RecipeError("is needed", where=where, fix=fix)


def job_schema() -> dict[str, Any]:
    """The JSON Schema of jobs (draft 2020-12), for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **BenchmarkJob.model_json_schema(),
        "title": "job of spa evaluate",
    }


def _key(option: str, values: Values) -> str:
    """The key that an option sets."""
    if option in _KEYS:
        return _KEYS[option]
    benchmark = values.root.get("benchmark")
    kind = benchmark.get("type") if isinstance(benchmark, dict) else None
    return _PROMPTS.get(str(kind), "benchmark.prompts")


def put_option(values: Values, key: str, value: Any, option: str) -> None:
    """Put the value of an option at a key, as it is."""
    put(values, key, Values(value, written={(): str(value)}), Place(option, next_order(values)))
