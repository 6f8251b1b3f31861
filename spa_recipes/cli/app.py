"""The `spa` command. Commands import what they need when they run, so that `--help` answers at once."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.models import CommandInfo

from spa_recipes import __version__
from spa_recipes.cli import metadata
from spa_recipes.cli.chat import chat
from spa_recipes.cli.cluster import cancel, submit
from spa_recipes.cli.examples import CANCEL, CHAT, EVALUATE, EXPORT, JUDGE, LABEL, SAMPLE, SUBMIT, SWEEP, examples
from spa_recipes.cli.export import export
from spa_recipes.cli.judge import label_pairs
from spa_recipes.cli.label import label
from spa_recipes.cli.options import (
    Accept,
    MaybeRun,
    RecipeArgument,
    Recipes,
    RunDirOption,
    RunName,
    RunsDir,
    Set,
    Trust,
    Until,
)
from spa_recipes.cli.recipes import recipes_app
from spa_recipes.cli.sample import sample
from spa_recipes.cli.signals import stop_on_signals
from spa_recipes.cli.sweep import sweep_recipes
from spa_recipes.errors import RecipeError, SpaError, system_error
from spa_recipes.redaction import redacted

app = typer.Typer(
    name="spa",
    rich_markup_mode=None,  # importing rich takes as long as everything else in `spa --help` together
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Align a language model with about 3 % of the preference labels: one recipe, one command.\n\n"
    "First time here? `spa run quickstart` (two minutes on a laptop, nothing is downloaded).",
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"spa-recipes {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(RecipeError.exit_code)


@app.command(
    epilog=examples(
        "spa run quickstart",
        "spa run ultrafeedback_3p3 --set data.seed_labels=500 --run-dir runs/small-seed",
        "spa run my.yaml --until judge-1  # look at the labels before training on them",
        "spa run my.yaml --rehearse  # minutes, before a run of hours",
        "spa run my.yaml --with-control  # did it help? also on a run that is finished",
    )
)
def run(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: Set = None,
    until: Until = None,
    accept: Accept = False,
    trust: Trust = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Take 32 rows through every stage, in a folder of its own, and say what the full run will take.",
        ),
    ] = False,
    with_control: Annotated[
        bool,
        typer.Option(
            "--with-control",
            help="Also train DPO on the seed labels alone, with as many steps, and say how much SPA is better.",
        ),
    ] = False,
) -> None:
    """Run a recipe, or continue a run that stopped.

    A run trains on the seed labels; then each iteration generates answers, judges them and refines the model.
    """
    from spa_recipes import api
    from spa_recipes.cli.consent import consent_of
    from spa_recipes.cli.progress import RunReporter
    from spa_recipes.cli.summary import print_summary

    overrides = [*(set_ or []), *(["control=true"] if with_control else [])]
    prepared = api.prepare(recipe, overrides=overrides, run_dir=run_dir, afresh=True)
    if rehearse:
        from spa_recipes.cli.rehearsal import rehearse_run

        rehearse_run(prepared, overrides=overrides, until=until, trust=trust)
        return
    with RunReporter(prepared) as reporter:
        consent = consent_of(reporter, trust=trust, overrides=overrides)
        outcome = api.run_recipe(prepared, reporter, until=until, accept=accept, consent=consent)
    print_summary(prepared, outcome)


@app.command(
    epilog=examples(
        "spa resume  # the newest unfinished run",
        "spa resume quickstart --set refine.per_device_train_batch_size=1",
    )
)
def resume(
    run: MaybeRun = None,
    runs_dir: RunsDir = Path("runs"),
    set_: Set = None,
    until: Until = None,
    accept: Accept = False,
    trust: Trust = False,
) -> None:
    """Continue a run from what is on disk.

    Finished stages are reused; an unfinished one continues. The recipe is that of the run; --set changes it.
    """
    from spa_recipes import api
    from spa_recipes.cli.consent import consent_of
    from spa_recipes.cli.progress import RunReporter
    from spa_recipes.cli.resume import choose_run, keeps_what_is_done, tell_changed_file, with_labels
    from spa_recipes.cli.summary import print_summary

    run = run or choose_run(runs_dir)
    labels = with_labels(api.find_run(run, runs_dir), set_ or [])
    prepared = api.prepare_resume(run, runs_dir, overrides=[*labels, *(set_ or [])], afresh=True)
    tell_changed_file(prepared.run)
    accept = accept or (bool(labels) and keeps_what_is_done(prepared))
    with RunReporter(prepared) as reporter:
        consent = consent_of(reporter, trust=trust, overrides=set_ or [])
        outcome = api.run_recipe(prepared, reporter, until=until, accept=accept, consent=consent)
    print_summary(prepared, outcome)


app.command(epilog=SUBMIT)(submit)
app.command(epilog=CANCEL)(cancel)
app.command(name="judge", epilog=JUDGE)(label_pairs)
app.command(epilog=SAMPLE)(sample)
app.command(epilog=LABEL)(label)
app.command(epilog=CHAT)(chat)
app.command(epilog=EXPORT)(export)
app.command(name="sweep", epilog=SWEEP)(sweep_recipes)


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
    benchmark: Annotated[str | None, typer.Option(help="alpaca_eval, mt_bench, pairwise or lm_eval.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="pairwise, lm_eval: the model to compare with.")
    ] = None,
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
    trust: Trust = False,
) -> None:
    """Run AlpacaEval 2.0, MT-Bench, tasks of lm-eval or a win rate.

    The same command again continues a call that was stopped.
    """
    from spa_recipes.cli.evaluate import print_scores, run_job

    options = {"benchmark": benchmark, "against": against, "prompts": prompts, "out": out, "backend": backend}
    if annotations is not None:
        print_scores(annotations, subject, options, set_ or [])
    else:
        run_job(subject, options, set_ or [], trust=trust)


@app.command(epilog=examples("spa validate my.yaml", "spa validate *.yaml"))
def validate(
    recipes: Recipes,
    set_: Set = None,
    show_example: Annotated[
        bool,
        typer.Option(
            "--show-example", help="Print a pair as the model gets it: text, token ids, where the response starts."
        ),
    ] = False,
) -> None:
    """Check recipes and local data without running anything.

    Every problem is named with its file, line and remedy. Local data up to 100 MB are read whole.
    """
    from spa_recipes.cli.validate import validate_recipes

    if code := validate_recipes(recipes, set_ or [], show_example=show_example):
        raise typer.Exit(code)


@app.command(
    epilog=examples("spa data pairs.jsonl", "spa data pairs.csv --set columns.prompt=question --model my-model")
)
def data(
    source: Annotated[str, typer.Argument(metavar="FILE", help="File, folder or Hub id.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Render with its chat template, and count its tokens.")] = None,
    as_: Annotated[str | None, typer.Option("--as", help="pairs, conversations or prompts.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of a dataset, e.g. `--set on_bad_row=skip`."),
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="Jinja file in place of the model's own template.")] = None,
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set a variable of the chat template, e.g. `enable_thinking=false`."),
    ] = None,
) -> None:
    """Say what is in a dataset, and how it would be read.

    Form and columns, three rows as a model gets them, lengths, what is skipped, and the lines for a recipe.
    """
    from spa_recipes.cli.data import show

    show(source, set_ or [], as_, model, chat_template, chat_template_kwargs or [])


@app.command(
    epilog=examples(
        "spa plan ultrafeedback_3p3",
        "spa plan my.yaml --set sampling.n=4 --diff  # which stages would be redone, and why",
        "spa plan my.yaml --resolved > whole.yaml  # one recipe that extends nothing",
    )
)
def plan(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: Set = None,
    diff: Annotated[bool, typer.Option("--diff", help="Say field by field why a stage is stale.")] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print all of every stage: inputs, key, what it waits for and needs."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    whole: Annotated[
        bool,
        typer.Option("--resolved", help="Print the whole recipe instead, with all that it extends and all defaults."),
    ] = False,
) -> None:
    """Show the stages of a recipe and what they need.

    A line for each stage, with whether its result exists, rows, optimizer steps, tokens, memory and disk; then totals.
    """
    from spa_recipes import api
    from spa_recipes.cli.plan import print_plan, print_plan_json, print_recipe

    prepared = api.prepare(recipe, overrides=set_ or [], run_dir=run_dir)
    if whole:
        print_recipe(prepared)
    elif json_:
        print_plan_json(prepared)
    else:
        print_plan(prepared, diff=diff, verbose=verbose, overrides=set_ or [])


@app.command(epilog=examples("spa status", "spa status quickstart"))
def status(
    run: MaybeRun = None,
    runs_dir: RunsDir = Path("runs"),
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Tell how far a running run is, until it ends.")
    ] = False,
) -> None:
    """List the runs, or show the stages and figures of one."""
    from spa_recipes.cli.status import follow, print_run_status, print_runs

    if run is None and follow_:
        raise RecipeError("--follow needs the name of a run", fix="`spa status RUN --follow`")
    if run is None:
        print_runs(runs_dir)
    elif follow_:
        follow(run, runs_dir)
    else:
        print_run_status(run, runs_dir)


@app.command(
    epilog=examples(
        "spa gc  # says what it would delete",
        "spa gc --yes",
        "spa gc quickstart --models --yes  # keeps only the weights of pi_init and of the final model",
    )
)
def gc(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Name or folder of a run; default: all runs.", show_default=False),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete it.")] = False,
    models: Annotated[
        bool,
        typer.Option(
            "--models",
            help="In finished runs, also delete the weights of the policies before the final one, of members and of "
            "the control. They are trained again if a changed recipe or another run needs them.",
        ),
    ] = False,
) -> None:
    """Say what the runs no longer need; delete it with --yes.

    That is: stages that a changed recipe replaced, damaged stages that were set aside, unfinished output, temporary
    files, and the progress of finished stages. A run that a process works on is skipped.
    """
    import shlex

    from spa_recipes import api
    from spa_recipes.cli.gc import print_sweeps

    sweeps = api.collect_garbage(run, runs_dir, models=models, delete=yes)
    again = shlex.join(["spa", *sys.argv[1:], "--yes"])
    print_sweeps(sweeps, runs_dir, deleted=yes, again=again)
    for failure in (sweep.failed for sweep in sweeps if sweep.failed is not None):
        raise failure


@app.command(epilog=examples("spa report quickstart", "spa report runs/my-run --out my-run.html"))
def report(
    run: RunName,
    runs_dir: RunsDir = Path("runs"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; default: `report.html` in the run's folder.")
    ] = None,
) -> None:
    """Write an HTML report of a run.

    It is one file with the figures, charts, doubted pairs and sample answers.
    """
    from spa_recipes import api
    from spa_recipes.cli.terminal import say, yellow
    from spa_recipes.report.page import write_report
    from spa_recipes.run.intact import remarks

    prepared = api.prepare_resume(run, runs_dir)
    path = out or prepared.run.path / "report.html"
    write_report(prepared.plan, prepared.run, prepared.run.manifests(prepared.plan), path)
    for line in remarks(prepared.run):
        say(yellow(line))
    say(f"report: {path}")


@app.command(
    epilog=examples(
        "spa push quickstart --repo-id you/my-model --dry-run  # says what it would upload",
        "spa push quickstart --repo-id you/my-model --private",
    )
)
def push(
    run: RunName,
    repo_id: Annotated[str, typer.Option(help="Repository on the Hub, such as you/name; created if new.")],
    runs_dir: RunsDir = Path("runs"),
    private: Annotated[bool, typer.Option("--private", help="Let only the owners see the repository.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to write to; created if new.")] = "main",
    commit_message: Annotated[str | None, typer.Option(help="Default: the run and its last stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")] = False,
) -> None:
    """Upload the final model of a finished run to the Hub.

    The model card and the recipe go with it. It needs HF_TOKEN or `hf auth login`. Everything goes in one commit, which
    also deletes weights of an earlier upload that the model no longer has.
    """
    from spa_recipes.cli.push import push_and_print
    from spa_recipes.publish import Target

    push_and_print(run, runs_dir, Target(repo_id, private, revision, commit_message), dry_run=dry_run)


@app.command(epilog=examples("spa compare dpo_3p3 ultrafeedback_3p3", "spa compare quickstart --json > figures.json"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or folders of runs.", show_default=False)],
    runs_dir: RunsDir = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare the policies of runs.

    A line per policy: labels, steps, win rates, lengths and the accuracy of the judge.
    """
    from spa_recipes.cli.compare import print_comparison

    print_comparison(runs, runs_dir, as_json=json_)


