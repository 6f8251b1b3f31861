"""Uploads the final model of a run with its card and its recipe to the Hub, in one commit (`spa push`)."""

import fnmatch
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spa_recipes import __version__
from spa_recipes.data.hub import is_network_error
from spa_recipes.errors import DataError, RecipeError, SpaError, TryAgainError
from spa_recipes.plan import CARD, KINDS, MODEL, RECIPE_FILE
from spa_recipes.run.overview import next_stage
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import file_digest, files_below
from spa_recipes.state.stagedir import FileRecord, StageDir

LOGS = ("*.jsonl",)
"""Files of the model's stage that are not uploaded: logs of the training."""

TEXTS = (CARD, RECIPE_FILE)
"""Files beside the model that are uploaded, with what a person changed in them; others in the folder are not."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""Files that are deleted from the Hub if the new model has none of that name: loading would mix the two models."""

MAIN = "main"


class Target(NamedTuple):
    """Where to upload: `you/name` on the Hub; `revision` is a branch, which the upload creates if it does not exist."""

    repo_id: str
    private: bool = False
    revision: str = MAIN
    message: str | None = None


class Upload(NamedTuple):
    """A file to upload: its path, its name in the repository, and its size in bytes."""

    path: Path
    name: str
    size: int


class Shipment(NamedTuple):
    """What is uploaded.

    Attributes:
        stage: the stage whose model it is.
        files: what goes, sorted by name.
        left: names of files in the final folder that the run did not write, and that therefore stay here.
    """

    stage: str
    files: list[Upload]
    left: list[str]

    @property
    def size(self) -> int:
        """Return the size of all files in bytes."""
        return sum(file.size for file in self.files)


def push(run: RunDir, target: Target, *, announce: Callable[[Shipment], None], dry_run: bool = False) -> str | None:
    """Check the run's final model and upload it; return its address on the Hub, or None for a dry run.

    Args:
        target: `check_repo_id` has accepted its `repo_id`.
        announce: called with what is uploaded, before anything is sent.

    Raises:
        RecipeError: the run is not finished, nobody is logged in, or the token may not write there.
        DataError: the model is damaged. LockedError: a process works on the run. TryAgainError: the network failed.
    """
    with _held(run):  # nothing may change while the files are read
        shipment = collect(run)
        announce(shipment)
        return None if dry_run else _upload(run, shipment, target)


def _held(run: RunDir) -> AbstractContextManager[object]:
    return nullcontext() if run.is_read_only else run.locked()


def check_repo_id(repo_id: str) -> None:
    """Raise `RecipeError` unless it is `you/name` as the Hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in its __all__

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).split(": ")[0].rstrip(".")
        raise RecipeError(reason, where=f"--repo-id {repo_id}", fix="give it as you/name") from None
    if "/" not in repo_id:
        raise RecipeError("it names no owner", where=f"--repo-id {repo_id}", fix="give it as you/name")


def collect(run: RunDir) -> Shipment:
    """Return the files of a finished run's final folder, after checking that the model is as its stage left it.

    Raises:
        RecipeError: the run is not finished. DataError: a file is missing or was altered.
    """
    again = f"`{run.resume_command}`"
    unfinished = next_stage(run)
    if unfinished is not None:
        raise RecipeError(
            f"the run is not finished, {unfinished} is still to be done", where=str(run.path), fix=f"{again} first"
        )
    if not (run.final / CARD).is_file():
        raise DataError(
            "no model card is there", where=str(run.final), fix=f"{again} writes it, and trains nothing again"
        )
    stage, records = _final_stage(run)
    for name, record in records.items():
        problem = _problem(run.final / name, record)
        if problem:
            raise DataError(problem, where=str(run.final / name), fix=f"{again} makes it again")
    there = [name for name in TEXTS if os.path.lexists(run.final / name)]
    for name in there:
        if (run.final / name).is_symlink():
            raise DataError(
                f"this is a link to {(run.final / name).readlink()}, which the run did not make",
                where=str(run.final / name),
                fix=f"put the file itself there, or delete it: {again} writes it",
            )
    names = sorted([*there, *(name for name in records if not _matches(name, LOGS))])
    files = [Upload((run.final / name).resolve(), name, (run.final / name).stat().st_size) for name in names]
    found = [path.relative_to(run.final).as_posix() for path in files_below(run.final)]
    return Shipment(stage, files, [name for name in found if name not in names and name not in records])


def _final_stage(run: RunDir) -> tuple[str, dict[str, FileRecord]]:
    """Return the stage that made the run's newest policy, and the files of this model by name."""
    planned = run.planned()
    done = run.done(planned)
    made = [stage for stage in planned if KINDS[stage.kind].policy and stage.id in done]
    folder = run.existing(made[-1]) if made else None
    manifest = StageDir(folder.path).manifest() if folder else None
    if manifest is None:
        raise DataError("the run made no model", where=str(run.path), fix="push a run with a training stage")
    below = f"{MODEL}/"
    return manifest.id, {
        name.removeprefix(below): record for name, record in manifest.files.items() if name.startswith(below)
    }


