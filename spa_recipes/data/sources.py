"""Reads data: rows of any accepted form, in any kind of file, become the canonical rows of `spa_recipes.data.rows`.

loaded = read_pairs(recipe.data.pairs)
loaded.rows, loaded.line, loaded.skipped
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from spa_recipes.data import labelling
from spa_recipes.data.files import RawRow
from spa_recipes.data.forms.answers import Answers, candidates_row, pair_row
from spa_recipes.data.forms.candidates import CANDIDATE_FORMS
from spa_recipes.data.forms.cells import Cells, is_list_as_text
from spa_recipes.data.forms.conversations import CONVERSATION_FORMS, conversation_row
from spa_recipes.data.forms.form import BadRowError, Form, NoPairError, Raw, describe
from spa_recipes.data.forms.pairs import PAIR_FORMS
from spa_recipes.data.forms.prompts import PROMPT_FORMS, prompt_row
from spa_recipes.data.forms.reading import Reading, recognise
from spa_recipes.data.raw import local_file, read_raw
from spa_recipes.data.rows import CandidatesRow, ConversationRow, PairRow, PromptRow
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Columns, DatasetSource, SandboxSource
from spa_recipes.units import count_of

if TYPE_CHECKING:
    from spa_recipes.data.arrow import Rows
    from spa_recipes.data.readable import Readable

Row = TypeVar("Row", PairRow, PromptRow, ConversationRow, CandidatesRow)
Finish = Callable[[Any, Raw, int], Mapping[str, Any]]
Make = Callable[[RawRow], Mapping[str, Any] | None]
AnySource = DatasetSource | SandboxSource
# The form of a dataset is the one that most of its first rows have.
_ROWS_TO_DETECT_BY = 20


class Use(NamedTuple):
    """What rows are read for: the forms that will do, and what a row of them becomes.

    Attributes:
        labelled: whether a label column of the form is read.
        finish: from what a form found, its values and the row's number to a canonical row.
    """

    name: str
    forms: Sequence[Form]
    finish: Callable[[Any, Raw, int], Mapping[str, Any]]
    labelled: bool


def _finish_candidates(found: Answers, raw: Raw, row: int) -> CandidatesRow:
    return candidates_row(found, row)


def _finish_prompt(found: Any, raw: Raw, row: int) -> PromptRow:
    return prompt_row(found, row)


def _finish_conversation(found: Any, raw: Raw, row: int) -> ConversationRow:
    return conversation_row(found, row)


PAIRS = Use("pairs", PAIR_FORMS, pair_row, labelled=True)
PROMPTS = Use("prompts", PROMPT_FORMS, _finish_prompt, labelled=False)
CONVERSATIONS = Use("conversations", CONVERSATION_FORMS, _finish_conversation, labelled=True)
CANDIDATES = Use("answers to judge", CANDIDATE_FORMS, _finish_candidates, labelled=True)


class Loaded(NamedTuple, Generic[Row]):
    """Rows of a source.

    Attributes:
        stored: canonical rows in the order of the source, with the columns of `spa_recipes.data.arrow`.
        form: name of the form that was detected, for people.
        columns: columns that were read, by their names in the source.
        ignored: columns that were not.
        remarks: what was understood of labels and cells, in words.
        skipped: number and fault of each row that gave nothing: malformed ones (`on_bad_row: skip`), ties and so on.
    """

    stored: Rows
    form: str
    columns: list[str]
    ignored: list[str]
    remarks: list[str]
    skipped: list[tuple[int, str]]

    @property
    def rows(self) -> list[Row]:
        """The rows as Python objects, all at once."""
        rows: list[Any] = list(self.stored)
        return rows

    @property
    def line(self) -> str:
        """What was read, and how: the form, its columns, those that are ignored, and what labels and cells mean."""
        ignored = f"; ignored: {', '.join(self.ignored)}" if self.ignored else ""
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        return f"{self.form} ({', '.join(self.columns)}){ignored}{remarks}"


def read_pairs(source: AnySource, scratch: Path | None = None, check: Readable | None = None) -> Loaded[PairRow]:
    """Read labelled pairs.

    Args:
        source: where they are.
        scratch: a folder for many rows while they are in use; None for the system's.
        check: whether a model can read a row; one that it cannot is malformed.

    Raises:
        DataError: the source is missing or unreadable, its form is unknown, or a row is malformed.
        TryAgainError: the network failed.
    """
    return _read(source, PAIRS, scratch, check)


def read_prompts(source: AnySource, scratch: Path | None = None, check: Readable | None = None) -> Loaded[PromptRow]:
    """Read prompts without responses; the prompt of a conversation is all that comes before its last answer.

    Args:
        source, scratch, check: as in `read_pairs`.

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    return _read(source, PROMPTS, scratch, check)


