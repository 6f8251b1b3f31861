"""AlpacaEval 2.0: its prompts, its files, and its rates by the code of the `alpaca_eval` package (extra `eval`)."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.data.hub import hub_error
from spa_recipes.data.places import existing_path
from spa_recipes.data.raw import read_raw
from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError, RecipeError, SpaError
from spa_recipes.recipe.schema import DatasetSource

HUB_DATASET = "tatsu-lab/alpaca_eval"
HUB_PROMPTS = "alpaca_eval_gpt4_baseline.json"
"""The 805 instructions with the baseline's answers. It is read as a file because the dataset's loader is a script,
and `datasets` no longer runs scripts."""
HUB_DIFFICULTY = "df_gamed.csv"
"""What the length-controlled rate needs: the difficulty of each instruction, and annotations of gamed answers."""
ROWS_AT_A_TIME = 32
"""Annotations that are asked for, and then saved, together. A service answers so many well within a few minutes."""
_COMPARED = ("output_1", "generator_1", "output_2", "generator_2", "annotator")


class Prompt(NamedTuple):
    """A row of the prompts file; `reference` is the baseline's answer with its generator, None where it has none."""

    instruction: str
    dataset: str
    reference: tuple[str, str] | None

    @property
    def messages(self) -> list[Message]:
        """The instruction as a conversation, unmodified."""
        return [{"role": "user", "content": self.instruction}]


def hub_file(name: str, revision: str | None = None) -> Path:
    """A file of the benchmark's dataset on the Hub, from the cache if it is there; of its newest commit for None.

    Raises:
        DataError: it is not there, or the environment forbids the network. TryAgainError: the network failed.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_DATASET, name, revision=revision, repo_type="dataset"))
    except Exception as error:  # the Hub client and its network library raise errors of any kind
        raise hub_error("dataset", f"{HUB_DATASET}/{name}", error) from error


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: the benchmark's JSON, or JSON Lines, Parquet or CSV with the same columns.

    Raises:
        DataError: the file is missing or empty, or a row has no instruction.
    """
    prompts = []
    for raw in read_raw(DatasetSource(source=str(path))):
        if raw.error is not None:
            raise raw.error
        assert raw.value is not None
        instruction = raw.value.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError("no text in the column `instruction`", where=raw.where, fix="give AlpacaEval's own form")
        output, generator = raw.value.get("output"), raw.value.get("generator")
        answered = isinstance(output, str) and isinstance(generator, str)
        dataset = raw.value.get("dataset")
        prompts.append(
            Prompt(
                instruction,
                dataset if isinstance(dataset, str) else path.stem,
                (str(output), str(generator)) if answered else None,
            )
        )
    if not prompts:
        raise DataError("no rows", where=str(path), fix="give a file with AlpacaEval's instructions")
    return prompts


def model_outputs(prompts: Sequence[Prompt], answers: Sequence[str], generator: str) -> list[dict[str, str]]:
    """The content of `model_outputs.json`; white space around an answer is removed, as in the package's own runs."""
    return [
        {
            "dataset": prompt.dataset,
            "instruction": prompt.instruction,
            "output": answer.strip(),
            "generator": generator,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def reference_outputs(prompts: Sequence[Prompt], where: str) -> list[dict[str, str]]:
    """The baseline's answers in the same form.

    Raises:
        DataError: the prompts file has none.
    """
    missing = [row for row, prompt in enumerate(prompts, start=1) if prompt.reference is None]
    if missing:
        raise DataError(
            f"row {missing[0]} has no `output` and `generator`, the answer that an annotator compares with",
            where=where,
            fix=f"use {HUB_PROMPTS} of the dataset {HUB_DATASET}, or write the answers only (no annotator)",
        )
    return [
        {"dataset": p.dataset, "instruction": p.instruction, "output": p.reference[0], "generator": p.reference[1]}
        for p in prompts
        if p.reference is not None
    ]


# --- annotations


def annotate(
    outputs: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, str]],
    annotator: str,
    *,
    folder: Path,
    cache: Path,
    on_progress: Callable[[int, int], None],
) -> Path:
    """Let the package's annotator compare the answers; returns its `annotations.json` in `folder/annotator`.

    Args:
        cache: file in which the package keeps finished annotations, so that nothing is paid for twice.
        on_progress: is called with the number of finished annotations and of all of them.

    Raises:
        RecipeError: the package is not installed.
    """
    package = _package()

    class Annotator(package.annotators.PairwiseAnnotator):  # type: ignore[misc,name-defined]
        def save(self, *arguments: Any, **options: Any) -> None:
            super().save(*arguments, **options)
            on_progress(min(len(self.df_annotations), len(outputs)), len(outputs))

    with _quiet():
        package.evaluate(
            model_outputs=[dict(row) for row in outputs],
            reference_outputs=[dict(row) for row in references],
            annotators_config=annotator,
            output_path=folder,
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            is_cache_leaderboard=False,
            fn_metric="get_winrate",
            sort_by="win_rate",
            caching_path=cache,
            annotation_kwargs={"chunksize": ROWS_AT_A_TIME},
            Annotator=Annotator,
        )
    return folder / annotator / "annotations.json"


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """An annotation file of the package: a JSON array with a `preference` of 1 (baseline) to 2 (model) per row.

    Raises:
        DataError: it is missing or not such a file.
    """
    existing_path(str(path))
    rows = list(read_raw(DatasetSource(source=str(path))))
    if not rows:
        raise DataError("no annotations", where=str(path), fix="give an annotations.json of the alpaca_eval package")
    annotations = []
    for raw in rows:
        if raw.error is not None:
            raise raw.error
        assert raw.value is not None
        value = raw.value.get("preference", "")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(
                f"no number in `preference` but {value!r}" if value != "" else "no column `preference`",
                where=raw.where,
                fix="give an annotations.json of the alpaca_eval package",
            )
        annotations.append(raw.value)
    return annotations


