"""Counts what a dataset has of rows that give nothing, that repeat one another or contradict one another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.forms.answers import BY_A_PERSON
from spa_recipes.data.labelling import NOT_GOOD
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import MAX_SKIPPED, DatasetSource, SandboxSource
from spa_recipes.units import count_of

if TYPE_CHECKING:
    from spa_recipes.data.arrow import Rows
    from spa_recipes.data.sources import Loaded

_AS_IT_SHOULD_BE = {NOT_GOOD, *BY_A_PERSON.values()}
"""Why rows give nothing of which there may be any number."""
_EXAMPLES = 3
_LONGEST_EXAMPLE = 100
_FEWEST = 3  # rows that an answer is said to stand in
_MOST_REASONS = 12
_WORD = re.compile(r"\w+")


class Reason(NamedTuple):
    """Why some rows gave nothing: how many they are, and the first of them."""

    rows: int
    examples: list[int]


def reasons(skipped: Sequence[tuple[int, str]]) -> dict[str, Reason]:
    """The reasons of rows that gave nothing, the commonest first; numbers in a reason count as one."""
    found: dict[str, Reason] = {}
    for row, why in skipped:
        name = re.sub(r"\d+", "N", why)
        count, examples = found.get(name, (0, []))
        found[name] = Reason(count + 1, examples if len(examples) == _EXAMPLES else [*examples, row])
    ordered = sorted(found.items(), key=lambda item: -item[1].rows)
    rest = ordered[_MOST_REASONS:]
    kept = dict(ordered[:_MOST_REASONS])
    if rest:
        kept["other reasons"] = Reason(sum(r.rows for _, r in rest), [r.examples[0] for _, r in rest[:_EXAMPLES]])
    return kept


def table(skipped: Sequence[tuple[int, str]]) -> list[str]:
    """Lines for people: how many rows gave nothing, and why, with examples."""
    if not skipped:
        return []
    lines = [f"{count_of(len(skipped), 'row')} gave nothing:"]
    for why, (count, examples) in reasons(skipped).items():
        more = ", ..." if count > len(examples) else ""
        lines.append(f"  {count:>9,}  {why} (row{'s' if count > 1 else ''} {', '.join(map(str, examples))}{more})")
    return lines


def placed(skipped: Sequence[tuple[int, str]]) -> list[int]:
    """Rows that give nothing and keep their places where rows are shared out; what a person left open has none."""
    return [row for row, why in skipped if why not in BY_A_PERSON.values()]


def check_skipped(
    loaded: Loaded[Any], source: DatasetSource | SandboxSource, key: str, most: float = MAX_SKIPPED
) -> None:
    """Stop where a larger share of the rows gives nothing than `max_skipped` of the source, or `most`, allows.

    Raises:
        DataError: with the commonest reason.
    """
    if isinstance(source, DatasetSource) and source.max_skipped is not None:
        most = source.max_skipped
    skipped = [entry for entry in loaded.skipped if entry[1] not in _AS_IT_SHOULD_BE]
    share = len(skipped) / (len(loaded.stored) + len(skipped))
    if share > most:
        why, (count, examples) = next(iter(reasons(skipped).items()))
        raise DataError(
            f"{len(skipped):,} of {len(loaded.stored) + len(skipped):,} rows ({share:.1%}) give nothing, more than "
            f"max_skipped ({most:.1%}); {count:,} of them: {why} (row {examples[0]})",
            where=key,
            fix=f"mend the data, or set max_skipped to {min(1.0, int(share * 100 + 1) / 100):g} if that is right",
        )


# --- rows that repeat or contradict one another


class Frequent(NamedTuple):
    """An answer that stands in many rows, and the numbers of the rows where it is the chosen or the rejected one."""

    text: str
    chosen: list[int]
    rejected: list[int]

    def __str__(self) -> str:
        rows = sorted({*self.chosen, *self.rejected})
        shown = ", ".join(map(str, rows[:_EXAMPLES]))
        text = " ".join(self.text.split())
        short = text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}..."
        return (
            f"one answer stands in {count_of(len(rows), 'row')} (chosen in {len(self.chosen):,}, rejected in "
            f"{len(self.rejected):,}; {_rows(rows)} {shown}{_more(rows)}): {short}"
        )


class Repeats(NamedTuple):
    """Pairs that were there before.

    Attributes:
        repeated: row numbers of pairs that are the same as an earlier one.
        conflicting: row numbers of two pairs of the same prompt and answers with the labels the other way round.
        frequent: the answers that stand in the most rows, where these are a thousandth of all, and three at least.
    """

    repeated: list[int]
    conflicting: list[tuple[int, int]]
    frequent: list[Frequent]

    @property
    def lines(self) -> list[str]:
        """What was found, for people; empty where nothing was."""
        lines = []
        if self.repeated:
            shown = ", ".join(map(str, self.repeated[:_EXAMPLES]))
            lines.append(
                f"{count_of(len(self.repeated), 'pair repeats', 'pairs repeat')} an earlier pair "
                f"({_rows(self.repeated)} {shown}{_more(self.repeated)})"
            )
        if self.conflicting:
            shown = ", ".join(f"{one} and {other}" for one, other in self.conflicting[:_EXAMPLES])
            lines.append(
                f"{count_of(len(self.conflicting), 'pair contradicts', 'pairs contradict')} a pair of the same prompt "
                f"and answers (rows {shown}{_more(self.conflicting)})"
            )
        return [*lines, *map(str, self.frequent)]


def repeats(pairs: Rows) -> Repeats:
    """Compare all pairs with one another, by 64 bits of a hash of each."""
    import numpy as np

    rows, forward, backward, *texts_of_sides = (np.empty(len(pairs), np.int64) for _ in range(5))
    start = 0
    for batch in pairs.batches(["prompt_id", "chosen", "rejected", "row"]):
        end = start + len(batch)
        rows[start:end] = batch["row"].to_numpy()
        chosen, rejected = (_texts(batch[name].flatten().field("content")) for name in ("chosen", "rejected"))
        names = _texts(batch["prompt_id"])
        forward[start:end] = [*map(hash, zip(names, chosen, rejected, strict=True))]
        backward[start:end] = [*map(hash, zip(names, rejected, chosen, strict=True))]
        for side, texts in zip(texts_of_sides, (chosen, rejected), strict=True):
            side[start:end] = [*map(hash, texts)]
        start = end
    _, firsts = np.unique(forward, return_index=True)
    repeated = np.delete(rows, firsts)
    _, ours, theirs = np.intersect1d(forward, backward, return_indices=True)
    pairs_of_rows = {tuple(sorted((int(rows[i]), int(rows[j])))) for i, j in zip(ours, theirs, strict=True)}
    frequent = _frequent(pairs, rows, *texts_of_sides)
    return Repeats(sorted(repeated.tolist()), sorted(pairs_of_rows), frequent)  # type: ignore[arg-type]


def _texts(array: Any) -> list[str]:
    """`array.to_pylist()` of texts, which are all there; several times as fast."""
    texts: list[str] = array.to_numpy(zero_copy_only=False).tolist()
    return texts


def _frequent(pairs: Rows, rows: Any, chosen: Any, rejected: Any) -> list[Frequent]:
    """The most frequent answers, by the hashes of all chosen and all rejected ones."""
    import numpy as np

    hashes, firsts, numbers = np.unique(np.concatenate([chosen, rejected]), return_index=True, return_counts=True)
    most = np.lexsort((firsts, -numbers))[:_EXAMPLES]  # hashes have another order in every process
    found = []
    for answer in hashes[most][numbers[most] >= max(_FEWEST, len(rows) / 1000)]:
        sides = {"chosen": np.flatnonzero(chosen == answer), "rejected": np.flatnonzero(rejected == answer)}
        side = "chosen" if len(sides["chosen"]) else "rejected"
        (example,) = pairs.take([int(sides[side][0])], [side])
        found.append(Frequent(example[side][0]["content"], *(rows[places].tolist() for places in sides.values())))
    return found


class NearEqual:
    """Finds prompts of different parts that differ only in case, white space and punctuation."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[str, str, int]] = {}
        self.count = 0
        self._examples: list[str] = []

    def through(self, part: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Pass rows of a part on, and remember their prompts."""
        for row in rows:
            name = _words_of(row["prompt"])
            there, other, number = self._seen.setdefault(name, (row["prompt_id"], part, row["row"]))
            if other != part and there != row["prompt_id"]:
                self.count += 1
                if len(self._examples) < _EXAMPLES:
                    self._examples.append(f"row {number} in {other} and {row['row']} in {part}")
            yield row

    @property
    def lines(self) -> list[str]:
        """What was found, for people; empty where nothing was."""
        if not self.count:
            return []
        more = "; ..." if self.count > len(self._examples) else ""
        number = count_of(self.count, "prompt is nearly one", "prompts are nearly those")
        return [f"{number} of another part ({'; '.join(self._examples)}{more})"]


def _words_of(prompt: Iterable[Mapping[str, Any]]) -> bytes:
    text = b"\n".join([_words_in(message["content"]) for message in prompt])
    return hashlib.blake2b(text, digest_size=12).digest()


def _words_in(text: str) -> bytes:
    """The words of a text in small letters with a space between two of them."""
    if text.isascii():  # has a table for its characters, which is several times as fast
        return b" ".join(text.lower().encode().translate(_ASCII_WORDS).split())
    return " ".join(_WORD.findall(text.casefold())).encode("utf-8", "surrogatepass")


_ASCII_WORDS = bytes(code if code > 127 or _WORD.match(chr(code)) else ord(" ") for code in range(256))
"""The characters of words, and a space in the place of each other one."""


def _rows(found: Sequence[Any]) -> str:
    return "rows" if len(found) > 1 else "row"


def _more(found: Sequence[Any]) -> str:
    return ", ..." if len(found) > _EXAMPLES else ""