def read_conversations(
    source: AnySource, scratch: Path | None = None, check: Readable | None = None
) -> Loaded[ConversationRow]:
    """Read demonstrations for supervised fine-tuning.

    `columns.prompt` alone names the column of whole conversations; with `columns.chosen`, that one is the completion.

    Args:
        source, scratch, check: as in `read_pairs`.

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    return _read(source, CONVERSATIONS, scratch, check)


def read_candidates(
    source: AnySource | str | Path, scratch: Path | None = None, check: Readable | None = None
) -> Loaded[CandidatesRow]:
    """Read responses to judge: labelled pairs in any form, or answers without labels.

    The label of a row is the index of the answer that is known to be the best one.

    Args:
        source, scratch, check: as in `read_pairs`.

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    if isinstance(source, str | Path):
        source = DatasetSource(source=str(source))
    return _read(source, CANDIDATES, scratch, check)


def look(source: DatasetSource, use: Use) -> None:
    """Read the first rows of a local source, and say what is wrong with it as a whole, such as that it is missing.

    Nothing is asked of the Hub, and of a folder of `save_to_disk` only its files are looked at.

    Raises:
        DataError: as `read_pairs`, but for faults of later rows.
    """
    for part in source.parts:
        if local_file(part) is not None:
            _opened(part, use, to_its_end=False)


class _Opened(NamedTuple):
    """A source whose form is known.

    Attributes:
        raws: all of its rows.
        reading: None where none of the first rows can be read; then `raws` has no other rows.
    """

    name: str
    skip: bool
    raws: Iterator[RawRow]
    reading: Reading | None


def _open_raw(source: AnySource, use: Use) -> Iterator[RawRow]:
    return _sandbox_rows(source, use) if isinstance(source, SandboxSource) else read_raw(source)


def _opened(source: AnySource, use: Use, *, to_its_end: bool = True) -> _Opened:
    if isinstance(source, SandboxSource):
        columns, skip, name = Columns(), False, "sandbox"
    else:
        columns, skip, name = source.columns, source.on_bad_row == "skip", source.name
    raws = _open_raw(source, use)
    first = _first(raws)
    if not first:
        raise DataError("no rows", where=name, fix="give a dataset that is not empty")
    values = [raw.value for raw in first if raw.value is not None]
    try:
        reading = _recognised(values, columns, use, name) if values else None
    except DataError:
        if to_its_end:
            deque(raws, maxlen=0)  # an error of the source as a whole is reported before one of its form
        raise
    return _Opened(name, skip, chain(first, raws), reading)


