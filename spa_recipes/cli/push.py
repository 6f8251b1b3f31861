"""What `spa push` prints."""

from pathlib import Path

from spa_recipes import api
from spa_recipes.cli.terminal import say
from spa_recipes.plan import CARD
from spa_recipes.publish import MAIN, Shipment, Target, check_repo_id, has_license, push
from spa_recipes.units import human_bytes


def push_and_print(name: str, runs_dir: Path, target: Target, *, dry_run: bool) -> None:
    """Upload the final model of a run; say before what goes, and after where it is.

    Raises:
        SpaError: see `spa_recipes.publish.push`; RecipeError for a wrong name of the repository or the run.
    """
    check_repo_id(target.repo_id)
    run = api.find_run(name, runs_dir)
    say(f"checking {run.final}")
    url = push(run, target, announce=lambda shipment: _print_shipment(shipment, target), dry_run=dry_run)
    if url is None:
        say("nothing was uploaded; without --dry-run it is")
        return
    say(f"uploaded: {url}")
    revision = "" if target.revision == MAIN else f', revision="{target.revision}"'
    say(f'next:     `AutoModelForCausalLM.from_pretrained("{target.repo_id}"{revision})`')
    if not has_license(run.final / CARD):
        say(f"          the card names no license: add one to {run.final / CARD} and push again, or edit it on the Hub")


def _print_shipment(shipment: Shipment, target: Target) -> None:
    for file in shipment.files:
        say(f"  {human_bytes(file.size):>8}  {file.name}")
    if shipment.left:
        say(f"not uploaded, as the run did not write it: {', '.join(shipment.left)}")
    private = "private, " if target.private else ""
    say(
        f"{len(shipment.files)} files, {human_bytes(shipment.size)}: the model of {shipment.stage} -> "
        f"{target.repo_id} ({private}branch {target.revision})"
    )
