"""A training that diverges stops the run in one line, and the run can be cured."""

import json
from pathlib import Path

import pytest

from spa_recipes import api
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.errors import RecipeChangedError, StageError
from spa_recipes.recipe.schema import ForkExecutor
from spa_recipes.run.executors import Executors
from spa_recipes.training.checkpoints import is_complete
from tests.kit.recipes import mini, write_recipe


def test_a_training_that_diverges_stops_and_can_be_cured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the step and its rows, a checkpoint from before it, and a way on with a lower learning rate."""
    monkeypatch.chdir(tmp_path)
    reporter = PlainReporter()
    executors = Executors(ForkExecutor(type="fork"))

    def run(accept: bool = False, **training: float) -> None:
        settings = {"save_steps": 1, "warmup_ratio": 0.0, **training}
        write_recipe(tmp_path / "r.yaml", mini(seed_training=settings, evaluation={"enabled": False}))
        api.run_recipe(api.prepare(tmp_path / "r.yaml"), reporter, until="seed", accept=accept, executors=executors)

    try:
        with pytest.raises(StageError) as caught:
            run(learning_rate=1e30)
        line = str(caught.value)
        assert line.startswith("seed: rows ")
        assert " of optimizer step 2 is not finite; lower learning_rate" in line
        (failed,) = tmp_path.glob("runs/mini/stages/*-seed-*")
        assert not (failed / "output").exists()
        kept = list((failed / "work" / "checkpoints").iterdir())
        assert [path.name for path in kept] == ["checkpoint-1"]
        assert is_complete(kept[0])
        with pytest.raises(RecipeChangedError, match=r"learning_rate: 1e\+30 -> 0.0001"):
            run()
        run(accept=True)
    finally:
        executors.close()
    (manifest,) = tmp_path.glob("runs/mini/stages/*-seed-*/manifest.json")
    assert json.loads(manifest.read_text())["metrics"]["train_loss"] > 0
    for stage in ("data", "base", "sft"):  # done once, and used again
        assert len(list(tmp_path.glob(f"runs/mini/stages/*-{stage}-*/attempts/*"))) == 1