def _read(source: AnySource, use: Use, scratch: Path | None, check: Readable | None = None) -> Loaded[Any]:
    """Read a source: find the form of its rows, translate each, and collect what is malformed."""
    if isinstance(source, DatasetSource) and isinstance(source.source, list):
        return _read_parts(source, use, scratch, check)
    opened = _opened(source, use)
    skipped: list[tuple[int, str]] = []
    lists: Counter[str] = Counter()
    reading = opened.reading
    label = None
    if reading is not None and use.labelled:
        label = labelling.meaning_of(reading, lambda: _open_raw(source, use), opened.name, use.name)
    schema, finish, complete = labelling.way(reading, use.name, use.finish, label)
    if check is not None:
        finish = _checked(finish, check)
    try:
        looked_for = check.looked_for if check is not None else ()
        make = _one(opened, finish, skipped, lists)
        stored = _stored(opened, finish, make, schema, scratch, looked_for, getattr(source, "max_rows", None))
    except DataError:
        deque(opened.raws, maxlen=0)  # an error of the source as a whole is reported before one of a row
        raise
    if complete is not None:
        stored = complete(stored, skipped, scratch)
    if reading is None or not len(stored):
        number, reason = skipped[0]
        raise DataError(
            f"none of the {count_of(len(skipped), 'row')} is usable; row {number}: {reason}",
            where=opened.name,
            fix=labelling.AS_DEMONSTRATIONS if use is PAIRS and labelling.is_judged(reading) else "",
        )
    as_text = [
        f"`{name}`: {count_of(number, 'row holds', 'rows hold')} a list of strings as text, which stays text"
        for name, number in sorted(lists.items())
    ]
    remarks = [*reading.cells.words, *([label.words] if label else []), *as_text]
    ignored = [name for name in reading.ignored if name not in reading.used]
    return Loaded(stored, reading.form.name, list(reading.used), ignored, remarks, skipped)


def _read_parts(source: DatasetSource, use: Use, scratch: Path | None, check: Readable | None) -> Loaded[Any]:
    """Read the sources of a list, each in its own form, as one; rows are numbered on from one source to the next."""
    from spa_recipes.data import arrow

    loaded: list[Loaded[Any]] = []
    left = source.max_rows
    for part in source.parts:
        if left != 0:
            loaded.append(_read(part.model_copy(update={"max_rows": left}), use, scratch, check))
            left = None if left is None else left - len(loaded[-1].stored)
    starts = [0, *accumulate(_last_number(each) for each in loaded)][: len(loaded)]
    numbered = [*zip(starts, loaded, strict=True)]
    stored = arrow.Rows(loaded[0].stored.schema, scratch).extend(
        {**row, "row": start + row["row"]} for start, each in numbered for row in each.stored
    )
    return Loaded(
        stored,
        "; ".join(dict.fromkeys(each.form for each in loaded)),
        [*dict.fromkeys(column for each in loaded for column in each.columns)],
        [*dict.fromkeys(column for each in loaded for column in each.ignored)],
        [*dict.fromkeys(remark for each in loaded for remark in each.remarks)],
        [(start + row, why) for start, each in numbered for row, why in each.skipped],
    )


def _last_number(loaded: Loaded[Any]) -> int:
    """The largest number of a row of a source."""
    numbers: list[int] = loaded.stored.column("row").to_pylist() if len(loaded.stored) else []
    return max([0, *numbers, *(row for row, _ in loaded.skipped)])


def _checked(finish: Finish, check: Readable) -> Finish:
    """Make a row, and look whether a model can read it."""

    def checked(found: Any, raw: Raw, row: int) -> Mapping[str, Any]:
        made = finish(found, raw, row)
        try:
            if "messages" in made:
                check(made["messages"], ())
            else:
                check(made["prompt"], _answers_of(made))
        except DataError as error:
            raise BadRowError(error.what) from error
        return made

    return checked


def _answers_of(row: Mapping[str, Any]) -> list[str]:
    """The texts of the answers in a row of pairs, of candidates, or of one judged answer; none in one of prompts."""
    if "chosen" in row:
        return [row[side][0]["content"] for side in ("chosen", "rejected")]
    return row["responses"] if "responses" in row else [row["answer"]] if "answer" in row else []


def _stored(
    opened: _Opened,
    finish: Finish,
    make: Make,
    schema: str,
    scratch: Path | None,
    looked_for: Sequence[str] | None,
    most: int | None,
) -> Rows:
    """The canonical rows of a source.

    Args:
        make: what makes one of them, or raises its error.
        looked_for: the words in a text that the check of a row looks for; None where it looks at each row.
        most: after so many rows the source is not read on.
    """
    from spa_recipes.data import arrow
    from spa_recipes.data.alike import Alike

    columns = getattr(arrow, schema)
    rows = arrow.Rows(columns, scratch)
    if opened.reading is not None and looked_for is not None and most is None:
        return rows.extend_batches(Alike(opened.reading, finish, make, columns, looked_for).batches(opened.raws))
    return rows.extend(islice((row for raw in opened.raws if (row := make(raw)) is not None), most))


