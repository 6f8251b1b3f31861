"""Reads data: rows of any accepted form, in any kind of file, become the canonical rows of `spa_recipes.data.rows`.

loaded = read_pairs(recipe.data.pairs)
loaded.table, loaded.rows, loaded.form, loaded.columns, loaded.skipped
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from spa_recipes.data.files import RawRow
from spa_recipes.data.forms.candidates import CANDIDATE_FORMS, LABEL_COLUMNS, candidates_row, read_labels
from spa_recipes.data.forms.conversations import CONVERSATION_FORMS, conversation_row
from spa_recipes.data.forms.form import BadRowError, Form, Raw, describe, detect, rename
from spa_recipes.data.forms.pairs import PAIR_FORMS, pair_row
from spa_recipes.data.forms.prompts import PROMPT_FORMS, prompt_row
from spa_recipes.data.raw import read_raw
from spa_recipes.data.rows import CandidatesRow, ConversationRow, PairRow, PromptRow
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Columns, DatasetSource, SandboxSource

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row", PairRow, PromptRow, ConversationRow, CandidatesRow)
AnySource = DatasetSource | SandboxSource
# The form of a dataset is the one that most of its first rows have.
_ROWS_TO_DETECT_BY = 20
_PAIRS_ACCEPTED = (
    "prompt, chosen, rejected (strings or message lists); chosen, rejected (whole conversations); "
    "instruction, input?, chosen, rejected; instruction, output: [chosen, rejected]; conversations, chosen, rejected"
)
_PROMPTS_ACCEPTED = "prompt (string or message list); messages; conversations; any form of labelled pairs"
_CONVERSATIONS_ACCEPTED = "messages; conversations; prompt, completion (strings or message lists)"
_CANDIDATES_ACCEPTED = f"prompt, responses: [...]; prompt, response_a, response_b; {_PAIRS_ACCEPTED}"


class Loaded(NamedTuple, Generic[Row]):
    """Rows of a source.

    Attributes:
        table: canonical rows in the order of the source, as `spa_recipes.data.arrow` has them.
        form: name of the form that was detected, for people.
        columns: columns that were read, by their names in the source.
        skipped: number and fault of each malformed row (`on_bad_row: skip`).
    """

    table: pa.Table
    form: str
    columns: list[str]
    skipped: list[tuple[int, str]]

    @property
    def rows(self) -> list[Row]:
        """The rows as Python objects, all at once."""
        from spa_recipes.data.arrow import rows_of

        rows: list[Any] = list(rows_of(self.table))
        return rows


def read_pairs(source: AnySource) -> Loaded[PairRow]:
    """Read labelled pairs.

    Raises:
        DataError: the source is missing or unreadable, its form is unknown, or a row is malformed.
        TryAgainError: the network failed.
    """
    from spa_recipes.data.arrow import PAIRS

    return _read(source, PAIRS, PAIR_FORMS, _PAIRS_ACCEPTED, pair_row)


def read_prompts(source: AnySource) -> Loaded[PromptRow]:
    """Read prompts without responses; the prompt of a conversation is all that comes before its last answer.

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    from spa_recipes.data.arrow import PROMPTS

    def finish(prompt: Any, raw: Raw, row: int) -> PromptRow:
        return prompt_row(prompt, row)

    return _read(source, PROMPTS, PROMPT_FORMS, _PROMPTS_ACCEPTED, finish)


def read_conversations(source: AnySource) -> Loaded[ConversationRow]:
    """Read demonstrations for supervised fine-tuning.

    `columns.prompt` alone names the column of whole conversations; with `columns.chosen`, that one is the completion.

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    from spa_recipes.data.arrow import CONVERSATIONS

    def finish(messages: Any, raw: Raw, row: int) -> ConversationRow:
        return conversation_row(messages, row)

    return _read(
        source,
        CONVERSATIONS,
        CONVERSATION_FORMS,
        _CONVERSATIONS_ACCEPTED,
        finish,
        adapt=_adapt_conversation,
        sandbox_sft=True,
    )


def read_candidates(source: AnySource | str | Path) -> Loaded[CandidatesRow]:
    """Read responses to judge: labelled pairs in any form (label 0, the chosen one), or `responses` lists, or
    `response_a` and `response_b` (with a label where a column `label` or `preference` clearly gives one).

    Raises:
        DataError, TryAgainError: as `read_pairs`.
    """
    from spa_recipes.data.arrow import CANDIDATES

    if isinstance(source, str | Path):
        source = DatasetSource(source=str(source))
    given: list[Raw] = []

    def finish(found: Any, raw: Raw, row: int) -> CandidatesRow:
        candidates = candidates_row(found.prompt, found.responses, found.label, row)
        given.append({column: raw.get(column) for column in LABEL_COLUMNS})
        return candidates

    loaded = _read(source, CANDIDATES, CANDIDATE_FORMS, _CANDIDATES_ACCEPTED, finish)
    # Only all values of a label column together tell what they mean.
    return loaded._replace(table=_with_labels(loaded.table, read_labels(given)))


def _with_labels(candidates: pa.Table, given: Sequence[int | None]) -> pa.Table:
    """The table, with the labels of the source for those pairs of responses that have no label yet."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = candidates["label"].to_pylist()
    counts = pc.list_value_length(candidates["responses"]).to_pylist()
    labels = [
        label if old is None and count == 2 else old for old, count, label in zip(known, counts, given, strict=True)
    ]
    place = candidates.column_names.index("label")
    return candidates.set_column(place, candidates.schema.field("label"), pa.array(labels, pa.int64()))


