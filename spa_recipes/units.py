"""Numbers for people: bytes, counts and times with their units."""

import shlex
from pathlib import Path


def human_bytes(number: float | None) -> str:
    """Text such as `14.5 GB`; a dash for None."""
    if number is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


def human_count(number: float | None) -> str:
    """Text such as `61.4M`; a dash for None."""
    if number is None:
        return "-"
    for unit in ("", "k", "M", "B", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.0f}" if unit == "" else f"{number:.1f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Text such as `1 row` or `2,000 rows`; `plural` is the noun's where that is not by an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def human_seconds(seconds: float) -> str:
    """Text such as `42 s`, `3 min 20 s`, `5 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def for_shell(path: Path | str) -> str:
    """A path as a shell, and then `spa`, reads it: quoted, and not like an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
