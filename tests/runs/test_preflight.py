"""The command line looks at what a run needs from outside before it starts a stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cli import imported_by, one_error, run_spa
from tests.kit.models import REMOTE, model_folder, recipe_for
from tests.kit.recipes import write_recipe

# ---------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def offline(tmp_path: Path) -> Callable[..., Any]:
    def call(*arguments: str | Path) -> Any:
        return run_spa(tmp_path, *arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))

    return call


def test_offline_models_and_datasets_are_told_at_once(offline: Callable[..., Any], tmp_path: Path) -> None:
    """Before the data stage, in a process that imports no torch, and without a run folder."""
    write_recipe(tmp_path / "r.yaml", recipe_for("org/model"))
    done = offline("run", "r.yaml")
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: model.model_name_or_path: org/model: the model is neither on this disk nor in the ")
    assert "unset HF_HUB_OFFLINE" in line
    done = offline("judge", "--policy", "org/model", "--reference", "org/ref", "--pairs", "org/data", "--out", "o")
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --pairs: org/data: the dataset is neither on this disk nor in the cache of HF_HOME")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "o.spa").exists()


def test_the_check_imports_nothing_heavy(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", config=REMOTE)
    write_recipe(tmp_path / "r.yaml", recipe_for(folder))
    done, imported = imported_by(tmp_path, "run", "r.yaml", among=("torch", "trl", "vllm", "datasets"))
    assert done.returncode == 2, done.stderr
    assert "Python code of its own" in done.stderr
    assert imported == []


def test_run_resume_and_judge_all_check(spa_here: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    recipe = recipe_for(folder, compute={"executor": {"type": "local"}})
    write_recipe(tmp_path / "r.yaml", recipe)
    assert spa_here("run", "r.yaml", "--until", "data").code == 0
    attempts = sorted(tmp_path.glob("runs/**/attempts/*"))
    (folder / "config.json").unlink()
    # The model's content is part of the recipe: without --accept the change itself would be told.
    for command in (["run", "r.yaml", "--accept"], ["resume", "mini", "--accept"]):
        assert "there is no config.json" in one_error(spa_here(*command), 3)
    assert sorted(tmp_path.glob("runs/**/attempts/*")) == attempts
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    arguments = ["--policy", folder, "--reference", folder, "--pairs", "pairs.jsonl", "--out", "out.jsonl"]
    assert "--policy" in one_error(spa_here("judge", *arguments), 3)
    assert not list(tmp_path.glob("out.jsonl*"))
