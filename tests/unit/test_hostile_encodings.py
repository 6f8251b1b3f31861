"""Text files in another encoding than UTF-8, as old tools and Windows write them: one line that says what to do."""

from pathlib import Path

import pytest

from spa_recipes.data.sources import read_pairs
from spa_recipes.encoding import wide_encoding
from spa_recipes.state.reading import read_text
from tests.kit.data import error_of, source

FILES = {
    "a.jsonl": '{"prompt": "wie?", "chosen": "schön", "rejected": "b"}\n' * 2,
    "a.json": '[{"prompt": "wie?",\n "chosen": "schön", "rejected": "b"}]',
    "a.csv": "prompt,chosen,rejected\nwie?,schön,b\n",
}
WIDE = {"utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32", "utf-32-be": "UTF-32"}


@pytest.mark.parametrize("skip", ["error", "skip"])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_wide_characters(name: str, encoding: str, skip: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode(encoding))
    error = error_of(read_pairs, tmp_path / name, on_bad_row=skip)
    kind = WIDE[encoding]
    assert str(error) == (
        f"{tmp_path / name}: {kind} text, not UTF-8; save the file as UTF-8, such as by `iconv -f {kind} -t UTF-8`"
    )


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize(("name", "line"), [("a.jsonl", 1), ("a.json", 2), ("a.csv", 2)])
def test_a_file_of_single_bytes(name: str, line: int, encoding: str, mark: bytes, tmp_path: Path) -> None:
    content = mark + FILES[name].encode(encoding)
    (tmp_path / name).write_bytes(content)
    error, place = str(error_of(read_pairs, tmp_path / name)), content.index(0xF6)
    assert error.startswith(f"{tmp_path / name}:{line}: not UTF-8 at byte {place}; save the file as UTF-8")
    assert "`iconv -f WINDOWS-1252 -t UTF-8`" in error


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", FILES)
def test_utf_8_is_read_with_a_mark_and_without(name: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(mark + FILES[name], encoding="utf-8")
    assert read_pairs(source(tmp_path / name)).rows[0]["chosen"][0]["content"] == "schön"


@pytest.mark.parametrize("text", ["", "a", "ab", "日本語" * 50, "\0", "a\0b", "\0" * 7, '{"a": "\\u0000"}', "x" * 500])
def test_other_text_is_not_taken_for_wide(text: str) -> None:
    assert wide_encoding(text.encode()) == ""


def test_a_template_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes("{{ 'schön' }}".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 at byte 7; save the file as UTF-8"):
        read_text(path)
    path.write_bytes("{{ 'schön' }}".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16 text, not UTF-8"):
        read_text(path)
