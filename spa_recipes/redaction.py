"""Takes secrets out of texts: the one place for all that is printed, logged or stored and may come from a server.

A server that was sent a key may repeat it in an error or in an answer. The words of every `SpaError`, every answer of
an endpoint, and all output of a stage's process go through `redacted`.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of the shortest text that counts as a secret: shorter ones are parts of ordinary words."""

_NAME = re.compile(r"(^|_|API|ACCESS)(KEYS?|KEY_ID|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE)$", re.IGNORECASE)
_known = set[str]()


def keep_secret(value: str) -> None:
    """Hide a value from now on, whatever its variable is called."""
    _known.add(value)


def redacted(text: str) -> str:
    """A text with *** in the place of every secret: values from `keep_secret`, and variables named like a secret."""
    for secret in sorted(filter(_is_long, _known | set(_of_environment())), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


@contextlib.contextmanager
def redacted_output() -> Iterator[None]:
    """Hide secrets in all that is written to `sys.stdout` and `sys.stderr`."""
    out: Any = _Redacted(sys.stdout)
    err: Any = _Redacted(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def _of_environment() -> Iterator[str]:
    return (value.strip() for name, value in os.environ.items() if _NAME.search(name))


def _is_long(secret: str) -> bool:
    return len(secret) >= SHORTEST


class _Redacted:
    """A text stream that hides secrets; in all else it is the stream that it writes to."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
