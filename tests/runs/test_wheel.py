"""The package as PyPI would give it: a wheel, in an environment without this checkout, from an empty folder."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.kit.recipes import MINI, write_recipe

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source package, as an installer without a wheel would do."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (source,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", str(source)], cwd=folder, check=True)
    unpacked = folder / source.name.removesuffix(".tar.gz")
    subprocess.run([*build, "wheel"], cwd=unpacked, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def spa(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`spa` of an environment that has the wheel and what it requires, and nothing of this checkout.

    What it requires is taken from the environment of the tests, to which a `.pth` file leads. The `.pth` files there,
    such as the one of this checkout, are not read through it.
    """
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python3*/site-packages"))
    (packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*install, "--no-index", str(wheel)], check=True, capture_output=True)
    return folder / "bin" / "spa"


def call(command: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([command, *arguments], cwd=folder, env=clean, capture_output=True, text=True)


def test_it_has_the_recipes_and_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"spa_recipes/shipped/{path.name}" for path in (ROOT / "recipes").iterdir()}
    assert recipes <= names
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "spa_recipes"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    package = set(listed.stdout.split())
    assert {name for name in names if ".dist-info/" not in name} == package | recipes


def test_its_page_leads_to_the_repository_that_is_given(tmp_path: Path) -> None:
    """From the source package, too, which an installer builds without knowing the address."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), "-t"]
    given = os.environ | {"SPA_REPOSITORY": "https://example.org/me/spa-recipes/"}
    subprocess.run([*build, "sdist"], cwd=ROOT, env=given, check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", str(source)], cwd=tmp_path, check=True)
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    subprocess.run([*build, "wheel"], cwd=unpacked, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith("/METADATA"))
        page = files.read(name).decode()
    from spa_recipes import __version__

    place = "https://example.org/me/spa-recipes"
    assert f"Project-URL: Homepage, {place}\n" in page
    assert f"Project-URL: Changelog, {place}/blob/v{__version__}/CHANGELOG.md\n" in page
    assert f"![The report of a sandbox run]({place}/raw/v{__version__}/.github/report.png)" in page
    assert not re.search(r"\]\((?!https://)", page)
    assert "Description-Content-Type: text/markdown" in page
    assert "Project-URL: Paper, https://arxiv.org/abs/2406.04412" in page


def test_the_code_is_the_wheels(spa: Path, tmp_path: Path) -> None:
    done = call(spa.with_name("python"), tmp_path, "-c", "import spa_recipes; print(spa_recipes.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(spa.parents[1])


def test_every_command_that_help_and_doctor_recommend_works(spa: Path, tmp_path: Path) -> None:
    assert "`spa run quickstart`" in call(spa, tmp_path, "--help").stdout
    assert "spa run quickstart" in call(spa, tmp_path, "doctor").stdout
    assert call(spa, tmp_path, "validate", "quickstart").returncode == 0
    assert "seed" in call(spa, tmp_path, "plan", "quickstart").stdout
    assert "smollm2_local" in call(spa, tmp_path, "recipes").stdout
    from spa_recipes import __version__

    assert call(spa, tmp_path, "--version").stdout.strip() == f"spa-recipes {__version__}"


def test_the_quickstart_in_miniature_runs_from_an_empty_folder(spa: Path, tmp_path: Path) -> None:
    small = {key: value for key, value in MINI.items() if key != "name"}
    write_recipe(tmp_path / "my.yaml", {"extends": "quickstart", "name": "mine", **small})
    done = call(spa, tmp_path, "run", "my.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "final" / "model.safetensors").exists()
    assert "win rate against pi_init" in done.stdout
