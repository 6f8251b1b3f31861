"""Tasks of EleutherAI's `lm-eval` package (extra `lm_eval`): which ones there are, and what a model gets in them.

The package is slow to import, so tasks are looked up in its files, and in the user's, without it.
"""

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from spa_recipes.data.places import no_such_folder
from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.recipe.schema import LmEval

PACKAGE, INSTALL = "lm_eval", "pip install 'spa-recipes[lm_eval]'"
RESAMPLES = 1000
"""Bootstrap resamples for the standard error of a metric that has no formula for it."""

_NAMES = ("task", "group", "tag")
"""Keys of a task file that name what can be asked for."""
_FILES = ("json", "csv", "parquet", "arrow", "text")
"""What `dataset_path` is where the rows are in files."""


class Measured(TypedDict):
    """A value of a metric; its standard error is None where the package has none."""

    value: float
    stderr: float | None


class TaskResult(TypedDict):
    """What a model got in a task, a group of tasks, or a part of one.

    Attributes:
        metrics: by `metric,filter`, as the package writes it.
        docs: how many rows were asked; of a group 0, as its parts have them.
        shown: whether it is what was asked for; the parts of a group are not.
        parts: names of the parts of a group.
    """

    metrics: dict[str, Measured]
    docs: int
    version: Any
    num_fewshot: int | None
    higher_is_better: dict[str, bool | None]
    shown: bool
    parts: list[str]


class SampleRow(TypedDict):
    """A model's answers to a row of a task, and what they are worth by each metric that gives a number to a row."""

    task: str
    doc_id: int
    filter: str
    target: str
    responses: list[str]
    metrics: dict[str, float]


class Evaluated(NamedTuple):
    """Results by name, the rows behind them, and how many requests lost their beginning as they were too long."""

    results: dict[str, TaskResult]
    samples: list[SampleRow]
    cut: int


# --- which tasks there are


def check_tasks(benchmark: LmEval, key: str) -> None:
    """Check that each task is there, and that the user's own task files can be read. Runs none of their code.

    Args:
        key: the section, for messages.

    Raises:
        DataError: a file is broken or names rows that are not there; a task is in no file.
    """
    folder = None if benchmark.include_path is None else Path(benchmark.include_path).expanduser()
    try:
        own = set[str]() if folder is None else local_names(folder)
    except DataError as error:
        raise DataError(error.what, where=f"{key}.include_path: {error.where}", fix=error.fix) from None
    others = [name for name in benchmark.tasks if name not in own]
    found = _in_package(others)
    for name in others:
        if name not in found:
            also = "" if folder is None else f" and in {folder}"
            raise DataError(
                f"no task, group or tag {name!r} in lm-eval{also}",
                where=f"{key}.tasks",
                fix="`lm-eval ls tasks` lists those of the package; a folder of your own goes into include_path",
            )


def local_names(folder: Path) -> set[str]:
    """The names of the tasks, groups and tags in a folder of task files.

    Raises:
        DataError: there is no such folder or no task in it; a file is broken, hidden, or names rows elsewhere.
    """
    if not folder.is_dir():
        raise (
            no_such_folder(str(folder))
            if not folder.exists()
            else DataError("not a folder", where=str(folder), fix="name the folder that the task files are in")
        )
    names = set[str]()
    for path in _task_files(folder):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            raise DataError("a hidden task file", where=str(path), fix="rename it, or move it away")
        content = _read(path)
        names |= set(_names_in(content))
        _check_rows(content, path, folder)
    if not names:
        raise DataError(
            "no task in any *.yaml file", where=str(folder), fix="name the folder that the task files are in"
        )
    return names


