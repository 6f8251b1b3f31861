"""Rows of datasets in their canonical form, and JSONL files of any rows. Standard library only.

The rows that stages hand to each other are in `stage_rows` (JSONL) and `tables` (Parquet).
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar

from spa_recipes.encoding import remedy, wide_encoding
from spa_recipes.errors import DataError, TryAgainError, system_error
from spa_recipes.state import atomic

RowT = TypeVar("RowT", bound=Mapping[str, Any])
BOM = b"\xef\xbb\xbf"
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What datasets and templates call the thoughts before an answer, where these stand beside its text."""
_NAMING = ("role", "content", "tool_calls", *THOUGHTS, "tools")
_TEXT = json.encoder.encode_basestring_ascii
_DECODER = json.JSONDecoder()
_BLOCK_BYTES = 256 * 1024
_WORD = secrets.token_hex(16)
_BETWEEN_LINES = f',"{_WORD}",'.encode()
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class Message(TypedDict):
    """One turn; `role` is system, user, assistant or tool. What is beside the text is the chat template's to write.

    Attributes:
        reasoning_content, reasoning, thinking: the assistant's thoughts, by the name that the dataset has for them.
        tools: with the first message of a conversation, the tools that the assistant may call.
        weight: 0 for an answer of a demonstration that is not learned.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    thinking: NotRequired[str]
    tools: NotRequired[list[dict[str, Any]]]
    weight: NotRequired[int]


class Prompt(TypedDict):
    """What every row about a prompt holds: the prompt, whose last message is the user's, and its name."""

    prompt_id: str
    prompt: list[Message]


class PromptRow(Prompt):
    """A prompt to answer, and its number in the source."""

    row: int


class PairRow(PromptRow):
    """A labelled pair; `chosen` and `rejected` hold exactly one assistant message each.

    Scores, margin, weight and id stand beside the pair for whoever reads its file; no training uses them.
    """

    chosen: list[Message]
    rejected: list[Message]
    score_chosen: NotRequired[float]
    score_rejected: NotRequired[float]
    gold_chosen: NotRequired[float]
    gold_rejected: NotRequired[float]
    margin: NotRequired[float]
    weight: NotRequired[float]
    id: NotRequired[str]


class CandidatesRow(PromptRow):
    """Responses to judge; `label` is the index of the one that is known to be better."""

    responses: list[str]
    label: int | None


class ConversationRow(TypedDict):
    """A demonstration; its last message is the assistant's."""

    messages: list[Message]
    row: int


class Line(NamedTuple):
    """A line of a JSONL file: an object, or what is wrong with it."""

    number: int
    value: dict[str, Any] | None
    error: DataError | None


def prompt_id(messages: Iterable[Message]) -> str:
    """Name a prompt by its content: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    text = f"[{','.join([_canonical(message) for message in messages])}]"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_ids_alike(roles: Sequence[str], contents: Sequence[Sequence[str]]) -> list[str]:
    """`prompt_id` of many prompts whose messages have these roles, and texts alone.

    Args:
        contents: the texts of the first, the second ... message of all prompts.
    """
    messages = [f'{{"content":%s,"role":{_TEXT(role).replace("%", "%%")}}}' for role in roles]
    whole = f"[{','.join(messages)}]"
    texts = zip(*(map(_TEXT, column) for column in contents), strict=True)
    return [hashlib.sha256((whole % of_row).encode()).hexdigest()[:16] for of_row in texts]


def _canonical(message: Message) -> str:
    """The canonical JSON of what names a prompt in a message. Most messages have a role and a text only."""
    named: dict[str, Any] = {key: value for key, value in message.items() if key in _NAMING}
    if len(named) > 2:
        return json.dumps(named, sort_keys=True, separators=(",", ":"))
    return f'{{"content":{_TEXT(message["content"])},"role":{_TEXT(message["role"])}}}'


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object per line and return the number of rows; the file gets its name when it is complete.

    Raises:
        DataError: a row holds NaN or infinity, which JSON does not have, or half a surrogate pair.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        for count, row in enumerate(rows, start=1):
            file.write(_encode(row, f"{path}, row {count}"))
        file.flush()
        atomic.fsync(file.fileno())
    return count


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read the objects of a JSONL file; blank lines are skipped.

    Raises:
        DataError: the file is missing, or a line is not a JSON object.
    """
    return [value for _, value in _objects(path)]


def read_rows(path: Path | str, kind: type[RowT]) -> list[RowT]:
    """Read the rows that a stage wrote as rows of this type, e.g. `read_rows(path, PairRow)`.

    Raises:
        DataError: as `read_jsonl`, or a row lacks a key of its type.
    """
    return list(iterate_rows(path, kind))


def iterate_rows(path: Path | str, kind: type[RowT]) -> Iterator[RowT]:
    """`read_rows` row by row: for many rows in little memory."""
    needed: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]
    for number, value in _objects(path):
        if missing := needed - value.keys():
            raise DataError(
                f"no key `{min(missing)}`", where=f"{path}:{number}", fix="run the stage that writes this file again"
            )
        row: Any = value
        yield row


