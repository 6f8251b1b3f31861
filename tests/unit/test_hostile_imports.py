"""The processes of stages import nothing from the current folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.run import vllm_preflight
from spa_recipes.run.processes import process_environment

PATHS = ["import sys, json", "print(json.dumps(sys.path))"]


def path_of_a_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The import path of `python -m` in a folder, resolved."""
    import json

    monkeypatch.chdir(folder)
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib" / "shown.py").write_text("\n".join(PATHS))
    done = subprocess.run(
        [sys.executable, "-m", "shown"], env=process_environment(), capture_output=True, text=True, check=True
    )
    return [str(Path(path).resolve()) for path in json.loads(done.stdout)]


@pytest.mark.parametrize("spelling", ["{lib}", "{lib}:", ":{lib}", "{lib}::{lib}", "lib"])
def test_the_current_folder_is_not_on_the_path_and_the_users_folders_are(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", spelling.format(lib=tmp_path / "lib"))
    path = path_of_a_module(tmp_path, monkeypatch)
    assert str(tmp_path / "lib") in path
    assert str(tmp_path) not in path


def test_a_user_who_names_the_current_folder_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f".:{tmp_path / 'lib'}")
    assert str(tmp_path) in path_of_a_module(tmp_path, monkeypatch)


def test_the_look_at_the_python_of_vllm_imports_nothing_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("import pathlib; pathlib.Path('trace').touch()")
    with pytest.raises(RecipeError, match="vLLM is not installed"):
        vllm_preflight._check_python(sys.executable, "compute.vllm_python")
    assert not (tmp_path / "trace").exists()
