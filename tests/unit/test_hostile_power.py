"""A power cut takes back what was not synced: the name of nothing that was committed is among it."""

from pathlib import Path

import pyarrow as pa
import pytest

from spa_recipes.data.rows import write_jsonl
from spa_recipes.run.rundir import RunDir
from spa_recipes.stages.common import Shards
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.state import atomic
from spa_recipes.state.stagedir import MANIFEST, StageDir, adopt
from spa_recipes.training.checkpoints import _write_marker
from spa_recipes.training.env import CHECKPOINT_MARKER
from tests.kit.plans import plan_of
from tests.kit.state import FIELDS
from tests.kit.synced import Call, can_be_lost, noted


def commit(path: Path) -> StageDir:
    stage = StageDir(path)
    stage.new_attempt()
    stage.draft(1).mkdir()
    write_jsonl(stage.draft(1) / "pairs.jsonl", [{"a": 1}])
    stage.commit(FIELDS)
    return stage


def test_the_kit_finds_a_name_that_was_not_synced(tmp_path: Path) -> None:
    with noted() as calls:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").mkdir()
        atomic.fsync_dir(tmp_path / "a")
    assert can_be_lost(calls, tmp_path / "a" / "b") == [Call("mkdir", tmp_path / "a")]


def test_a_committed_stage_keeps_its_name(tmp_path: Path) -> None:
    """From the folder of the runs down to the manifest, and the output before the manifest that vouches for it."""
    with noted() as calls:
        stage = commit(tmp_path / "runs" / "mini" / "stages" / "00-data-abcdefgh")
    for kept in (stage.path / MANIFEST, stage.output / "pairs.jsonl"):
        assert can_be_lost(calls, kept) == []
    manifest = calls.index(Call("rename", stage.path / MANIFEST))
    assert can_be_lost(calls[:manifest], stage.output) == []
    made = {call.path.relative_to(tmp_path).as_posix() for call in calls if call.kind == "mkdir"}
    assert {"runs", "runs/mini", "runs/mini/stages", "runs/mini/stages/00-data-abcdefgh"} <= made


def test_a_stage_that_was_taken_over_is_as_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = commit(tmp_path / "a" / "stages" / "00-data-abcdefgh")
    for name in ("linked", "copied"):
        target = StageDir(tmp_path / name / "stages" / "00-data-abcdefgh")
        with noted() as calls, monkeypatch.context() as patch:
            if name == "copied":
                patch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(1, "not permitted")))
            adopt(source, target, "a")
        assert can_be_lost(calls, target.path / MANIFEST) == []
        manifest = calls.index(Call("rename", target.path / MANIFEST))
        assert Call("fsync", target.draft(0) / "pairs.jsonl") in calls[:manifest]
        assert can_be_lost(calls[:manifest], target.output) == []


def test_every_shard_keeps_its_name_also_the_last(tmp_path: Path) -> None:
    spec = StageSpec("s", "score", "k", {}, str(tmp_path / "stages" / "01-score-x"), 1, {}, {}, {}, {}, {})
    with noted() as calls:
        shards = Shards(Context(spec), "logps", 4, 2, pa.schema([("x", pa.int64())]))
        for rows in shards.missing():
            shards.write(rows, pa.table({"x": [1, 2]}))
    paths = sorted((tmp_path / "stages" / "01-score-x" / "work" / "shards" / "logps").glob("*.parquet"))
    assert len(paths) == 2
    for path in paths:
        assert can_be_lost(calls, path) == []
        assert can_be_lost(calls, path.with_name(path.name + ".sha256")) == []


def test_a_checkpoint_keeps_its_name_before_an_older_one_goes(tmp_path: Path) -> None:
    with noted() as calls:
        checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
        atomic.make_folder(checkpoint.parent)
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_text("weights")
        _write_marker(checkpoint)
    assert can_be_lost(calls, checkpoint / CHECKPOINT_MARKER) == []


def test_a_run_keeps_its_recipe_and_its_folders(tmp_path: Path) -> None:
    plan = plan_of()
    run = RunDir(tmp_path / "new" / "runs" / "mini")
    with noted() as calls, run.locked():
        run.write_recipe("name: mini\n", plan.recipe, plan)
    for name in ("recipe.yaml", "plan.json", "resolved.json", "stages"):
        assert can_be_lost(calls, run.path / name) == []