def _task_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/*.yaml"))


def _names_in(content: Mapping[str, Any]) -> Iterator[str]:
    for key in _NAMES:
        value = content.get(key)
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield name


def _read(path: Path) -> dict[str, Any]:
    """A task file; a function that it names stays text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    fix = "correct the file; lm-eval's guide to new tasks says how one looks"
    try:
        content = Loader(path.read_bytes()).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = str(path) if mark is None else f"{path}:{mark.line + 1}"
        raise DataError(f"no YAML: {error.problem}", where=where, fix=fix) from None
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"no YAML: {str(error).splitlines()[0]}", where=str(path), fix=fix) from None
    if not isinstance(content, dict):
        raise DataError("not a mapping of keys to values", where=str(path), fix=fix)
    return content


def _check_rows(content: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Rows in files have to be in the folder, whose content stands for them in the key."""
    if content.get("dataset_path") not in _FILES:
        return
    options = content.get("dataset_kwargs")
    for name in _texts({key: options.get(key) for key in ("data_files", "data_dir")} if options else {}):
        if "://" in name:
            continue
        plain = Path(name.split("*")[0]) if "*" in name else Path(name)
        if not plain.exists():
            raise DataError(
                f"it names {name}, which is not there",
                where=str(path),
                fix=f"check the path, which is relative to {Path.cwd()}, or write it in full",
            )
        if not plain.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"it names {name}, which is outside of this folder, so that nobody would notice when it changes",
                where=str(path),
                fix=f"move it into {folder}",
            )


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _in_package(names: Sequence[str]) -> set[str]:
    """Those of some names that a file of the package defines. Only files in which a name occurs are read as YAML."""
    spec = importlib.util.find_spec(PACKAGE) if names else None
    if spec is None or not spec.submodule_search_locations:
        return set()
    found, wanted = set[str](), {name: name.encode() for name in names}
    for path in Path(spec.submodule_search_locations[0], "tasks").glob("**/*.yaml"):
        text = path.read_bytes()
        if any(name not in found and word in text for name, word in wanted.items()):
            with suppress(DataError):  # a template that is no task by itself
                found |= wanted.keys() & set(_names_in(_read(path)))
        if len(found) == len(wanted):
            break
    return found


# --- what a model gets


def evaluator(
    model: Any,
    tokenizer: Any,
    benchmark: LmEval,
    *,
    max_length: int,
    template_kwargs: Mapping[str, Any],
    folder: Path | None,
) -> Callable[[str], Evaluated]:
    """What evaluates a loaded model in one task or group after the other, by the package's own code.

    Each task begins with the package's own seeds, so its result does not depend on the others.

    Args:
        max_length: tokens of a request; a longer one loses its beginning.
        folder: of the user's own task files. Where all tasks are in it, nothing else is read.

    Raises:
        RecipeError: the package is not installed.
    """
    sys.dont_write_bytecode = True  # of code beside task files, whose folder stays as it is
    os.environ["DISABLE_MULTIPROC"] = "1"  # the bootstrap would start a process per core
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise RecipeError(f"the package lm-eval is not installed in full ({error})", fix=INSTALL) from error

    manager = TaskManager(include_path=folder, include_defaults=not _is_complete(benchmark.tasks, folder))
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        max_length=max_length,
        batch_size=benchmark.batch_size,
        chat_template_args=dict(template_kwargs),
    )

    def evaluate(name: str) -> Evaluated:
        if name not in manager.task_index:  # a path would be read as a file, wherever it is
            raise DataError(f"no task, group or tag {name!r}", where="tasks", fix="`lm-eval ls tasks` lists them")
        found = simple_evaluate(
            model=lm,
            tasks=[name],
            task_manager=manager,
            num_fewshot=benchmark.num_fewshot,
            limit=benchmark.limit,
            apply_chat_template=benchmark.apply_chat_template,
            bootstrap_iters=RESAMPLES,
            log_samples=True,
        )
        if found is None:
            raise StageError("lm-eval gave no results", where=f"task {name}", fix="run the stage in one process")
        return read_results(found, _cut(lm, found))

    return evaluate


