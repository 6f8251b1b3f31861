"""Errors of the Hub in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator

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


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


def hub_error(kind: str, name: str, error: BaseException) -> SpaError:
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
        return TryAgainError(
            f"the Hub cannot be reached ({reason})", where=name, fix="check the network and run the command again"
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
