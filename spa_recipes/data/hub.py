"""Questions to the Hub, its cache on this disk, and its errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from spa_recipes.errors import DataError, SpaError, TryAgainError

_TRUE = {"1", "ON", "YES", "TRUE"}
# By name: the classes are of several libraries and versions, and some are wrapped in others' exceptions.
_NETWORK = {
    "ConnectionError",
    "ConnectTimeout",
    "ConnectError",
    "ReadTimeout",
    "ReadError",
    "Timeout",
    "TimeoutError",
    "TimeoutException",
    "TransportError",
    "ProxyError",
    "SSLError",
    "RemoteProtocolError",
    "NetworkError",
    "LocalEntryNotFoundError",
}


Repository = Literal["model", "dataset"]
"""Kinds of repositories on the Hub."""

SECONDS = 8.0
"""How long an answer of the Hub may take."""

MAIN = "main"
"""The branch that is meant where none is named."""

T = TypeVar("T")


def ask(kind: Repository, name: str, question: Callable[[], T]) -> T:
    """What the Hub says of a repository; no answer within SECONDS is an answer, too.

    The client's own limits are for each step of a request, and looking up an address has none.

    Args:
        question: asks the Hub once, by its client.

    Raises:
        DataError, TryAgainError: as `hub_error`.
    """
    from queue import Empty, SimpleQueue
    from threading import Thread

    answers: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def wait() -> None:
        try:
            answer = question()
        except Exception as error:  # the Hub client and its network library raise what they like
            answers.put(_raising(hub_error(kind, name, error), error))
        else:
            answers.put(lambda: answer)

    Thread(target=wait, daemon=True).start()
    try:
        answer = answers.get(timeout=SECONDS)
    except Empty:
        raise hub_error(kind, name, TimeoutError(f"no answer within {SECONDS:g} seconds")) from None
    return answer()


def _raising(problem: SpaError, cause: Exception) -> Callable[[], Any]:
    def give() -> None:
        raise problem from cause

    return give


def cached_commit(kind: Repository, name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag was when something was last downloaded by it; None where nothing was."""
    with suppress(OSError, ValueError):
        return _reference(kind, name, revision).read_text(encoding="ascii").strip() or None
    return None


def keep_commit(kind: Repository, name: str, revision: str | None, commit: str) -> None:
    """Note in the Hub's cache which commit a branch or tag is, as its client does when it downloads by that name.

    Files are downloaded by commit; without the note, nobody could tell offline which of them are meant by the name.
    """
    with suppress(OSError, ValueError):  # a cache that others write
        path = _reference(kind, name, revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, encoding="ascii")


def _reference(kind: Repository, name: str, revision: str | None) -> Path:
    """The file of a branch or tag in the Hub's cache; ValueError for a name that is none."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    reference = revision or MAIN
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", reference):
        raise ValueError("not the name of a branch or tag")
    return cache / f"{kind}s--{name.replace('/', '--')}" / "refs" / reference


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


def hub_error(kind: Repository, name: str, error: BaseException) -> SpaError:
    """Turn an exception of a Hub client into an error with a remedy.

    Args:
        kind: `dataset` or `model`.
        name: its Hub id.
        error: the exception.
    """
    names = {ancestor.__name__ for link in _chain(error) for ancestor in type(link).__mro__}
    statuses = {getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error)}
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    # The client's words about a repository that is not there say that it may be gated, too.
    if "GatedRepoError" in names or ("gated" in str(error).lower() and "RepositoryNotFoundError" not in names):
        return DataError(
            f"the {kind} is gated on the Hub",
            where=name,
            fix=f"ask for access at https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name} and set "
            "HF_TOKEN",
        )
    if "RevisionNotFoundError" in names:
        return DataError(f"no such revision of the {kind} on the Hub", where=name, fix="check revision")
    if is_offline():
        return DataError(
            f"the {kind} is neither on this disk nor in the cache of HF_HOME, and the environment forbids the network",
            where=name,
            fix="unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, download it first, or name a local path",
        )
    missing = names & {"RepositoryNotFoundError", "DatasetNotFoundError"} or statuses & {401, 403, 404}
    if not missing and is_network_error(error):
        cached = "; HF_HUB_OFFLINE=1 takes what is in the cache" if cached_commit(kind, name, None) else ""
        return TryAgainError(
            f"the Hub cannot be reached ({reason})",
            where=name,
            fix=f"check the network and run the command again{cached}",
        )
    if missing:
        return DataError(
            f"no such {kind} on this disk or on the Hub, or no access to it",
            where=name,
            fix="check the name; a private one needs HF_TOKEN",
        )
    return DataError(f"the {kind} cannot be loaded ({reason})", where=name)


def is_network_error(error: BaseException) -> bool:
    """Whether the network or the Hub failed, so that another try may succeed."""
    names = {ancestor.__name__ for link in _chain(error) for ancestor in type(link).__mro__}
    statuses = {getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error)}
    return bool(names & _NETWORK or statuses & {429, 500, 502, 503, 504})


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and the exceptions that caused it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


_HEADER_BYTES = 1024 * 1024


def csv_of_texts(config: Any) -> dict[str, Any]:
    """Settings by which `datasets` reads a CSV as a CSV file is read here: every cell is the text that stands in it.

    Otherwise pandas makes 7 of an id 007, 100000.0 of 1e5, and nothing of words such as NA and null.

    Args:
        config: of the dataset's builder, with its files.
    """
    import csv
    from io import StringIO

    import datasets
    import fsspec  # type: ignore[import-untyped]

    from spa_recipes.data.files import delimiter_of
    from spa_recipes.data.rows import BOM

    settings: dict[str, Any] = {"keep_default_na": False}
    first = next((file for files in (config.data_files or {}).values() for file in files), None)
    if first is None or config.header != "infer":  # prepared before, or without a line of names
        return settings
    with fsspec.open(first, "rb", compression="infer") as file:
        text = file.read(_HEADER_BYTES).removeprefix(BOM).decode("utf-8", "ignore")
    if config.sep == ",":
        settings["sep"] = delimiter_of(text.partition("\n")[0])
    names = config.names or next(csv.reader(StringIO(text), delimiter=settings.get("sep", config.sep)), [])
    return settings | {"features": datasets.Features({name: datasets.Value("string") for name in names})}
