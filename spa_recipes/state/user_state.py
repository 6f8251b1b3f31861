"""What this user's installation keeps outside of all runs: which runs it started, and what the user trusts.

It is in `$XDG_STATE_HOME/spa-recipes`, by default `~/.local/state/spa-recipes`: lists for people, a line per entry. A
line that is deleted is forgotten. Where nothing can be written, nothing is remembered, and no run fails because of it.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from spa_recipes.state import atomic

MARK = ".started-here"
"""A file in a run's folder with a random word, which stays the same when the folder is moved or copied. The list of
runs has its digest, so nobody who can read that list can forge the file."""

List = Literal["runs", "trusted"]
_MARK_BYTES = 64


def note_run(run: Path) -> None:
    """Remember that this user started the run in a folder. Call this only where nothing of a run is there yet."""
    word = secrets.token_hex(_MARK_BYTES // 2)
    with suppress(OSError):
        remember("runs", _digest(word), str(run.absolute()))
        atomic.write_text(run / MARK, word)


def started_here(run: Path) -> bool:
    """Whether this user started the run in a folder, with this installation or another one on the same state folder."""
    try:
        descriptor = os.open(run / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as handle:
            word = handle.read(_MARK_BYTES + 1).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return False
    return knows("runs", _digest(word))


def remember(kind: List, digest: str, words: str) -> None:
    """Add a line to a list: a digest, and words that tell a person what it is.

    Raises:
        OSError: it cannot be written.
    """
    if knows(kind, digest):
        return
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Where this process takes names to be ASCII, the other bytes of a path are surrogates in it.
    spelled = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    atomic.append_line(folder / kind, f"{digest}  {' '.join(spelled.split())}")


def knows(kind: List, digest: str) -> bool:
    """Whether a list has a line with this digest."""
    try:
        lines = (state_folder() / kind).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.partition(" ")[0] == digest for line in lines)


def state_folder() -> Path:
    """The folder of the lists.

    Raises:
        OSError: the environment does not say where it is.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    if given.is_absolute():  # its specification says to ignore any other
        return given / "spa-recipes"
    try:
        return Path.home() / ".local" / "state" / "spa-recipes"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()