def _problem(path: Path, record: FileRecord) -> str:
    """Return what is wrong with a file; empty if nothing is."""
    if not path.is_file():
        return "the file is missing"
    return "" if file_digest(path) == record.sha256 else "the file was altered"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def has_license(card: Path) -> bool:
    """Say whether the card's front matter, which the Hub reads, names a license."""
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(card)
    except (ValueError, yaml.YAMLError):
        return False
    return bool(metadata and metadata.get("license"))


def _upload(run: RunDir, shipment: Shipment, target: Target) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="spa-recipes", library_version=__version__)
    try:
        api.whoami()
        url = str(api.create_repo(target.repo_id, private=target.private or None, exist_ok=True))
        if target.private and not api.model_info(target.repo_id).private:
            raise RecipeError(
                "the repository is there already, and it is public",
                where=target.repo_id,
                fix="make it private in its settings first, choose another --repo-id, or leave --private out",
            )
        if target.revision != MAIN:
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
        _commit(api, shipment, target, target.message or f"{run.name}: the model of {shipment.stage}")
    except SpaError:
        raise
    except Exception as error:
        raise push_error(target.repo_id, error) from error
    return url if target.revision == MAIN else f"{url}/tree/{target.revision}"


def _commit(api: Any, shipment: Shipment, target: Target, message: str) -> None:
    """Upload what the Hub does not have yet, and then make all of it visible in one commit.

    `HfApi.upload_folder` may split a large model into several commits, the first of which deletes the old weights, so
    that somebody could load a part of a model. It also lists the folder again instead of taking the checked files.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = {file.name for file in shipment.files}
    there = api.list_repo_files(target.repo_id, revision=target.revision)
    api.create_commit(
        target.repo_id,
        operations=[
            *(CommitOperationAdd(file.name, file.path) for file in shipment.files),
            *(CommitOperationDelete(name) for name in there if name not in names and _matches(name, WEIGHTS)),
        ],
        commit_message=message,
        revision=target.revision,
    )


def push_error(repo_id: str, error: Exception) -> SpaError:
    """Return what went wrong with the upload, in one line with a remedy."""
    name, reason = type(error).__name__, " ".join((str(error) or type(error).__name__).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if name == "LocalTokenNotFoundError":
        return RecipeError("nobody is logged in to the Hub", fix=_LOG_IN)
    if name == "OfflineModeIsEnabled":
        return RecipeError("the environment forbids the network", fix="unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if status == 401:
        return RecipeError("the Hub does not know the token that it was given", where=repo_id, fix=_LOG_IN)
    if status == 403 or name == "XetAuthenticationError":
        return RecipeError(
            "this token may not write there",
            where=repo_id,
            fix="use a token with the permission to write (HF_TOKEN, `hf auth login`), or a --repo-id of your own",
        )
    if status == 404:
        return RecipeError("the Hub knows no such owner, repository or branch", where=repo_id, fix="check --repo-id")
    if status in (409, 412):
        return TryAgainError("something else changed the repository meanwhile", where=repo_id, fix=_AGAIN)
    if is_network_error(error) or isinstance(error, RuntimeError):  # the latter is how hf_xet fails
        return TryAgainError(f"the Hub cannot be reached ({reason})", where=repo_id, fix=_AGAIN)
    return DataError(f"the Hub does not take it ({reason})", where=repo_id)


_LOG_IN = "set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens), or run `hf auth login`"
_AGAIN = "run the command again: it does not send again what has arrived"
