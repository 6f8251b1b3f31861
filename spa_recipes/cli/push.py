"""What `spa push` prints."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from spa_recipes import api
from spa_recipes.estimates import human_bytes
from spa_recipes.plan import CARD
from spa_recipes.publish import MAIN, Shipment, Target, check_repo_id, has_license, push

_out = Console(highlight=False)


def push_and_print(name: str, runs_dir: Path, target: Target, *, dry_run: bool) -> None:
    """Upload the final model of a run; what goes is said before, where it is after.

    Raises:
        SpaError: see `spa_recipes.publish.push`; RecipeError for a wrong name of the repository or the run.
    """
    check_repo_id(target.repo_id)
    run = api.find_run(name, runs_dir)
    _say(f"checking {run.final}")
    url = push(run, target, announce=lambda shipment: _print_shipment(shipment, target), dry_run=dry_run)
    if url is None:
        _say("nothing was uploaded; without --dry-run it is")
        return
    _say(f"uploaded: {escape(url)}")
    revision = "" if target.revision == MAIN else f', revision="{target.revision}"'
    _say(f'next:     `AutoModelForCausalLM.from_pretrained("{target.repo_id}"{escape(revision)})`')
    if not has_license(run.final / CARD):
        _say(
            f"          the card names no license: add one to {run.final / CARD} and push again, or edit it on the Hub"
        )


def _print_shipment(shipment: Shipment, target: Target) -> None:
    for file in shipment.files:
        _say(f"  {human_bytes(file.size):>8}  {escape(file.name)}")
    private = "private, " if target.private else ""
    _say(
        f"{len(shipment.files)} files, {human_bytes(shipment.size)}: the model of {shipment.stage} -> "
        f"{target.repo_id} ({private}branch {escape(target.revision)})"
    )


def _say(text: str) -> None:
    _out.print(text, soft_wrap=True)