def cannot_do(name: str, error: Exception) -> DataError:
    """Why the package cannot do a task, in one line."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "marked as unsafe" in reason:
        return DataError(
            "the task runs code that the model writes (unsafe_code), which spa does not do",
            where=f"task {name}",
            fix="leave it out of tasks, and run it by lm-eval itself in a place where nothing can be harmed",
        )
    return DataError(
        f"lm-eval cannot do this task: {type(error).__name__}: {reason}",
        where=f"task {name}",
        fix="correct its file, or leave it out of tasks; the log of the stage has the whole error",
    )


def _is_complete(names: Sequence[str], folder: Path | None) -> bool:
    """Whether a folder defines all these tasks, and all that its groups are made of."""
    if folder is None:
        return False
    contents = [_read(path) for path in _task_files(folder)]
    own = {name for content in contents for name in _names_in(content)}
    in_groups = {
        part
        for content in contents
        if "group" in content and isinstance(content.get("task"), list)
        for part in content["task"]
        if isinstance(part, str)
    }
    return own.issuperset(names) and own >= in_groups


def read_results(found: Mapping[str, Any], cut: int = 0) -> Evaluated:
    """What the package returned for one task or group, without what is not a finite number."""
    groups, parts_of = found.get("groups") or {}, found.get("group_subtasks") or {}
    in_groups = {part for parts in parts_of.values() for part in parts}
    results: dict[str, TaskResult] = {}
    for name, values in {**found["results"], **groups}.items():
        if metrics := _metrics(values):
            results[name] = {
                "metrics": metrics,
                "docs": found.get("n-samples", {}).get(name, {}).get("effective", 0),
                "version": found.get("versions", {}).get(name),
                "num_fewshot": found.get("n-shot", {}).get(name),
                "higher_is_better": found.get("higher_is_better", {}).get(name, {}),
                "shown": name not in in_groups or not _has_metrics(name, parts_of, groups),
                "parts": list(parts_of.get(name, ())),
            }
    samples = [_sample(name, row) for name, rows in found.get("samples", {}).items() for row in rows]
    return Evaluated(results, samples, cut)


def _has_metrics(part: str, parts_of: Mapping[str, Sequence[str]], groups: Mapping[str, Any]) -> bool:
    """Whether a group that `part` is in has a result of its own."""
    return any(part in parts and _metrics(groups.get(group, {})) for group, parts in parts_of.items())


def _metrics(values: Mapping[str, Any]) -> dict[str, Measured]:
    """The metrics of a result, by `metric,filter`, each with its standard error."""
    found: dict[str, Measured] = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr") and (number := _number(value)) is not None:
            found[key] = {"value": number, "stderr": _number(values.get(f"{name}_stderr,{kind}"))}
    return found


def _number(value: Any) -> float | None:
    """A finite number as Python's own; None for all else, such as `N/A`."""
    plain = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    return float(plain) if isinstance(plain, bool | int | float) and math.isfinite(plain) else None


def _sample(task: str, row: Mapping[str, Any]) -> SampleRow:
    numbers = {name: _number(row.get(name)) for name in row["metrics"]}
    return {
        "task": task,
        "doc_id": int(row["doc_id"]),
        "filter": str(row["filter"]),
        "target": str(row["target"]),
        "responses": [str(response) for response in row["filtered_resps"]],
        "metrics": {name: number for name, number in numbers.items() if number is not None},
    }


def _cut(lm: Any, found: Mapping[str, Any]) -> int:
    """How many requests are longer than the model's context: the package cuts off their beginning.

    A row has its requests once per filter; they are counted once.
    """
    requests = {
        (task, row["doc_id"], place): arguments
        for task, rows in found.get("samples", {}).items()
        for row in rows
        for place, arguments in enumerate(row["arguments"])
    }
    return sum(_is_cut(lm, arguments) for arguments in requests.values())


def _is_cut(lm: Any, arguments: Sequence[Any]) -> bool:
    if len(arguments) < 2 or not isinstance(arguments[0], str):
        return False  # a whole text, which is read in windows
    context, more = arguments[:2]
    if isinstance(more, str):
        return bool(len(lm.tok_encode(context + more)) > lm.max_length + 1)
    room = lm.max_length - more.get("max_gen_toks", lm.max_gen_toks)
    return bool(len(lm.tok_encode(context)) > room)
