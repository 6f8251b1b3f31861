"""The `spa` command. Commands import what they need when they run, so that `--help` answers at once."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from spa_recipes import __version__
from spa_recipes.cli.examples import EVALUATE
from spa_recipes.errors import RecipeError, SpaError

app = typer.Typer(
    name="spa",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Align a language model with about 3 % of the preference labels: one recipe, one command.\n\n"
    "First time here? `spa run recipes/quickstart.yaml` (two minutes on a laptop, nothing is downloaded).",
)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. `--set noise.alpha=0`. May be repeated."),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run; default: `runs/<name>`.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of all runs.")]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).", show_default=False)]
Accept = Annotated[
    bool, typer.Option("--accept", help="The recipe changed since the run was started: redo the stages it affects.")
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="STAGE",
        help="Do this stage and the stages that it needs, no others, e.g. `judge-1` (see `spa plan`).",
    ),
]


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"spa-recipes {__version__}")
        raise typer.Exit


@app.command(
    epilog="Examples:\n\n`spa run recipes/quickstart.yaml`\n\n"
    "`spa run recipes/ultrafeedback_3p3.yaml --set data.seed_labels=500 --run-dir runs/small-seed`\n\n"
    "`spa run my.yaml --until judge-1`  (look at the labels before training on them)"
)
def run(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: Set = None,
    until: Until = None,
    accept: Accept = False,
) -> None:
    """Run a recipe: train on the seed labels, then generate, judge and refine. Goes on where an earlier run stopped."""
    from spa_recipes import api
    from spa_recipes.cli.progress import RunReporter
    from spa_recipes.cli.summary import print_summary

    prepared = api.prepare(recipe, overrides=set_ or [], run_dir=run_dir)
    with RunReporter(prepared) as reporter:
        outcome = api.run_recipe(prepared, reporter, until=until, accept=accept)
    print_summary(prepared, outcome)


@app.command(epilog="Examples:\n\n`spa resume`  (the newest unfinished run)\n\n`spa resume quickstart`")
def resume(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name or folder of a run.", show_default=False)
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    until: Until = None,
    accept: Accept = False,
) -> None:
    """Go on with a run from whatever is on disk: finished stages are reused, a stage in the middle continues."""
    from spa_recipes import api
    from spa_recipes.cli.progress import RunReporter
    from spa_recipes.cli.summary import print_summary

    prepared = api.prepare_resume(run, runs_dir)
    with RunReporter(prepared) as reporter:
        outcome = api.run_recipe(prepared, reporter, until=until, accept=accept)
    print_summary(prepared, outcome)


@app.command(
    epilog="Examples:\n\n`spa judge --policy runs/quickstart/final --reference my-sft-model --pairs pairs.jsonl --out "
    "labelled.jsonl`\n\nAccepted: JSONL, JSON, Parquet, CSV, a save_to_disk folder or a Hub id, with `prompt, chosen, "
    "rejected`, `prompt, response_a, response_b`, `prompt, responses` and the other common forms."
)
def judge(
    policy: Annotated[str, typer.Option(help="The model that judges: folder or Hub id.", show_default=False)],
    reference: Annotated[str, typer.Option(help="What it was trained from: folder or Hub id.", show_default=False)],
    pairs: Annotated[str, typer.Option(help="Answers to label: file, folder or Hub id.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="JSONL file of labelled pairs, usable by TRL as it is.", show_default=False)
    ],
    beta: Annotated[float, typer.Option(help="Scale of the implicit reward.")] = 0.1,
    length_penalty: Annotated[
        str, typer.Option(help="Taken off the reward per token: a number, or balanced (equal mean lengths).")
    ] = "0",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and response.")] = 2048,
    max_prompt_length: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 1024,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompt.")] = None,
    chosen_column: Annotated[str | None, typer.Option(help="Column of the chosen response.")] = None,
    rejected_column: Annotated[str | None, typer.Option(help="Column of the rejected response.")] = None,
    on_bad_row: Annotated[str, typer.Option(help="error, or skip (and count).")] = "error",
    seed: Annotated[int, typer.Option(help="Seed of the rule that breaks ties.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the models.")] = False,
    chat_template: Annotated[str | None, typer.Option(help="Jinja file, for models without a template.")] = None,
) -> None:
    """Label answers that you already have, with the implicit reward of a policy against its reference."""
    from spa_recipes import api
    from spa_recipes.cli.progress import PlainReporter
    from spa_recipes.cli.summary import print_judged

    request = api.JudgeRequest(
        policy=policy,
        reference=reference,
        pairs=pairs,
        out=out,
        beta=beta,
        length_penalty=length_penalty,
        dtype=dtype,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        columns={"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column},
        split=split,
        on_bad_row=on_bad_row,
        seed=seed,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
    )
    with PlainReporter() as reporter:
        manifest = api.judge_pairs(request, reporter)
    print_judged(request.out, manifest)


@app.command(epilog=EVALUATE)
def evaluate(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL | JOB.yaml]",
            help="Folder, Hub id, or name of a finished run; or a job file.",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="alpaca_eval, mt_bench or pairwise.")] = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="pairwise: the model to compare with.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts to answer. alpaca_eval does without: it takes the Hub's 805."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the results; default: `evaluations/NAME-BENCHMARK`.")
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="alpaca_eval: score annotations that are there; no MODEL and no key."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Engine that samples: transformers (default) or vllm.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the job, e.g. `--set model.max_length=2048`."),
    ] = None,
) -> None:
    """Run one of the field's benchmarks for a model: AlpacaEval 2.0, MT-Bench, or a win rate against another model.

    Goes on where a stopped call was when it is made again.
    """
    from spa_recipes.cli.evaluate import print_scores, run_job

    options = {"benchmark": benchmark, "against": against, "prompts": prompts, "out": out, "backend": backend}
    if annotations is not None:
        print_scores(annotations, subject, options, set_ or [])
    else:
        run_job(subject, options, set_ or [])


@app.command(epilog="Example:\n\n`spa validate recipes/*.yaml`")
def validate(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)],
    set_: Set = None,
) -> None:
    """Check recipes without running anything. Says every problem with file, line and remedy."""
    from spa_recipes.cli.terminal import print_errors
    from spa_recipes.recipe.load import load_recipe

    failed = False
    for path in recipes:
        try:
            recipe = load_recipe(path, set_ or []).recipe
            typer.echo(f"{path}: ok ({recipe.name}, {recipe.iterations} iterations)")
        except RecipeError as error:
            failed = True
            print_errors(error)
    if failed:
        raise typer.Exit(RecipeError.exit_code)


@app.command(
    epilog="Examples:\n\n`spa plan recipes/ultrafeedback_3p3.yaml`\n\n"
    "`spa plan my.yaml --set sampling.n=4 --diff`  (which stages would be redone, and why)\n\n"
    "`spa plan my.yaml --resolved > whole.yaml`  (one recipe that extends nothing)"
)
def plan(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: Set = None,
    diff: Annotated[bool, typer.Option("--diff", help="Say field by field why a stage is stale.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    whole: Annotated[
        bool, typer.Option("--resolved", help="Print the whole recipe instead: what it extends, and all defaults.")
    ] = False,
) -> None:
    """Show the stages of a recipe: inputs, keys, what is there already, rows, tokens, memory and disk."""
    from spa_recipes import api
    from spa_recipes.cli.plan import print_plan, print_plan_json, print_recipe

    prepared = api.prepare(recipe, overrides=set_ or [], run_dir=run_dir)
    if whole:
        print_recipe(prepared)
    elif json_:
        print_plan_json(prepared)
    else:
        print_plan(prepared, diff=diff)


@app.command(epilog="Examples:\n\n`spa status`\n\n`spa status quickstart`")
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name or folder of a run.", show_default=False)
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """List the runs, or show the stages and figures of one."""
    from spa_recipes.cli.status import print_run_status, print_runs

    if run is None:
        print_runs(runs_dir)
    else:
        print_run_status(run, runs_dir)


@app.command(
    epilog="Examples:\n\n`spa gc`  (says what it would delete)\n\n`spa gc --yes`\n\n"
    "`spa gc quickstart --models --yes`  (of a finished run, keep only the weights of pi_init and the final model)"
)
def gc(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Name or folder of a run; all runs without it.", show_default=False),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete it.")] = False,
    models: Annotated[
        bool,
        typer.Option(
            "--models",
            help="Also the weights of the policies before the final one, in finished runs. They are trained again if a "
            "changed recipe or another run needs them.",
        ),
    ] = False,
) -> None:
    """Say what the runs no longer need, and delete it with --yes.

    Stages that a changed recipe replaced, damaged ones that were set aside, unfinished output, temporary files, and
    progress of finished stages. A run that a process works on is skipped.
    """
    import shlex

    from spa_recipes import api
    from spa_recipes.cli.gc import print_sweeps

    sweeps = api.collect_garbage(run, runs_dir, models=models, delete=yes)
    again = shlex.join(["spa", *sys.argv[1:], "--yes"])
    print_sweeps(sweeps, runs_dir, deleted=yes, again=again)


@app.command(epilog="Examples:\n\n`spa report quickstart`\n\n`spa report runs/my-run --out my-run.html`")
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.", show_default=False)],
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default: `report.html` in the run's folder.")
    ] = None,
) -> None:
    """Write one HTML file with the figures, charts, doubted pairs and sample answers of a run."""
    from spa_recipes import api
    from spa_recipes.report.page import write_report

    prepared = api.prepare_resume(run, runs_dir)
    path = out or prepared.run.path / "report.html"
    write_report(prepared.plan, prepared.run, prepared.run.manifests(prepared.plan), path)
    typer.echo(f"report: {path}")


@app.command(
    epilog="Examples:\n\n`spa push quickstart --repo-id you/my-model --dry-run`  (says what would go)\n\n"
    "`spa push quickstart --repo-id you/my-model --private`"
)
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.", show_default=False)],
    repo_id: Annotated[str, typer.Option(help="Repository on the Hub, as you/name; made if it is new.")],
    runs_dir: RunsDir = Path("runs"),
    private: Annotated[bool, typer.Option("--private", help="Only its owners may see the repository.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to write to; made if it is new.")] = "main",
    commit_message: Annotated[str | None, typer.Option(help="Default: the run and its last stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and upload nothing.")] = False,
) -> None:
    """Upload the final model of a finished run to the Hub, with its model card and its recipe.

    Needs HF_TOKEN or `hf auth login`. Everything goes in one commit, in which weights of an earlier upload that the
    model does not have any more are deleted.
    """
    from spa_recipes.cli.push import push_and_print
    from spa_recipes.publish import Target

    push_and_print(run, runs_dir, Target(repo_id, private, revision, commit_message), dry_run=dry_run)


@app.command(
    epilog="Examples:\n\n`spa compare dpo_3p3 ultrafeedback_3p3`\n\n`spa compare quickstart --json > figures.json`"
)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.", show_default=False)],
    runs_dir: RunsDir = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Put runs side by side: labels, steps, win rates, lengths and the judge's accuracy of every policy."""
    from spa_recipes.cli.compare import print_comparison

    print_comparison(runs, runs_dir, as_json=json_)