@app.command(
    epilog=examples("spa schema > recipe.schema.json  # then name it under yaml.schemas in the settings of VS Code")
)
def schema(
    job: Annotated[bool, typer.Option("--job", help="Print that of the jobs of `spa evaluate` instead.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Print that of the files of `spa sweep` instead.")] = False,
) -> None:
    """Print the JSON schema of recipes.

    An editor that knows it completes and checks recipes.
    """
    from spa_recipes.cli.terminal import say_json
    from spa_recipes.recipe.job import job_schema
    from spa_recipes.recipe.load import recipe_schema
    from spa_recipes.recipe.sweep import sweep_schema

    say_json(sweep_schema() if sweep else job_schema() if job else recipe_schema())


@app.command(
    epilog=examples(
        "spa init my.yaml --model models/my-model --pairs pairs.jsonl",
        "spa init my.yaml --model models/my-model --pairs pairs.jsonl --prompts more.jsonl",
        "spa init my.yaml  # then edit it",
    )
)
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="The model to align: folder or Hub id.")] = None,
    pairs: Annotated[str | None, typer.Option(metavar="FILE", help="Your labelled pairs.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="More prompts, without labels, which the model answers.")
    ] = None,
) -> None:
    """Write a recipe that fits your model and data, or a starter.

    With --model and --pairs it counts rows and tokens, looks at the model and at this machine, and writes lengths,
    split, batch sizes and learning rates that fit, each with its reason.
    """
    from spa_recipes.cli.init import write_fitted, write_starter

    if model is not None and pairs is not None:
        write_fitted(path, model, pairs, prompts)
    elif model is None and pairs is None and prompts is None:
        write_starter(path)
    else:
        missing = "--model" if model is None else "--pairs"
        raise RecipeError(f"{missing} is missing", fix="give both --model and --pairs, or none for a starter")


