"""`source` as a list of files, and files of `spa label`."""

from pathlib import Path

import pytest

from spa_recipes.api import prepare
from spa_recipes.data.check import faults_of
from spa_recipes.data.counts import placed
from spa_recipes.data.places import count_rows
from spa_recipes.data.sources import PAIRS, read_pairs
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource
from tests.kit.benchmarks import write_lines
from tests.kit.labelling import session, source_of
from tests.kit.recipes import mini, write_recipe


def recipe_of(folder: Path, source: list[str]) -> Path:
    """A recipe with a list of files."""
    recipe = mini(evaluation={"reward": "none"})
    recipe["data"] = {"pairs": {"source": source}, "seed_labels": 4, "prompts_per_iteration": [4, 4], "heldout": 2}
    return write_recipe(folder / "r.yaml", recipe)


@pytest.fixture
def both(tmp_path: Path) -> DatasetSource:
    """Labels by a person, and pairs of another form."""
    with session(tmp_path / "labels.jsonl", source_of(12)) as one:
        for choice in ("tie", *["left"] * 10, "skip"):
            number = one.current()
            assert number is not None
            one.choose(number, choice)  # type: ignore[arg-type]
    rows = [{"instruction": f"ask {i}", "output": [f"good {i}", f"bad {i}"]} for i in range(4)]
    write_lines(tmp_path / "alpaca.jsonl", rows)
    return DatasetSource(source=[str(tmp_path / "labels.jsonl"), str(tmp_path / "alpaca.jsonl")])


def test_each_file_is_read_in_its_own_form_and_rows_are_numbered_on(both: DatasetSource) -> None:
    loaded = read_pairs(both)
    rows = loaded.rows
    assert [row["row"] for row in rows] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16]
    assert [row["chosen"][0]["content"] for row in rows[-4:]] == [f"good {i}" for i in range(4)]
    assert [row for row, _ in loaded.skipped] == [1, 11, 12]
    assert loaded.form == "TRL explicit, message lists; Alpaca pairs, output list"
    assert count_rows(both) == 16


def test_the_most_rows_are_those_of_all_files_together(both: DatasetSource) -> None:
    assert len(read_pairs(both.model_copy(update={"max_rows": 10})).rows) == 10
    assert len(read_pairs(both.model_copy(update={"max_rows": 3})).rows) == 3


def test_ties_and_skips_of_a_person_are_no_faults(both: DatasetSource) -> None:
    assert faults_of(both, PAIRS) == (13, [])


def test_what_a_person_left_open_takes_no_place_among_the_parts(both: DatasetSource) -> None:
    skipped = read_pairs(both).skipped
    assert placed(skipped) == []
    assert placed([*skipped, (17, "a tie"), (18, "not JSON")]) == [17, 18]


def test_a_bad_row_is_named_with_its_own_file(both: DatasetSource, tmp_path: Path) -> None:
    with (tmp_path / "alpaca.jsonl").open("a") as file:
        file.write("{\n")
    (fault,) = faults_of(both, PAIRS)[1]
    assert "alpaca.jsonl, row 5" in str(fault)


def test_a_list_has_no_dataset_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="owner/name: a list has files and folders only"):
        prepare(recipe_of(tmp_path, ["owner/name"]))


def test_what_a_file_of_the_list_holds_is_part_of_the_key(both: DatasetSource, tmp_path: Path) -> None:
    assert isinstance(both.source, list)
    path = recipe_of(tmp_path, both.source)

    def key() -> str:
        return prepare(path, afresh=True).plan.stage("data").key

    before = key()
    assert key() == before
    write_lines(tmp_path / "alpaca.jsonl", [{"instruction": "x", "output": ["a", "b"]}])
    assert key() != before