def _one(opened: _Opened, finish: Finish, skipped: list[tuple[int, str]], lists: Counter[str]) -> Make:
    """What makes the canonical row of one row; None for one that is added to `skipped`, unless its error is raised.

    Args:
        lists: is added to: how many cells of each column are the text of a list, and are read as text.
    """
    reasons: dict[str, str] = {}  # one copy of each

    def make(raw: RawRow) -> Mapping[str, Any] | None:
        try:
            if raw.error is not None:
                raise raw.error
            assert raw.value is not None
            assert opened.reading is not None
            row = opened.reading.cells.decode(raw.value)
            found, view = opened.reading.parse(row)
            made = finish(found, view, raw.row)
            lists.update(name for name in opened.reading.needs.values() if is_list_as_text(row[name]))
            return made
        except NoPairError as error:
            why = str(error)
        except BadRowError as error:
            fault = DataError(str(error), where=raw.where, fix="correct the row, or set on_bad_row: skip")
            if not opened.skip:
                raise fault from error
            why = fault.what
        except DataError as error:
            # Only a malformed row can be skipped, not a fault of the whole source.
            if not opened.skip or raw.error is None:
                raise
            why = error.what
        skipped.append((raw.row, reasons.setdefault(why, why)))
        return None

    return make


def _first(raws: Iterator[RawRow]) -> list[RawRow]:
    """The rows up to the last one of those that the form is detected by."""
    first: list[RawRow] = []
    found = 0
    for raw in raws:
        first.append(raw)
        found += raw.value is not None
        if found == _ROWS_TO_DETECT_BY:
            break
    return first


def _recognised(first: Sequence[dict[str, Any]], columns: Columns, use: Use, name: str) -> Reading:
    """The form of the first rows, or an error that lists their columns."""
    _check_named(first, columns, name)
    named = (columns.prompt, columns.rejected, columns.chosen if columns.scores is None else None)
    texts = [column for column in named if column is not None]
    try:
        cells = Cells(first, texts)
    except BadRowError as error:
        raise DataError(str(error), where=name) from error
    decoded = []
    for row in first:
        try:
            decoded.append(cells.decode(dict(row)))
        except BadRowError:  # is reported when its turn comes
            continue
    reading = recognise(decoded, use.forms, columns, cells)
    if reading is None:
        raise DataError(
            f"columns of no known form: {describe(first[0])}",
            where=name,
            fix=f"accepted for {use.name} are: {accepted(use)}; or name the columns with `columns`",
        )
    return reading


def accepted(use: Use) -> str:
    """The columns of the forms that will do, in short."""
    forms = (", ".join(f"{slot.names[0]}" for slot in form.needs.values()) for form in use.forms)
    return "; ".join(dict.fromkeys(forms))


def _check_named(first: Sequence[Raw], columns: Columns, name: str) -> None:
    """Every column that a recipe names is there."""
    for key, column in columns.model_dump(exclude={"positive", "ignore"}).items():
        if column is not None and not any(column in row for row in first):
            what = f"no column `{column}`, which `columns.{key}` names; found: {describe(first[0])}"
            raise DataError(what, where=name, fix="correct `columns`")


def _sandbox_rows(source: SandboxSource, use: Use) -> Iterator[RawRow]:
    from spa_recipes.sandbox.rows import preference_rows, sft_rows

    make = sft_rows if use is CONVERSATIONS else preference_rows
    try:
        values = make(source.rows, source.seed)
    except ValueError as error:
        raise DataError(str(error), where="sandbox", fix="lower rows") from error
    return (RawRow(number, f"sandbox, row {number}", value) for number, value in enumerate(values, start=1))
