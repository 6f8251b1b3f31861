"""Canonical rows and their JSONL files."""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.rows import prompt_id, prompt_ids_alike, read_jsonl, read_lines, write_jsonl
from spa_recipes.errors import DataError


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "line\u2028separator, \u0085, \r\n, \x00, naïve, 猫, 🦊"},
        {"n": 1, "deep": [{"a": None}]},
        {},
    ]
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, rows) == 3
    assert read_jsonl(path) == rows
    raw = path.read_bytes()
    assert raw.count(b"\n") == 3
    assert "猫".encode() in raw
    assert b"\r" not in raw


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: cannot be written as JSON"):
        write_jsonl(path, [{"a": 2}, {"a": float("nan")}])
    with pytest.raises(DataError, match="half a surrogate pair"):
        write_jsonl(path, [{"a": "\ud800"}])
    with pytest.raises(KeyError):
        write_jsonl(path, ({"a": {"there": 1}["gone"]} for _ in range(2)))
    assert read_jsonl(path) == [{"a": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_jsonl(tmp_path / "rows.jsonl", [])
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "rows.jsonl")]
    assert modes[0] == modes[1]


def test_bom_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert [(line.number, line.value) for line in read_lines(path)] == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows\.jsonl:2: not JSON \("),
        (b'{"a": 1}\n{"a": "x', r"rows\.jsonl:2: the line is cut off or not JSON"),
        (b'{"a": 1}\n[1]\n', r"rows\.jsonl:2: not a JSON object but a list"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"rows\.jsonl:2: not UTF-8 at byte 16"),
        (b'\xef\xbb\xbf{"a": "\xff"}\n', r"rows\.jsonl:1: not UTF-8 at byte 10"),
        (b"[" * 100_000 + b"\n", r"rows\.jsonl:1: JSON is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}\n", r"rows\.jsonl:1: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        read_jsonl(tmp_path / "none.jsonl")


def test_prompt_id_depends_on_content_only() -> None:
    one = prompt_id([{"role": "user", "content": "Hi"}])
    assert one == prompt_id([{"content": "Hi", "role": "user"}])
    assert one == prompt_id([{"role": "user", "content": "Hi", "name": "extra"}])
    assert len(one) == 16
    assert int(one, 16) >= 0
    assert one != prompt_id([{"role": "user", "content": "Hi "}])
    assert one != prompt_id([{"role": "system", "content": "Hi"}])


def test_prompt_id_is_frozen() -> None:
    # Stage keys and published files hold these ids: a change makes old results unfindable.
    assert prompt_id([{"role": "user", "content": "naïve 猫"}]) == "11f0e3c142d37c77"


@pytest.mark.parametrize("text", ["Hi", "naïve 猫 🦊\u2028", 'say "x"\\n\n\x00', ""])
def test_a_prompt_is_named_by_the_json_of_its_messages(text: str) -> None:
    messages: list[Any] = [{"role": "system", "content": text}, {"content": f"{text}!", "role": "user"}]
    messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": text}}]})
    plain = json.dumps(messages, sort_keys=True, separators=(",", ":"))
    assert prompt_id(messages) == hashlib.sha256(plain.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "lines",
    [
        ['{"a": [{"x": 1}', '{"y": 2}]}'],
        ['{"a": 1}, {"b": 1', '"c": 2}'],
        ['{"a": 1}, {"b": 2}', '{"c": 3}', ""],
        ['{"a": 1}', "", "  ", '{"a": 2}\r', ' {"a": 3}', '{"a": 4} 5', "[1", "2]", '{"a": NaN}', "null", '{"a": 6}'],
        ["[]", '{"a": "\\ud800"}', '{"a": 1, "a": 2}', "{}"],
    ],
)
def test_lines_that_are_parsed_together_are_what_each_is_alone(lines: list[str], tmp_path: Path) -> None:
    def read(texts: list[str]) -> list[tuple[str, str]]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{text}\n" for text in texts))
        return [(repr(line.value), line.error.what if line.error else "") for line in read_lines(path)]

    alone = [found for line in lines for found in read([line])]
    assert read(lines) == alone
    plain = ['{"a": 1}'] * 3
    assert read([*plain, *lines, *plain]) == [*read(plain), *alone, *read(plain)]


def test_prompts_that_are_alike_have_the_names_of_each() -> None:
    texts = ["a", 'ü\n"', "\u2028", ""]
    for roles in (["user"], ["system", "user"]):
        rows = [[{"role": role, "content": text} for role in roles] for text in texts]
        assert prompt_ids_alike(roles, [texts] * len(roles)) == [prompt_id(row) for row in rows]  # type: ignore[arg-type]
