"""`spa run RECIPE --rehearse`: every stage with a few rows, and what the full run will take."""

import json
from pathlib import Path

from spa_recipes.run import usage
from tests.kit.cli import Spa
from tests.kit.recipes import mini, write_recipe


def test_it_takes_a_few_rows_through_every_stage_in_a_folder_of_its_own(spa: Spa, tmp_path: Path) -> None:
    changes = {"prompts_per_iteration": [300], "seed_labels": 64}
    write_recipe(tmp_path / "r.yaml", mini(data=changes, evaluation={"enabled": False}, sampling={"max_tokens": 8}))
    done = spa("run", "r.yaml", "--rehearse")
    assert done.returncode == 0, done.stderr + done.stdout
    assert not (tmp_path / "runs" / "mini").exists()
    folder = tmp_path / "runs" / "rehearsals" / "mini"
    stages = {json.loads(path.read_text())["id"]: path.parent for path in folder.glob("stages/*/manifest.json")}
    assert set(stages) == {"data", "base", "sft", "seed", "generate-1", "score-1-reference", "judge-1", "refine-1"}
    for name in stages:
        assert f"\n{name} " in done.stdout
    assert "the full run of these 8 of 8 stages: " in done.stdout
    assert "answer 1, as the model sees it\n<user> " in done.stdout
    assert "every stage went through" in done.stdout
    trained = usage.read(stages["refine-1"] / "attempts" / "1")
    assert trained is not None
    assert trained.host > 10**8
    model = sum(path.stat().st_size for path in (stages["refine-1"] / "output" / "model").glob("*.safetensors"))
    assert trained.checkpoint > 3 * model  # weights and two moments
    assert [done for _, done in trained.parts[0]] == [1, 2, 6]  # 32 pairs in batches of 16, three times

    # What fails is named with what was not reached, and the error is that of a run.
    broken = spa(
        "run", "r.yaml", "--rehearse", "--set", "sampling.max_identical=0", "--set", "sampling.temperature=1e-6"
    )
    assert broken.returncode == 1, broken.stdout
    assert "failed: generate-1" in broken.stdout
    assert "not rehearsed: generate-1, score-1-reference, judge-1, refine-1" in broken.stdout
    assert broken.stderr.startswith("error: generate-1: ")
