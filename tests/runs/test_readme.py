"""What the documents show is true of this version."""

import math
import re
from pathlib import Path
from textwrap import dedent

import pytest

from spa_recipes.cli.examples import SWEEP
from spa_recipes.recipe.job import load_job
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.sweep import load_sweep, recipe_of
from tests.kit.cli import Spa
from tests.kit.docs import form_table, stage_table, stored_form_table, stored_stage_table
from tests.kit.sweeps import PUBLISHED, SANDBOX, Published

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "recipes/README.md",
        "spa_recipes/README.md",
        "tests/benchmarks/README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
    )
]
GUIDE = (ROOT / "recipes" / "README.md").read_text()
MEASURED = (ROOT / "tests" / "benchmarks" / "README.md").read_text()
MEASURED_ON = "2026-11-23"
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_it_names_exist(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for name in re.findall(r"`((?:recipes|tests|spa_recipes|\.github)/[\w./-]+\w)`", text):
        assert (ROOT / name).exists(), name
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in {_anchor(title) for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}, anchor
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([\w-]+)`?\s+#|`make ([\w-]+)", text)) <= {("", t) for t in targets} | {
        (t, "") for t in targets
    }


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_rooms_of_the_map_are_there_and_all_modules_are_in_one() -> None:
    text = (ROOT / "spa_recipes" / "README.md").read_text()
    rooms = text.partition("| room |")[2].partition("\n\n")[0]
    named = {
        name for cell in re.findall(r"^\| (.*?) \|", rooms, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)
    }
    package = ROOT / "spa_recipes"
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {name for name in named if name.endswith("/")} == folders
    assert all((package / name).exists() for name in named)
    for name in re.findall(r"`(?!tests/|runs/)([\w/]+\.py)`", text):
        assert list(package.rglob(name)), name


def test_the_table_of_stages_is_that_of_the_code() -> None:
    assert stored_stage_table() == stage_table(), "run python -m tests.kit.docs"


def test_the_table_of_forms_is_that_of_the_code() -> None:
    assert stored_form_table() == form_table(), "run python -m tests.kit.docs"


def test_the_table_of_recipes_is_that_of_the_folder() -> None:
    table = GUIDE.partition("## Choose one")[2].partition("\n## ")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", table, re.M)}
    assert rows.keys() == {path.stem for path in SHIPPED}
    for path in SHIPPED:
        labels = load_recipe(path).recipe.data.seed_labels
        shown = {0: "none", 1.0: "all"}[labels] if labels in (0, 1.0) else f"{labels:,}"
        assert rows[path.stem][1] == shown, path.stem
    assert f"has {len(SHIPPED)} recipes" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "recipes" / "README.md"], ids=["README", "recipes"])
def test_the_recipes_that_it_shows_load(tmp_path: Path, document: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shown = [
        text
        for text in re.findall(r"```yaml\n(.*?)```", document.read_text(), flags=re.DOTALL)
        if "name:" in text and "variants:" not in text
    ]
    assert shown
    for text in shown:
        (tmp_path / "my-run.yaml").write_text(text)
        assert load_recipe(tmp_path / "my-run.yaml").recipe.iterations == 2


def test_the_sweep_that_it_shows_and_that_of_the_help_are_read(tmp_path: Path) -> None:
    (shown,) = [text for text in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL) if "variants:" in text]
    helped = dedent(SWEEP.partition("is such as\n\n\b\n")[2].partition("\n\n")[0])
    for text in (shown, helped):
        (tmp_path / "sweep.yaml").write_text(text)
        assert load_sweep(tmp_path / "sweep.yaml").sweep.tested == ["spa"]


def test_the_job_that_it_shows_is_read(tmp_path: Path) -> None:
    (job,) = [text for text in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL) if "benchmark:" in text]
    (tmp_path / "job.yaml").write_text(job)
    assert load_job(str(tmp_path / "job.yaml")).benchmark.type == "mt_bench"


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.name)
def test_the_table_is_the_one_that_was_measured(one: Published) -> None:
    """`spa sweep` wrote the record; the document shows it as it is."""
    sweep = one.loaded.sweep
    assert len(sweep.seeds) >= 5
    for measured in one.recorded():
        assert [*measured.seeds] == sweep.seeds
    for table in one.tables():
        assert table in MEASURED, "run python -m tests.kit.sweeps"
    assert MEASURED_ON in MEASURED


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.name)
def test_the_record_is_that_of_the_sweep_and_its_recipes_load(one: Published) -> None:
    """The variants of the record are those of the sweep, which can be run again."""
    loaded, seed = one.loaded, one.loaded.sweep.seeds[0]
    steps = {measured.variant.name: measured.seeds[seed]["steps"] for measured in one.recorded()}
    assert {loaded.sweep.control, *loaded.sweep.tested} <= steps.keys()
    for variant in loaded.sweep.variants:
        recipe = recipe_of(loaded, variant, seed).recipe
        if variant.name not in steps:
            continue
        if variant.policy in ("init", 0):  # rows per step, and passes over them
            training, labels = recipe.seed_training, recipe.data.seed_labels
            expected = math.ceil(labels / training.global_batch_size) * training.num_train_epochs
            assert steps[variant.name] == (0 if variant.policy == "init" else expected), variant.name


def test_the_headline_is_what_was_measured() -> None:
    measured = dict(re.findall(r"^\| ([^|]+) \| (\d+\.\d ± \d+\.\d) \|", SANDBOX.tables()[0], re.MULTILINE))
    headline = (ROOT / "README.md").read_text().partition("## What it is worth")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| (.* ± .*) \|$", headline, re.MULTILINE))
    for name, labels in {
        "DPO": ("DPO, 0.8 % of the labels", "DPO, 3.3 %"),
        "SPA, two iterations": ("SPA, 0.8 %, 2 iterations", "SPA, 3.3 %, 2 iterations"),
        "the control: DPO with as many optimizer steps as SPA": (
            "DPO, 0.8 %, as many steps as SPA",
            "DPO, 3.3 %, as many steps as SPA",
        ),
    }.items():
        assert rows[name] == " | ".join(measured[label] for label in labels)
    assert measured["DPO, 100 %"].startswith("88.4 ")
    assert "DPO reaches 88.4" in headline.replace("\n", " ")
    assert MEASURED_ON in headline


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_it_names_exist(spa: Spa, document: Path) -> None:
    helped = spa("--help").stdout
    for command in set(re.findall(r"`spa (\w+)|^spa (\w+)", document.read_text(), re.MULTILINE)):
        name = "".join(command)
        assert f" {name} " in helped, name
