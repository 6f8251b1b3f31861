"""What the README shows is true of this version."""

import re
from pathlib import Path

from spa_recipes.recipe.load import load_recipe
from tests.conftest import Spa

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my-run.yaml").write_text(block)
    assert load_recipe(tmp_path / "my-run.yaml").recipe.iterations == 2


def test_files_and_targets_that_it_names_exist() -> None:
    for name in re.findall(r"(?:recipes|tests|spa_recipes)/[\w./]+\w", README):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", README)) <= targets
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+)` \| (?:the|Smol)", README, flags=re.MULTILINE)) == shipped


def test_commands_that_it_names_exist(spa: Spa) -> None:
    helped = spa("--help").stdout
    for command in set(re.findall(r"`?spa (\w+)", README)) - {"recipes"}:
        assert f" {command} " in helped, command