@app.command(epilog="Example:\n\n`spa schema > recipe.schema.json`, then in VS Code: `yaml.schemas`.")
def schema(
    job: Annotated[bool, typer.Option("--job", help="That of jobs of `spa evaluate` instead.")] = False,
) -> None:
    """Print the JSON schema of recipes, so that an editor completes and checks them."""
    import json

    from spa_recipes.recipe.job import job_schema
    from spa_recipes.recipe.load import recipe_schema

    typer.echo(json.dumps(job_schema() if job else recipe_schema(), indent=2))


@app.command(epilog="Example:\n\n`spa init my.yaml`, edit, `spa validate my.yaml`, `spa run my.yaml`")
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented starter recipe."""
    from spa_recipes.recipe.starter import starter_recipe
    from spa_recipes.state import atomic

    if path.exists():
        raise RecipeError("the file is there already", where=str(path), fix="choose another name")
    if not path.parent.is_dir():
        raise RecipeError("no such folder", where=str(path.parent), fix="make it first")
    atomic.write_text(path, starter_recipe())
    typer.echo(f"wrote {path}; next: edit it, then `spa validate {path}` and `spa plan {path}`")


@app.command(epilog="Example:\n\n`spa doctor`")
def doctor() -> None:
    """Say what this machine can do: versions, devices, offline mode, and what is missing."""
    from spa_recipes.cli.doctor import print_report

    print_report()


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Turn Ctrl-C and SIGTERM into an exit that unwinds the stack, so that stage processes are ended on the way."""
    raise SystemExit(128 + signum)


def main() -> None:
    """Entry point: one line for every error, with its exit code; `--debug` anywhere shows tracebacks."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except SystemExit as leaving:
        if leaving.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            typer.echo("stopped; finished work is kept: `spa resume`, or the same command again, continues", err=True)
        raise
    except SpaError as error:
        if debug:
            raise
        from spa_recipes.cli.terminal import print_errors

        print_errors(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        typer.echo(f"error: {' '.join(reason.split())}; --debug shows where", err=True)
        sys.exit(1)
