"""What is counted of a dataset: rows that give nothing and why, repetition, contradiction, near-equal prompts."""

import random
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data import counts
from spa_recipes.data.labelling import NOT_GOOD
from spa_recipes.data.sources import read_conversations, read_pairs
from spa_recipes.errors import DataError
from tests.kit.data import GOOD, source
from tests.kit.data_forms import user, write_jsonl


def test_reasons_are_counted_with_three_examples_each(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{**GOOD, "chosen": ""}] * 5 + [{**GOOD, "rejected": "That."}] * 2
    loaded = read_pairs(source(write_jsonl(tmp_path, [GOOD] * 3 + bad), on_bad_row="skip"))
    assert counts.reasons(loaded.skipped) == {
        "the chosen response is empty": (5, [4, 5, 6]),
        "the chosen response equals the rejected one": (2, [9, 10]),
    }
    assert counts.table(loaded.skipped) == [
        "7 rows gave nothing:",
        "          5  the chosen response is empty (rows 4, 5, 6, ...)",
        "          2  the chosen response equals the rejected one (rows 9, 10)",
    ]
    assert counts.table([]) == []


def test_numbers_in_a_reason_do_not_part_it() -> None:
    skipped = [(n, f"message {n} of `chosen` has no text") for n in range(1, 30)] + [(90, "a tie")]
    assert list(counts.reasons(skipped).values()) == [(29, [1, 2, 3]), (1, [90])]
    many = [(n, f"label {chr(97 + n % 26)}{chr(97 + n // 26)}") for n in range(100)]
    found = counts.reasons(many)
    assert sum(reason.rows for reason in found.values()) == 100
    assert found["other reasons"].rows == 100 - 12


def test_a_larger_share_than_the_limit_stops(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [GOOD] * 38 + [{**GOOD, "chosen": ""}] * 2)
    given = source(path, on_bad_row="skip")
    counts.check_skipped(read_pairs(given), given, "data.pairs")  # 5 % is not more than 5 %
    with pytest.raises(DataError) as caught:
        counts.check_skipped(read_pairs(given), given, "data.pairs", 0.04)
    assert str(caught.value) == (
        "data.pairs: 2 of 40 rows (5.0%) give nothing, more than max_skipped (4.0%); 2 of them: the chosen response is "
        "empty (row 39); mend the data, or set max_skipped to 0.06 if that is right"
    )
    own = source(path, on_bad_row="skip", max_skipped=0.5)
    counts.check_skipped(read_pairs(own), own, "data.pairs", 0.0)


def test_bad_answers_are_no_loss_of_demonstrations(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": f"a{i}", "label": i % 2 == 0} for i in range(10)]
    given = source(write_jsonl(tmp_path, rows))
    loaded = read_conversations(given)
    assert {reason for _, reason in loaded.skipped} == {NOT_GOOD}
    counts.check_skipped(loaded, given, "sft.data", 0.0)


def test_pairs_that_repeat_and_contradict_one_another(tmp_path: Path) -> None:
    turned = {**GOOD, "chosen": "No.", "rejected": "That."}
    other = {**GOOD, "prompt": "Who?"}
    found = counts.repeats(read_pairs(source(write_jsonl(tmp_path, [GOOD, other, turned, GOOD, other]))).stored)
    assert found.repeated == [4, 5]
    assert found.conflicting == [(1, 3)]
    assert found.lines == [
        "2 pairs repeat an earlier pair (rows 4, 5)",
        "1 pair contradicts a pair of the same prompt and answers (rows 1 and 3)",
        "one answer stands in 5 rows (chosen in 4, rejected in 1; rows 1, 2, 3, ...): That.",
        "one answer stands in 5 rows (chosen in 1, rejected in 4; rows 1, 2, 3, ...): No.",
    ]
    assert counts.repeats(read_pairs(source(write_jsonl(tmp_path, [GOOD, other]))).stored).lines == []


def test_an_answer_that_stands_in_many_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
    for i in (3, 7, 8, 20):
        rows[i]["chosen" if i != 8 else "rejected"] = "} }\n" + 100 * "x"
    (found,) = counts.repeats(read_pairs(source(write_jsonl(tmp_path, rows))).stored).frequent
    assert (found.chosen, found.rejected) == ([4, 8, 21], [9])
    said = f"(chosen in 3, rejected in 1; rows 4, 8, 9, ...): }} }} {96 * 'x'}..."
    assert str(found) == f"one answer stands in 4 rows {said}"


def test_prompts_that_differ_in_case_and_punctuation_across_parts() -> None:
    def row(number: int, text: str) -> dict[str, Any]:
        return {"row": number, "prompt_id": text, "prompt": [user(text)]}

    near = counts.NearEqual()
    first = [row(1, "What is it?"), row(2, "what is it")]  # near, but in one part
    assert list(near.through("seed", first)) == first
    assert list(near.through("held out", [row(3, " WHAT  is it ?!"), row(4, "What is that?")])) != []
    assert near.count == 1
    assert near.lines == ["1 prompt is nearly one of another part (row 1 in seed and 3 in held out)"]


def test_words_of_ascii_texts_are_those_of_the_expression_for_all_texts() -> None:
    draw = random.Random(0)
    for text in ("".join(map(chr, draw.choices(range(128), k=40))) for _ in range(200)):
        assert counts._words_in(text) == " ".join(counts._WORD.findall(text.casefold())).encode()
