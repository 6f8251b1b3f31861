"""Checkpoints: a marker with digests, written last, tells a whole one from one that is cut off or altered."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from spa_recipes.errors import RecipeError
from spa_recipes.state import atomic, inside
from spa_recipes.state.digests import file_digest
from spa_recipes.state.patience import patiently, size_of
from spa_recipes.state.reading import read_text
from spa_recipes.training.env import CHECKPOINT_MARKER as MARKER
from spa_recipes.training.sharding import checkpoint_form, in_use

STATE = "spa_state.json"
_LAUNCH = "launch"
_PREFIX = "checkpoint-"


class CheckpointSearch(NamedTuple):
    """The newest whole checkpoint, and the names of newer ones that are not whole."""

    path: Path | None
    skipped: list[str]


def newest_complete_checkpoint(folder: Path) -> CheckpointSearch:
    """Find the newest checkpoint whose files all have the size and digest that its marker says."""
    skipped: list[str] = []
    for checkpoint in reversed(_checkpoints(folder)):
        if is_complete(checkpoint):
            return CheckpointSearch(checkpoint, skipped)
        skipped.append(checkpoint.name)
    return CheckpointSearch(None, skipped)


def resume_point(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, None if there is none.

    Newer ones that are not whole are reported and removed: an altered one is moved to `damaged` beside `folder`, one
    that was never finished is deleted.
    """
    found = newest_complete_checkpoint(folder)
    then = "training starts again" if found.path is None else f"going on from {found.path.name}"
    for checkpoint in (folder / name for name in found.skipped):
        if size_of(checkpoint / MARKER) is not None:
            aside = atomic.move_aside(checkpoint, folder.parent / "damaged")
            say(f"{checkpoint.name} was altered or cut off: kept as {aside.name}, {then}")
        else:
            shutil.rmtree(checkpoint)
            say(f"{checkpoint.name} was not finished: deleted, {then}")
    return found.path


def drop_unfinished(folder: Path) -> None:
    """Delete a checkpoint whose writing failed, to free its space on the disk."""
    for checkpoint in _checkpoints(folder):
        if not (checkpoint / MARKER).exists():
            shutil.rmtree(checkpoint, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker exists and every file that it names is unchanged.

    Raises:
        TryAgainError: a file cannot be read.
    """
    try:
        files = json.loads(patiently(read_text, checkpoint / MARKER))["files"]
        return all(
            size_of(path := checkpoint / inside.plain(name)) == facts["size"] and file_digest(path) == facts["sha256"]
            for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state that `CheckpointCallback` wrote."""
    state: dict[str, Any] = json.loads(patiently(read_text, checkpoint / STATE))
    return state


def launch_of_this_training() -> dict[str, Any]:
    """What decides whether a checkpoint can be read: how the weights are shared out, over how many processes, and in
    which of its two forms FSDP writes them.
    """
    return {"sharding": in_use(), "processes": PartialState().num_processes, "form": checkpoint_form()}


def check_launch(checkpoint: Path) -> None:
    """Refuse a checkpoint that this launch would read in part only.

    Whole weights fit any number of processes, and FSDP2's parts are shared out anew; DeepSpeed's are not.

    Raises:
        RecipeError: it was written by another launch; says which.
    """
    written = read_state(checkpoint).get(_LAUNCH, {"sharding": "none", "processes": 1, "form": ""})
    now = launch_of_this_training()
    same = all(written[name] == now[name] for name in ("sharding", "form"))
    if same and (written == now or now["sharding"] in ("none", "fsdp2")):
        return
    raise RecipeError(
        f"the training was begun with {_in_words(written)}; with {_in_words(now)} it cannot go on from its checkpoint",
        where="compute.executor",
        fix=f"set it as it was, or delete {checkpoint.parent} to train this stage from its start",
    )


def _in_words(launch: Mapping[str, Any]) -> str:
    count = launch["processes"]
    form = f" ({launch['form']})" if launch["form"] else ""
    return f"sharding {launch['sharding']}{form} in {count} process{'es' if count > 1 else ''}"


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Completes each checkpoint that transformers writes with own state and, last, the marker; then deletes old ones.

    Args:
        own_state: gives the JSON-able state that a checkpoint holds besides.
        keep: number of checkpoints to keep, at least 1.
    """

    def __init__(self, own_state: Callable[[], dict[str, Any]], keep: int) -> None:
        self._own_state, self._keep = own_state, keep

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Log before each checkpoint and at the end, so that no log line averages over an interruption.

        There is no checkpoint after the last step, since the model itself is saved then.
        """
        if state.global_step >= state.max_steps:
            control.should_save = False
            control.should_log = True
        if control.should_save:
            control.should_log = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the marker when all processes have written their part."""
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            folder = Path(args.output_dir)
            checkpoint = folder / f"{_PREFIX}{state.global_step}"
            atomic.write_text(checkpoint / STATE, json.dumps({**self._own_state(), _LAUNCH: launch_of_this_training()}))
            (checkpoint / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # nothing reads it, and it names this folder
            atomic.apply_umask(checkpoint)
            _write_marker(checkpoint)
            _drop_old(folder, state.global_step, self._keep)
        PartialState().wait_for_everyone()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps."""
    return sorted((path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _write_marker(checkpoint: Path) -> None:
    """Write name, size and sha256 of every file once all are on the disk; older checkpoints are deleted after that."""
    files = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    atomic.fsync_tree(checkpoint)
    atomic.write_json(checkpoint / MARKER, {"files": files})
    atomic.fsync_dir(checkpoint.parent)


def _drop_old(folder: Path, step: int, keep: int) -> None:
    """Keep `keep` checkpoints: the one of `step`, just written, and the newest before it that have a marker.

    Checkpoints of later steps are damaged, since the training continued from an earlier one.
    """
    marked = [path for path in _checkpoints(folder) if _step(path) <= step and (path / MARKER).is_file()]
    for checkpoint in _checkpoints(folder):
        if checkpoint not in marked[-keep:]:
            shutil.rmtree(checkpoint, ignore_errors=True)
