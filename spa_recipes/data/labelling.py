"""Labels in a column of their own: what they mean by the whole column, and pairs of answers that are good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.files import RawRow
from spa_recipes.data.forms import labels
from spa_recipes.data.forms.answers import TIE, Answers
from spa_recipes.data.forms.form import NoPairError, Raw
from spa_recipes.data.forms.messages import asked, check_answer, check_prompt
from spa_recipes.data.forms.pairs import JUDGED
from spa_recipes.data.forms.reading import Reading
from spa_recipes.data.rows import prompt_id
from spa_recipes.errors import DataError

if TYPE_CHECKING:
    from spa_recipes.data.arrow import Rows

NOT_GOOD = "an answer that is labelled as bad: no demonstration"
"""Why a row of good and bad answers gives no demonstration, as it should."""
_UNPAIRED = "its prompt has no answer with the other label"
NO_LABEL = "no label"
AS_DEMONSTRATIONS = "give a good and a bad answer to the same prompt; sft.data takes the good ones as demonstrations"
"""What to do with good and bad answers that make no pair."""

Finish = Callable[[Any, Raw, int], Mapping[str, Any]]
Complete = Callable[["Rows", list[tuple[int, str]], Path | None], "Rows"]


class Label(NamedTuple):
    """What a label column means."""

    read: labels.Read
    words: str


def is_judged(reading: Reading | None) -> bool:
    """Whether a row is one answer that is good or bad."""
    return reading is not None and reading.form.name == JUDGED.name


def meaning_of(reading: Reading, rows: Callable[[], Iterator[RawRow]], name: str, use: str) -> Label | None:
    """What the label column of a form means; None where the form has none. It goes through all rows.

    Raises:
        DataError: the column has no meaning, or more than one.
    """
    column = reading.needs.get("label")
    if column is None:
        return None
    values = labels.Values()
    for raw in rows():
        if raw.value is not None:
            values.add(raw.value.get(column))
    positive = reading.columns.positive
    first = reading.needs.get("first", "")
    answers = (first, reading.needs.get("second", ""))
    try:
        if is_judged(reading):
            found = labels.verdict(values, positive)
        else:
            found = labels.preference(values, answers, positive, reading.form.first_is)
    except labels.AmbiguousLabelsError as error:
        says = "that an answer is good" if is_judged(reading) else f"that `{first}` is the better one"
        unread = "" if use == "pairs" else f", or leave it unread with columns: {{ignore: [{column}]}}"
        raise DataError(
            f"column `{column}` holds {error}, which can be read in more than one way",
            where=name,
            fix=f"say which value means {says}: columns: {{label: {column}, positive: VALUE}}{unread}",
        ) from None
    return Label(found.read, f"`{column}`: {found.words}")


def way(reading: Reading | None, use: str, finish: Finish, label: Label | None) -> tuple[str, Finish, Complete | None]:
    """How rows are stored, made and completed: the name of their schema, what makes one, and what joins them."""
    schema = {"pairs": "PAIRS", "prompts": "PROMPTS", "conversations": "CONVERSATIONS"}.get(use, "CANDIDATES")
    if label is None:
        return schema, finish, None
    read = label.read

    def side(raw: Raw) -> labels.Side:
        if raw["label"] is None or raw["label"] == "":
            raise NoPairError(NO_LABEL)
        return read(raw["label"])

    def demonstration(found: Any, raw: Raw, row: int) -> Mapping[str, Any]:
        if side(raw).answer != 0:
            raise NoPairError(NOT_GOOD)
        return finish(found, raw, row)

    def judged(found: Answers, raw: Raw, row: int) -> Mapping[str, Any]:
        prompt = asked(found.prompt)
        check_prompt(prompt)
        check_answer(found.texts[0], "the answer")
        index = side(raw).answer
        if index is None:
            raise NoPairError(TIE)
        return {"prompt_id": prompt_id(prompt), "prompt": prompt, "answer": found.texts[0],
                "good": index == 0, "row": row}  # fmt: skip

    def preferred(found: Answers, raw: Raw, row: int) -> Mapping[str, Any]:
        try:
            index = side(raw).answer
        except NoPairError:
            if use == "pairs":
                raise
            return finish(found, raw, row)  # answers without a label can be judged
        if index is None:
            return finish(found._replace(why=TIE), raw, row)
        return finish(found._replace(best=index, worst=1 - index), raw, row)

    if not is_judged(reading):
        return schema, preferred, None
    if use == "conversations":
        return schema, demonstration, None

    def complete(answers: Rows, skipped: list[tuple[int, str]], scratch: Path | None) -> Rows:
        return _pairs_of(answers, skipped, schema, scratch)

    return "JUDGED", judged, complete


def _pairs_of(answers: Rows, skipped: list[tuple[int, str]], schema: str, scratch: Path | None) -> Rows:
    """Pairs of good and bad answers to the same prompt: the first good one with the first bad one, and so on."""
    from spa_recipes.data import arrow

    waiting: dict[tuple[str, bool], list[int]] = {}
    partners: list[tuple[int, int]] = []
    good = answers.column("good").to_pylist()
    numbers = answers.column("row").to_pylist()
    for index, name in enumerate(answers.column("prompt_id").to_pylist()):
        others = waiting.get((name, not good[index]))
        if others:
            other = others.pop(0)
            partners.append((index, other) if good[index] else (other, index))
        else:
            waiting.setdefault((name, good[index]), []).append(index)
    partners.sort(key=max)
    left = sorted(index for indices in waiting.values() for index in indices)
    skipped += [(numbers[index], _UNPAIRED) for index in left]

    def rows() -> Iterator[Mapping[str, Any]]:
        best, worst = (answers.take([pair[side] for pair in partners]) for side in (0, 1))
        for chosen, rejected in zip(best, worst, strict=True):
            row = {
                "prompt_id": chosen["prompt_id"],
                "prompt": chosen["prompt"],
                "row": max(chosen["row"], rejected["row"]),
            }
            texts = [chosen["answer"], rejected["answer"]]
            if texts[0] == texts[1]:
                skipped.append((row["row"], "the chosen response equals the rejected one"))
            elif schema == "PAIRS":
                both = ([{"role": "assistant", "content": text}] for text in texts)
                yield row | dict(zip(("chosen", "rejected"), both, strict=True))
            else:
                yield row | {"responses": texts, "label": 0}

    return arrow.Rows(getattr(arrow, schema), scratch).extend(rows())
