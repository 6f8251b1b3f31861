"""Random data: every form in every kind of file gives the same rows, and junk gives nothing but errors of ours."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spa_recipes.data.places import count_rows
from spa_recipes.data.rows import Message, prompt_id
from spa_recipes.data.sources import read_candidates, read_conversations, read_pairs, read_prompts
from spa_recipes.errors import SpaError
from spa_recipes.recipe.schema import Data, DatasetSource
from tests.kit.data import split_rows
from tests.kit.data_forms import FILES, FORMS, assistant, canonical, system, user, write_jsonl, write_parquet

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def items(draw: st.DrawFn, one_turn: bool) -> tuple[list[Message], str, str]:
    prompt: list[Message] = []
    if not one_turn:
        if draw(st.booleans()):
            prompt.append(system(draw(texts)))
        for _ in range(draw(st.integers(0, 2))):
            prompt += [user(draw(texts)), assistant(draw(texts))]
    prompt.append(user(draw(texts)))
    chosen, rejected = draw(st.tuples(texts, texts).filter(lambda pair: pair[0] != pair[1]))
    return prompt, chosen, rejected


@pytest.mark.parametrize("form", FORMS)
@QUICK
@given(data=st.data())
def test_every_form_in_every_file_gives_the_same_rows(form: str, data: st.DataObject) -> None:
    _, make, one_turn = FORMS[form]
    drawn = data.draw(st.lists(items(one_turn), min_size=1, max_size=4))
    kind = data.draw(st.sampled_from(sorted(FILES)))
    expected = [canonical(*item, row=number) for number, item in enumerate(drawn, start=1)]
    with tempfile.TemporaryDirectory() as folder:
        path = FILES[kind](Path(folder), [make(*item) for item in drawn])
        assert read_pairs(DatasetSource(source=str(path))).rows == expected


KEYS = [
    *("prompt", "chosen", "rejected", "messages", "conversations", "completion", "instruction", "input", "output"),
    *("system", "history", "responses", "response_a", "response_b", "label", "preference", "score_chosen", "role"),
    *("content", "from", "value", "other"),
]
ROLES = ["user", "assistant", "system", "human", "gpt", "tool"]
messages = st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(max_size=5) | st.none()})
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(ROLES)
values = st.recursive(
    scalars | messages,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)
rows = st.dictionaries(st.sampled_from(KEYS), st.lists(messages, max_size=3) | values, max_size=6)
READERS: list[Callable[..., Any]] = [read_pairs, read_prompts, read_conversations, read_candidates]


def unless_refused(use: Callable[[DatasetSource], Any], source: DatasetSource) -> Any:
    """What `use` returns, or None where it raised an error of ours, in one line."""
    try:
        return use(source)
    except SpaError as error:
        line = str(error)
    assert "\n" not in line
    return None


JUNK = given(junk=st.lists(rows, min_size=1, max_size=4), skip=st.booleans())


@settings(QUICK, max_examples=40)
@JUNK
def test_junk_rows_give_rows_or_our_errors(junk: list[dict[str, Any]], skip: bool) -> None:
    check_junk(junk, skip)


@pytest.mark.long
@settings(QUICK, max_examples=300)
@JUNK
def test_more_junk_rows_give_rows_or_our_errors(junk: list[dict[str, Any]], skip: bool) -> None:
    check_junk(junk, skip)


def check_junk(junk: list[dict[str, Any]], skip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "junk.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in junk))
        for read in READERS:
            loaded = unless_refused(read, DatasetSource(source=str(path), on_bad_row="skip" if skip else "error"))
            if loaded is not None:
                assert len(loaded.rows) + len(loaded.skipped) == len(junk)
                # What is accepted can be written and read.
                json.dumps(loaded.rows, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@settings(QUICK, max_examples=60)
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_junk_bytes_give_our_errors(suffix: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"junk.{suffix}"
        path.write_bytes(raw)
        for use in [*READERS, count_rows]:
            unless_refused(use, DatasetSource(source=str(path), on_bad_row="skip"))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@settings(QUICK, max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_files_never_give_wrong_rows(kind: str, share: float) -> None:
    drawn = [([user(f"question {i}")], f"good {i}", f"bad {i}") for i in range(5)]
    expected = [canonical(*item, row=number) for number, item in enumerate(drawn, start=1)]
    with tempfile.TemporaryDirectory() as folder:
        path = FILES[kind](Path(folder), [FORMS["trl_strings"][1](*item) for item in drawn])
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])
        loaded = unless_refused(read_pairs, DatasetSource(source=str(path), on_bad_row="skip"))
        if loaded is None:
            return
        rows = loaded.rows
        if kind == "csv":
            # Nothing marks the end of the last cell of a CSV file.
            rows.pop()
        assert rows == expected[: len(rows)]


def test_parquet_and_jsonl_of_the_same_rows_agree(tmp_path: Path) -> None:
    raw = [FORMS["ultrafeedback"][1]([user(f"q{i}")], "a", "b") for i in range(2500)]
    one = read_pairs(DatasetSource(source=str(write_jsonl(tmp_path, raw)))).rows
    assert one == read_pairs(DatasetSource(source=str(write_parquet(tmp_path, raw)))).rows


@QUICK
@given(
    names=st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=30),
    counts=st.tuples(st.integers(0, 3), st.lists(st.integers(1, 2), max_size=2), st.integers(0, 2)),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_prompt_is_in_two_parts(names: list[str], counts: tuple[int, list[int], int], seed: int) -> None:
    pairs = [canonical([user(name)], "a", "b", row=number) for number, name in enumerate(names, start=1)]
    seed_labels, prompts, heldout = counts
    data = Data(
        pairs=DatasetSource(source="x.jsonl"),
        shuffle_seed=seed,
        seed_labels=seed_labels,
        prompts_per_iteration=prompts,
        heldout=heldout,
    )
    try:
        split = split_rows(pairs, None, data)
    except SpaError:
        return
    parts: list[Any] = [split.seed, *split.prompts, split.heldout]
    ids = [{row["prompt_id"] for row in part} for part in parts]
    assert sum(len(part) for part in ids) == len(set().union(*ids))
    assert [len(part) for part in split.prompts] == [len(part) for part in ids[1:-1]]
    asked = [seed_labels, *prompts, heldout]
    assert [count - len(part) for count, part in zip(asked, parts, strict=True)] == list(split.dropped.values())
    assert all(row["prompt_id"] == prompt_id(row["prompt"]) for part in parts for row in part)