@app.command(epilog=examples("spa doctor"))
def doctor() -> None:
    """Say what this machine can do, and what is missing.

    It lists versions, devices, the state of the Hub and the free disk. It exits with 1 if something is wrong. What is
    optional and not installed is not wrong.
    """
    from spa_recipes.cli.doctor import print_report

    raise typer.Exit(print_report())


def _start_fast() -> None:
    """Leave out work at start that no command needs."""
    # pydantic would read the metadata of every installed package to look for plugins, which nothing here has a use for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    metadata.read_when_called()  # pydantic imports it for them
    # typer works out the options of every command that it knows, of which this call needs those of one.
    named = [command for command in _COMMANDS if _name(command) in sys.argv[1:2]]
    app.registered_commands = named or [*_COMMANDS]


app.add_typer(recipes_app, name="recipes")
_COMMANDS = tuple(app.registered_commands)


def _name(command: CommandInfo) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))


def main() -> None:
    """Run the command; an error prints one line and gives its exit code, and `--debug` anywhere shows the traceback."""
    from spa_recipes.cli.terminal import open_closed_streams, print_errors, say

    _start_fast()
    stop_on_signals()
    open_closed_streams()
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except SystemExit as leaving:
        if leaving.code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
            again = "`spa resume`, or the same command again," if sys.argv[1:2] == ["run"] else "the same command again"
            say(f"stopped; finished work is kept: {again} continues", err=True)
        raise
    except Exception as error:
        if debug:
            say(*redacted(traceback.format_exc()).splitlines(), err=True)
            sys.exit(1)
        if isinstance(error, OSError) and error.errno is not None:
            error = system_error(error)
        if isinstance(error, SpaError):
            print_errors(error)
            sys.exit(error.exit_code)
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        say(f"error: {' '.join(redacted(reason).split())}; --debug shows where", err=True)
        sys.exit(1)
