"""Runs `spa sample`: a model's answers to a user's prompts. Importing it loads no heavy library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from spa_recipes import job_output
from spa_recipes.api import find_model
from spa_recipes.data.places import existing_path
from spa_recipes.errors import setting
from spa_recipes.plan import Plan
from spa_recipes.plan.sample_job import compile_sample_plan
from spa_recipes.recipe.job import checked, put_option
from spa_recipes.recipe.jobs import SampleJob
from spa_recipes.recipe.load import override
from spa_recipes.recipe.text import Values
from spa_recipes.run.commits import commits_of
from spa_recipes.state.stagedir import Manifest

if TYPE_CHECKING:
    from spa_recipes.data.rows import Message
    from spa_recipes.run.executors import Executors
    from spa_recipes.run.reporter import Reporter
    from spa_recipes.run.rundir import RunDir

MOST_TOKENS = 4096
"""Tokens of prompt and answer that a job gets room for unless the user says how many."""


class SampledRow(TypedDict):
    """A row of the output: a prompt and the answers to it, as `spa judge` reads them."""

    prompt: list[Message]
    responses: list[str]


def load_sample_job(options: Mapping[str, tuple[str, Any]], overrides: Sequence[str] = ()) -> SampleJob:
    """The job that options and `--set` texts ask for, with a folder in the place of a run's name.

    Args:
        options: key of the job and value by the option's name; a value that is None is left out.
        overrides: `key=value` texts, which win.

    Raises:
        RecipeError, InvalidRecipeError: values are wrong, or the run has no final model yet.
        DataError, TryAgainError: the configuration of the model cannot be read.
    """
    values = Values({})
    for option, (key, value) in options.items():
        if value is not None:
            put_option(values, key, value, option)
    override(values, overrides)
    job = checked(SampleJob, values, "spa sample")
    with setting("--prompts"):
        for part in job.prompts.parts:
            existing_path(part.name)  # before the Hub is asked about the model
    location, name = find_model(job.model.model_name_or_path, Path(job.storage.runs_dir))
    put_option(values, "model.model_name_or_path", location, "MODEL")
    if "max_length" not in job.model.model_fields_set:
        put_option(values, "model.max_length", _room(location, job.model.revision), "MODEL")
    job = checked(SampleJob, values, "spa sample")
    compute = job_output.compute_here(job.compute, job.backend)
    return job.model_copy(update={"name": job.name or name, "compute": compute})


def _room(location: str, revision: str | None) -> int:
    """Tokens of prompt and answer that the model has positions for, within bounds."""
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.run.model_preflight import context_of

    with setting("MODEL"):
        return min(MOST_TOKENS, context_of(ModelFiles(location, revision)) or MOST_TOKENS)


def sample_prompts(
    job: SampleJob, out: Path, reporter: Reporter, executors: Executors | None = None, *, overwrite: bool = False
) -> Manifest:
    """Sample answers to prompts and write them to `out`, a row for each distinct prompt.

    Until the output is written, the work stays in `OUT.spa/` beside it. The same call continues it after a stop.
    `executors` of one's own spare several jobs in a row the import of the libraries; the caller closes them.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    from spa_recipes.data.rows import write_jsonl

    run = job_output.open_for_file(out, overwrite=overwrite)
    rows, manifest = sampled(job, run, reporter, executors)
    write_jsonl(run.path / job_output.FINISHED, rows)
    job_output.deliver(run, out, overwrite=overwrite)
    return manifest


def sampled(
    job: SampleJob, run: RunDir, reporter: Reporter, executors: Executors | None = None
) -> tuple[Iterator[SampledRow], Manifest]:
    """Do what is not done yet of a job in its folder; its rows, and the manifest of the stage that sampled them."""
    plan = compile_sample_plan(job, job_output.memo_of(run), commits_of(run, ask=True))
    outcome = job_output.work(plan, run, reporter, executors)
    return _rows(plan, run), outcome.manifests["generate"]


def _rows(plan: Plan, run: RunDir) -> Iterator[SampledRow]:
    from spa_recipes.data.rows import Prompt, read_rows
    from spa_recipes.data.tables import COMPLETIONS, read_table

    def output(stage: str) -> Path:
        return run.stage_dir(plan.stage(stage), plan).output

    texts: dict[int, list[str]] = {}
    table = read_table(output("generate") / "completions.parquet", COMPLETIONS)
    for item, text in zip(table["item"].to_pylist(), table["text"].to_pylist(), strict=True):
        texts.setdefault(item, []).append(text)
    for item, prompt in enumerate(read_rows(output("prompts") / "prompts.jsonl", Prompt)):
        yield {"prompt": prompt["prompt"], "responses": texts[item]}