def _adapt_pair(row: Raw, columns: Columns) -> Raw:
    return rename(row, columns, rivals=("instruction", "conversations", "messages"))


def _adapt_conversation(row: Raw, columns: Columns) -> Raw:
    view = rename(row, columns, rivals=("messages", "conversations"))
    if columns.prompt is None and columns.chosen is None:
        return view
    view = dict(view)
    if columns.chosen is not None:
        view["completion"] = view.pop("chosen")
    elif not isinstance(view["prompt"], str):
        view["messages"] = view.pop("prompt")
    return view


def _read(
    source: AnySource,
    schema: pa.Schema,
    known: Sequence[Form],
    accepted: str,
    finish: Callable[[Any, Raw, int], Row],
    *,
    adapt: Callable[[Raw, Columns], Raw] = _adapt_pair,
    sandbox_sft: bool = False,
) -> Loaded[Row]:
    """Read a source: find the form of its rows, translate each, and collect what is malformed.

    `finish` checks what a form's parser found and gives it its canonical form.
    """
    from spa_recipes.data.arrow import table_of

    if isinstance(source, SandboxSource):
        raws, columns, skip, name = _sandbox_rows(source, sft=sandbox_sft), Columns(), False, "sandbox"
    else:
        raws, columns, skip, name = read_raw(source), source.columns, source.on_bad_row == "skip", source.source
    first = _first(raws)
    if not first:
        raise DataError("no rows", where=name, fix="give a dataset that is not empty")
    form: Form | None = None
    used: list[str] = []
    skipped: list[tuple[int, str]] = []

    def usable() -> Iterator[Row]:
        nonlocal form
        for raw in chain(first, raws):
            try:
                if raw.error is not None:
                    raise raw.error
                assert raw.value is not None
                if form is None:
                    form = _detect(first, columns, known, accepted, name, adapt)
                view = adapt(raw.value, columns)
                if mismatch := form.mismatch(view):
                    raise BadRowError(mismatch)
                row = finish(form.parse(view), view, raw.row)
                used.extend(column for column in form.columns(view) if column not in used)
            except BadRowError as error:
                fault = DataError(str(error), where=raw.where, fix="correct the row, or set on_bad_row: skip")
                if not skip:
                    raise fault from error
                skipped.append((raw.row, fault.what))
            except DataError as error:
                # Only a malformed row can be skipped, not a fault of the whole source.
                if not skip or raw.error is None:
                    raise
                skipped.append((raw.row, error.what))
            else:
                yield row

    try:
        table = table_of(usable(), schema)
    except DataError:
        deque(raws, maxlen=0)  # an error of the source as a whole is reported before one of a row
        raise
    if form is None or not len(table):
        number, reason = skipped[0]
        raise DataError(f"none of the {len(skipped):,} rows is usable; row {number}: {reason}", where=name)
    return Loaded(table, form.name, [_source_name(column, columns) for column in used], skipped)


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


def _detect(
    raw_rows: Sequence[RawRow],
    columns: Columns,
    known: Sequence[Form],
    accepted: str,
    name: str,
    adapt: Callable[[Raw, Columns], Raw],
) -> Form:
    """The form of the first rows, or an error that lists their columns."""
    first: list[Raw] = []
    missing = ""
    values = (raw.value for raw in raw_rows if raw.value is not None)
    for _, value in zip(range(_ROWS_TO_DETECT_BY), values, strict=False):
        try:
            first.append(adapt(value, columns))
        except BadRowError as error:
            missing = missing or f"{error}; found: {describe(value)}"
    if not first:
        raise DataError(missing, where=name, fix="correct `columns`")
    form = detect(first, known)
    if form is None:
        raise DataError(
            f"columns of no known form: {describe(first[0])}",
            where=name,
            fix=f"accepted are: {accepted}; or name the columns with `columns`",
        )
    return form


def _source_name(column: str, columns: Columns) -> str:
    """The name in the source of a column that `columns` may have renamed."""
    if column == "messages" and columns.prompt is not None:
        return columns.prompt
    if column == "completion" and columns.chosen is not None:
        return columns.chosen
    return getattr(columns, column, None) or column


def _sandbox_rows(source: SandboxSource, *, sft: bool) -> Iterator[RawRow]:
    from spa_recipes.sandbox.rows import preference_rows, sft_rows

    try:
        values = sft_rows(source.rows, source.seed) if sft else preference_rows(source.rows, source.seed)
    except ValueError as error:
        raise DataError(str(error), where="sandbox", fix="lower rows") from error
    return (RawRow(number, f"sandbox, row {number}", value) for number, value in enumerate(values, start=1))
