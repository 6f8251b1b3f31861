"""What the README shows is true of this version."""

import json
import re
from pathlib import Path

import pytest

from spa_recipes.recipe.load import load_recipe
from tests.benchmarks.sandbox_table import RECIPES, comparison_markdown, markdown
from tests.kit.cli import Spa

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_recipes_in_the_readme_load(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    whole, built_on = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    for text in (whole, built_on):
        (tmp_path / "my-run.yaml").write_text(text)
        assert load_recipe(tmp_path / "my-run.yaml").recipe.iterations == 2


def test_files_and_targets_that_it_names_exist() -> None:
    for name in re.findall(r"(?:recipes|tests|spa_recipes)/[\w./]+\w", README):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", README)) <= targets
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    table = README.partition("## The recipes")[2].partition("## ")[0]
    first_cells = re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
    assert {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)} == shipped


def test_the_table_is_the_one_that_was_measured() -> None:
    """`python -m tests.benchmarks.sandbox_table` wrote the record; the README shows it as it is."""
    record = json.loads((ROOT / "tests" / "benchmarks" / "sandbox_table.json").read_text())
    assert len(record["seeds"]) >= 5
    assert all(row["seeds"].keys() == set(map(str, record["seeds"])) for row in record["rows"])
    for row in record["rows"]:  # the summary is that of the seeds
        for name, value in row["summary"].items():
            known = [figures[name] for figures in row["seeds"].values() if name in figures]
            assert value["mean"] == pytest.approx(sum(known) / len(known))
    assert markdown(record["rows"]) in README
    assert comparison_markdown(record["comparisons"]) in README
    assert record["date"] in README
    for row in record["rows"]:
        assert record["recipes"][row["recipe"]] == RECIPES[row["recipe"]]


def test_commands_that_it_names_exist(spa: Spa) -> None:
    helped = spa("--help").stdout
    for command in set(re.findall(r"`?spa (\w+)", README)) - {"recipes"}:
        assert f" {command} " in helped, command