class Scores(NamedTuple):
    """The package's figures (rates in percent), and why a rate is missing; empty if none is."""

    figures: dict[str, float]
    missing: str


def score(annotations: Sequence[Mapping[str, Any]], where: str) -> Scores:
    """Win rate and length-controlled win rate of annotations, by the package's own functions.

    The second one needs a file from the Hub. Without that file, only the first one is given.

    Raises:
        RecipeError: the package is not installed. DataError: no row has a preference.
    """
    package = _package()
    import pandas

    frame = pandas.DataFrame.from_records([dict(row) for row in annotations])
    with _quiet():
        figures = _plain(package.metrics.get_winrate(frame))
        if not figures["n_total"]:
            raise DataError("no row has a preference", where=where, fix="annotate again")
        missing = _length_control_problem(annotations)
        if not missing:
            figures |= _plain(package.metrics.get_length_controlled_winrate(frame, save_weights_dir=None))
    return Scores(figures, missing)


def _length_control_problem(annotations: Sequence[Mapping[str, Any]]) -> str:
    """Why there can be no length-controlled rate; empty if there can be one."""
    lacking = [name for name in _COMPARED if any(name not in row for row in annotations)]
    if lacking:
        return f"no length-controlled win rate: the annotations have no column {lacking[0]}"
    if len({row["generator_2"] for row in annotations}) > 1:
        return "no length-controlled win rate: the annotations are of several models (generator_2)"
    try:
        difficulty = hub_file(HUB_DIFFICULTY)
    except SpaError as error:
        return (
            f"no length-controlled win rate: it needs {HUB_DIFFICULTY} of the dataset {HUB_DATASET} ({error.what}); "
            f"cache it once with `hf download {HUB_DATASET} {HUB_DIFFICULTY} --repo-type dataset`, then score "
            "annotations.json with `spa evaluate --benchmark alpaca_eval --annotations FILE`"
        )
    import pandas

    wanted = pandas.read_csv(difficulty)["index"].nunique()
    if len(annotations) != wanted:  # the package finds the difficulty of an instruction by its position
        return (
            f"no length-controlled win rate: it needs the annotations of all {wanted} instructions in their order, and "
            f"there are {len(annotations)}"
        )
    return ""


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures as Python numbers; NaN is left out, such as the standard error of a single annotation."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in figures.items()}
    return {name: value for name, value in plain.items() if math.isfinite(value)}


# --- the package


def _package() -> Any:
    with _quiet():
        try:
            import alpaca_eval
        except ImportError as error:
            raise not_installed(str(error)) from error
    return alpaca_eval


def not_installed(reason: str = "") -> RecipeError:
    """The error for a missing package."""
    return RecipeError(
        "the package alpaca_eval is not installed" + (f" in full ({reason})" if reason and is_installed() else ""),
        fix="pip install 'spa-recipes[eval]'",
    )


def is_installed() -> bool:
    """Whether the package is there, without importing it."""
    return find_spec("alpaca_eval") is not None


def check_annotator(name: str) -> None:
    """Check that an annotator can run: the package, its configuration, the key of its service. Imports nothing heavy.

    Raises:
        RecipeError: one of these is missing.
    """
    import yaml

    spec = find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise not_installed()
    folder = Path(spec.submodule_search_locations[0]) / "evaluators_configs"
    config = folder / name / "configs.yaml"
    if not config.is_file():
        raise RecipeError(
            f"the alpaca_eval package has no annotator {name!r}",
            where=str(folder),
            fix="name a folder of these, e.g. weighted_alpaca_eval_gpt4_turbo",
        )
    functions = {str(entry.get("fn_completions")) for entry in yaml.safe_load(config.read_text()).values()}
    for function, (variables, file_variable) in _KEYS.items():
        clients = os.environ.get(file_variable, "") if file_variable else ""
        if function in functions and not any(map(os.environ.get, variables)) and not Path(clients or "/").is_file():
            raise RecipeError(
                f"the annotator {name} needs the environment variable {variables[0]}, which is not set",
                fix=f"export {variables[0]}=..., or score annotations that are there with --annotations",
            )


_KEYS = {
    "openai_completions": (("OPENAI_API_KEY", "OPENAI_API_KEYS"), "OPENAI_CLIENT_CONFIG_PATH"),
    "anthropic_completions": (("ANTHROPIC_API_KEY",), "ANTHROPIC_CLIENT_CONFIG_PATH"),
    "cohere_completions": (("COHERE_API_KEY",), ""),
    "google_completions": (("GOOGLE_API_KEY",), ""),
}
"""For each function of the package: the variables that may hold the key, and the variable of a file with keys."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the package's libraries; a user can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
