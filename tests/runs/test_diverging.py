"""A training that diverges stops the run in one line, and the run can be cured."""

import json
from pathlib import Path

from spa_recipes.errors import RecipeChangedError, StageError
from spa_recipes.training.checkpoints import is_complete
from tests.kit.cli import Answer, one_error, run_spa
from tests.kit.recipes import mini, write_recipe


def test_a_training_that_diverges_stops_and_can_be_cured(tmp_path: Path) -> None:
    """One line with the step and its rows, a checkpoint from before it, and a way on with a lower learning rate."""

    def run(*options: str, **training: float) -> Answer:
        settings = {"save_steps": 1, "warmup_ratio": 0.0, **training}
        write_recipe(tmp_path / "r.yaml", mini(seed_training=settings, evaluation={"enabled": False}))
        done = run_spa(tmp_path, "run", "r.yaml", "--until", "seed", *options)
        return Answer(done.returncode, done.stdout, done.stderr)

    line = one_error(run(learning_rate=1e30), StageError.exit_code)
    assert line.startswith("seed: rows ")
    assert " of optimizer step 2 is not finite; lower learning_rate" in line
    (failed,) = tmp_path.glob("runs/mini/stages/*-seed-*")
    assert not (failed / "output").exists()
    kept = list((failed / "work" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["checkpoint-1"]
    assert is_complete(kept[0])
    refused = run()
    assert refused.code == RecipeChangedError.exit_code
    assert "learning_rate: 1e+30 -> 0.0001" in refused.err
    cured = run("--accept")
    assert cured.code == 0, cured.err
    (manifest,) = tmp_path.glob("runs/mini/stages/*-seed-*/manifest.json")
    assert json.loads(manifest.read_text())["metrics"]["train_loss"] > 0
    for stage in ("data", "base", "sft"):  # done once, and used again
        assert len(list(tmp_path.glob(f"runs/mini/stages/*-{stage}-*/attempts/*"))) == 1
