"""How rows are shared out."""

from typing import Any

import datasets
import pytest

from spa_recipes.data.rows import PairRow, PromptRow
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Data, DatasetSource
from tests.kit.data import split_rows


def pair(row: int, name: str | None = None) -> PairRow:
    name = name or f"p{row}"
    return {
        "prompt_id": name,
        "prompt": [{"role": "user", "content": name}],
        "chosen": [{"role": "assistant", "content": f"good {row}"}],
        "rejected": [{"role": "assistant", "content": f"bad {row}"}],
        "row": row,
    }


def prompt(row: int, name: str | None = None) -> PromptRow:
    whole = pair(row, name)
    return {"prompt_id": whole["prompt_id"], "prompt": whole["prompt"], "row": row}


def settings(**values: Any) -> Data:
    return Data(pairs=DatasetSource(source="x.jsonl"), **{"seed_labels": 2, "prompts_per_iteration": [3, 4], **values})


def numbers(rows: Any) -> list[int]:
    return [row["row"] for row in rows]


@pytest.mark.parametrize(("rows", "seed"), [(1, 42), (10, 42), (61, 7), (1000, 0)])
def test_the_order_is_that_of_datasets_shuffle(rows: int, seed: int) -> None:
    parts = split_rows(
        [pair(i + 1) for i in range(rows)],
        None,
        settings(seed_labels=rows, prompts_per_iteration=[], shuffle_seed=seed),
    )
    shuffled = datasets.Dataset.from_dict({"row": list(range(1, rows + 1))}).shuffle(seed=seed)
    assert numbers(parts.seed) == shuffled["row"][:]


def test_parts_follow_one_another() -> None:
    pairs = [pair(i + 1) for i in range(20)]
    order = numbers(split_rows(pairs, None, settings(seed_labels=20, prompts_per_iteration=[])).seed)
    parts = split_rows(pairs, None, settings(heldout=5))
    assert numbers(parts.seed) == order[:2]
    assert [numbers(part) for part in parts.prompts] == [order[2:5], order[5:9]]
    assert numbers(parts.heldout) == order[15:]
    assert parts.dropped == {"seed": 0, "iteration 1": 0, "iteration 2": 0, "heldout": 0}
    assert set(parts.prompts[0][0]) == {"prompt_id", "prompt", "row"}


def test_rows_of_other_parts_prompts_are_dropped_and_counted() -> None:
    order = numbers(
        split_rows([pair(i + 1) for i in range(12)], None, settings(seed_labels=12, prompts_per_iteration=[])).seed
    )
    # Shuffled: seed a a | iteration 1: a b b | iteration 2: b c d f | held out: e f f
    names = dict(zip(order, "aaabbbcdfeff", strict=True))
    parts = split_rows([pair(row, names[row]) for row in sorted(order)], None, settings(heldout=3))
    assert [row["prompt_id"] for row in parts.heldout] == ["e", "f", "f"]
    assert [row["prompt_id"] for row in parts.seed] == ["a", "a"]
    assert [[row["prompt_id"] for row in part] for part in parts.prompts] == [["b"], ["c", "d"]]
    assert parts.dropped == {"heldout": 0, "seed": 0, "iteration 1": 2, "iteration 2": 2}


def test_held_out_rows_do_not_depend_on_the_other_parts() -> None:
    pairs = [pair(i + 1, f"p{i % 15}") for i in range(20)]
    few = split_rows(pairs, None, settings(seed_labels=1, prompts_per_iteration=[], heldout=4))
    many = split_rows(pairs, None, settings(seed_labels=8, prompts_per_iteration=[4, 4], heldout=4))
    assert few.heldout == many.heldout
    assert not {row["prompt_id"] for row in many.seed} & {row["prompt_id"] for row in many.heldout}


def test_prompts_of_their_own() -> None:
    pairs = [pair(i + 1) for i in range(6)]
    prompts = [prompt(i + 1, f"q{i}") for i in range(6)] + [prompt(7, "p1"), prompt(8, "q0")]
    order = numbers(split_rows(pairs, None, settings(seed_labels=6, prompts_per_iteration=[])).seed)
    parts = split_rows(pairs, prompts, settings(prompts_per_iteration=[8], heldout=4))
    assert numbers(parts.seed) == order[:2]
    assert {row["prompt_id"] for row in parts.prompts[0]} >= {f"q{i}" for i in range(6)}
    assert len({row["prompt_id"] for row in parts.prompts[0]}) == len(parts.prompts[0])
    assert numbers(parts.heldout) == order[2:6]
    assert "p1" not in {row["prompt_id"] for row in parts.prompts[0]}  # held out, or a seed prompt


def test_skipped_rows_keep_their_places() -> None:
    whole = split_rows([pair(i + 1) for i in range(20)], None, settings(heldout=5))
    bad = [whole.seed[0]["row"], whole.prompts[1][2]["row"]]
    rows = [pair(i + 1) for i in range(20) if i + 1 not in bad]
    parts = split_rows(rows, None, settings(heldout=5), skipped_pairs=bad)
    assert parts.seed == whole.seed[1:]
    assert parts.prompts[0] == whole.prompts[0]
    assert parts.prompts[1] == [row for row in whole.prompts[1] if row["row"] not in bad]
    assert parts.heldout == whole.heldout
    assert parts.dropped == {"seed": 1, "iteration 1": 0, "iteration 2": 1, "heldout": 0}


@pytest.mark.parametrize(("fraction", "count"), [(0.033, 33), (0.1, 100), (1.0, 1000), (0.0016, 2)])
def test_a_fraction_of_all_rows(fraction: float, count: int) -> None:
    pairs = [pair(i + 1) for i in range(1000)]
    assert len(split_rows(pairs, None, settings(seed_labels=fraction, prompts_per_iteration=[])).seed) == count


def test_no_seed_labels() -> None:
    parts = split_rows([pair(i + 1) for i in range(9)], None, settings(seed_labels=0))
    assert parts.seed == []
    assert [len(part) for part in parts.prompts] == [3, 4]


@pytest.mark.parametrize(
    ("pairs", "prompts", "values", "message"),
    [
        (
            8,
            None,
            {},
            r"data\.seed_labels 2 \+ data\.prompts_per_iteration \[3, 4\] ask for 9 rows, but data\.pairs has 8",
        ),
        (
            9,
            None,
            {"heldout": 1},
            r"data\.heldout 1 ask for 10 rows, but data\.pairs has 9; lower data\.seed_labels or",
        ),
        (4, 6, {}, r"data\.prompts_per_iteration \[3, 4\] ask for 7 rows, but data\.prompts has 6"),
        (1, 9, {}, r"data\.seed_labels 2 ask for 2 rows, but data\.pairs has 1"),
        (10, None, {"seed_labels": 0.01}, r"data\.seed_labels 0\.01 of 10 rows is no row at all"),
    ],
)
def test_too_few_rows(pairs: int, prompts: int | None, values: dict[str, Any], message: str) -> None:
    prompt_rows = None if prompts is None else [prompt(i + 1) for i in range(prompts)]
    with pytest.raises(DataError, match=message):
        split_rows([pair(i + 1) for i in range(pairs)], prompt_rows, settings(**values))


def test_a_part_without_fresh_prompts_is_an_error() -> None:
    with pytest.raises(DataError, match=r"iteration 1 is empty: none of its 3 rows"):
        split_rows([pair(i + 1, "same") for i in range(9)], None, settings())
    with pytest.raises(DataError, match="the seed part is empty"):
        split_rows([pair(i + 1, "same") for i in range(9)], None, settings(prompts_per_iteration=[], heldout=2))