class RowsInOrder(Generic[RowT]):
    """Rows that a stage wrote, asked for by their places in ascending order: one of them is in memory at a time."""

    def __init__(self, path: Path | str, kind: type[RowT]) -> None:
        self._path = path
        self._rows = enumerate(iterate_rows(path, kind))
        self._last: tuple[int, RowT] | None = None

    def __getitem__(self, place: int) -> RowT:
        """The row at a place, which is that of the call before or one behind it.

        Raises:
            DataError: there is no such row, or it was passed.
        """
        while self._last is None or self._last[0] < place:
            self._last = next(self._rows, None)
            if self._last is None:
                break
        if self._last is None or self._last[0] != place:
            what = f"row {place + 1} is asked for out of order, or is not there"
            raise DataError(what, where=str(self._path), fix="run the stages that write these files again")
        return self._last[1]


def _objects(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank."""
    for line in read_lines(path):
        if line.error is not None:
            raise line.error
        if line.value is not None:
            yield line.number, line.value


def read_lines(path: Path | str) -> Iterator[Line]:
    """Go through a JSONL file. A bad line is an item with its error; the lines after it follow.

    Only `\\n` ends a line, as JSON text may hold U+2028 and its like. A BOM and CRLF are accepted.

    Raises:
        DataError: there is no such file, or it is UTF-16 or UTF-32. TryAgainError: the disk fails.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        told = system_error(error, place=str(path))
        if isinstance(told, TryAgainError):
            raise told from error
        raise DataError(f"cannot be opened ({error.strerror or error})", where=str(path)) from error
    with file:
        yield from lines_of(file, path)


def lines_of(file: IO[bytes], path: Path) -> Iterator[Line]:
    """`read_lines` of a file that is open."""
    offset, number = 0, 0
    while block := file.readlines(_BLOCK_BYTES):  # together so many that each is parsed at little cost
        if not number:
            refuse_wide(block[0], path)
        values = _whole_objects(block)
        if values is not None:
            yield from map(Line, range(number + 1, number + 1 + len(block)), values, repeat(None))
        else:
            yield from _lines_by_line(block, number, offset, path)
        number += len(block)
        offset += sum(map(len, block))


def _lines_by_line(block: list[bytes], number: int, offset: int, path: Path) -> Iterator[Line]:
    """Lines of which one is no object or holds more; there are `number` lines of `offset` bytes before them."""
    for raw in block:
        number += 1
        value = _whole_object(raw)
        line = Line(number, value, None) if value is not None else _parse_line(raw, number, offset, path)
        offset += len(raw)
        if line is not None:
            yield line


def _whole_objects(block: list[bytes]) -> list[dict[str, Any]] | None:
    """The object of each line, parsed as one array; None where a line holds anything else.

    A word that no line can know stands between two lines, so that each object of the array is exactly one line.
    """
    try:
        values = _DECODER.decode((b"[" + _BETWEEN_LINES.join(block) + b"]").decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    objects: list[dict[str, Any]] = values[::2]
    is_one_each = len(values) == 2 * len(block) - 1 and values[1::2].count(_WORD) == len(block) - 1
    return objects if is_one_each and {*map(type, objects)} == {dict} else None


def _whole_object(raw: bytes) -> dict[str, Any] | None:
    """The object of a line that holds nothing else, as nearly every line; None for one to look at more closely."""
    try:
        text = raw.decode("utf-8")
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if type(value) is dict and text[end:] in ("\n", "") else None


def _parse_line(raw: bytes, number: int, offset: int, path: Path) -> Line | None:
    where = f"{path}:{number}"
    if number == 1 and raw.startswith(BOM):
        raw, offset = raw[len(BOM) :], offset + len(BOM)
    if not raw.strip():
        return None
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, None, not_utf8(error, offset, where))
    except RecursionError:
        return Line(number, None, DataError("JSON is nested too deeply", where=where))
    except ValueError as error:
        cut = "the line is cut off or not JSON" if not raw.endswith(b"\n") else "not JSON"
        return Line(number, None, DataError(f"{cut} ({error})", where=where, fix="write one JSON object per line"))
    if not isinstance(value, dict):
        what = f"not a JSON object but a {type(value).__name__}"
        return Line(number, None, DataError(what, where=where, fix="write one JSON object per line"))
    return Line(number, value, None)


def not_utf8(error: UnicodeDecodeError, offset: int, where: str) -> DataError:
    """The error for bytes that are not UTF-8; `offset` is where the decoded part begins in its file."""
    return DataError(f"not UTF-8 at byte {offset + error.start}", where=where, fix=remedy())


def refuse_wide(head: bytes, path: Path) -> None:
    """Refuse a file whose first bytes are those of UTF-16 or UTF-32: none of its lines can be read.

    Raises:
        DataError: it is one.
    """
    if encoding := wide_encoding(head):
        raise DataError(f"{encoding} text, not UTF-8", where=str(path), fix=remedy(encoding))


def _encode(row: Mapping[str, Any], where: str) -> bytes:
    try:
        return _ENCODER.encode(row).encode("utf-8") + b"\n"
    except UnicodeEncodeError as error:
        raise DataError("text holds half a surrogate pair, which UTF-8 cannot write", where=where) from error
    except ValueError as error:
        raise DataError(f"cannot be written as JSON ({error})", where=where) from error
