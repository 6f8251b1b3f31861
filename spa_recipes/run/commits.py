"""What a run reads of the Hub since it began, so that a branch that moves changes nothing in it."""

from collections.abc import Mapping

from spa_recipes.data.commits import Commits, commit_of, place_of
from spa_recipes.data.hub import cached_commit
from spa_recipes.errors import DAMAGE
from spa_recipes.run.rundir import COMMITS, RunDir
from spa_recipes.state.reading import read_json

_HUB = "hub:"


def commits_of(run: RunDir, *, ask: bool, others: Mapping[str, str] | None = None) -> Commits:
    """The commits that a run reads already, then those of `others` that it goes with (by `place_of`).

    The Hub is asked for what is still unknown, or, unless `ask`, only its cache is.

    A branch or tag that the stored plan reads as such stays one: an earlier version began the run, or there was no
    network and nothing in the cache.
    """
    known = {**(others or {}), **_by_name(run), **_kept(run)}
    return Commits(known, commit_of if ask else cached_commit)


def _kept(run: RunDir) -> dict[str, str]:
    try:
        kept = read_json(run.path / COMMITS)
        return {str(place): str(commit) for place, commit in kept.items()}
    except DAMAGE:
        return {}


def _by_name(run: RunDir) -> dict[str, str]:
    """The branches and tags in the keys of the stored plan, each standing for itself."""
    try:
        inputs = [entry["material"]["inputs"] for entry in read_json(run.path / "plan.json")]
        read = {value for each in inputs for value in each.values() if value.startswith(_HUB)}
    except DAMAGE:
        return {}
    found: dict[str, str] = {}
    for value in read:
        name, _, revision = value.removeprefix(_HUB).partition("#")[0].partition("@")
        found |= {place_of("model", name, revision): revision, place_of("dataset", name, revision): revision}
    return found
