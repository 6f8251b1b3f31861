"""The checks of the kill campaign notice what they are there for."""

import json
from pathlib import Path

import pytest

from spa_recipes.state import atomic
from spa_recipes.state.stagedir import StageDir
from tests.injection import checks
from tests.injection.faults import place
from tests.kit.state import FIELDS

# --- the tools notice what they are there for ---


def test_places_are_the_same_in_every_run() -> None:
    assert place("runs/mini/attempts/12/.spec.json.4711.tmp") == "runs/mini/attempts/N/.spec.json.tmp"
    assert place(".pairs.jsonl.a8_x1.tmp") == ".pairs.jsonl.tmp"


def finished_run(folder: Path) -> Path:
    """A run of one stage."""
    stage = StageDir(folder / "stages" / "00-judge-12345678")
    for path, text in (("output.draft-1/pairs.jsonl", "{}\n"), ("attempts/1/worker.log", "")):
        (stage.path / path).parent.mkdir(parents=True, exist_ok=True)
        (stage.path / path).write_text(text)
    stage.commit({**FIELDS, "metrics": {"resumed_from_step": 0}})
    (folder / "final").mkdir()
    (folder / "final" / "README.md").write_text("card")
    (folder / "final" / "pairs.jsonl").symlink_to("../stages/00-judge-12345678/output/pairs.jsonl")
    return folder


def test_every_difference_between_two_runs_is_found(tmp_path: Path) -> None:
    one, other = finished_run(tmp_path / "one"), finished_run(tmp_path / "other")
    stage = other / "stages" / "00-judge-12345678"
    assert checks.differences(one, other) == []
    (stage / "output" / "pairs.jsonl").write_text("[]\n")
    assert checks.differences(one, other) == ["stages/00-judge-12345678/output/pairs.jsonl: other bytes"]
    (stage / "work").mkdir()  # empty: left by a kill between commit and clean-up, and nothing is lost or odd
    assert len(checks.differences(one, other)) == 1
    (stage / "work" / "shard").touch()
    assert "stages/00-judge-12345678/work/shard: only in one of the runs" in checks.differences(one, other)
    manifest = json.loads((stage / "manifest.json").read_text())
    (stage / "manifest.json").write_text(json.dumps({**manifest, "rows": 77}))
    assert "stages/00-judge-12345678/manifest.json: other content" in checks.differences(one, other)


@pytest.mark.parametrize("name", ["README.md", "pairs.jsonl"])
def test_a_final_folder_that_differs_is_found(tmp_path: Path, name: str) -> None:
    one, other = finished_run(tmp_path / "one"), finished_run(tmp_path / "other")
    (other / "final" / name).unlink()
    assert checks.differences(one, other) == [f"final/{name}: differs"]
    (other / "final" / name).symlink_to("elsewhere")
    assert checks.differences(one, other) == [f"final/{name}: differs"]


def training(folder: Path, checkpoint: int, steps: list[int], attempt: int) -> checks.Snapshot:
    """A stage in training with one whole checkpoint."""
    stage = folder / "stages" / "00-seed-12345678"
    made = stage / "work" / "checkpoints" / f"checkpoint-{checkpoint}"
    made.mkdir(parents=True, exist_ok=True)
    (made / checks.MARKER).write_text('{"files": {}}')
    lines = "".join(json.dumps({"done": step, "unit": "steps"}) + "\n" for step in steps)
    (stage / "attempts" / str(attempt)).mkdir(parents=True)
    (stage / "attempts" / str(attempt) / "progress.jsonl").write_text(lines + '{"done": ')
    return checks.snapshot(folder)


def test_lost_steps_are_found(tmp_path: Path) -> None:
    nothing = checks.Snapshot({}, frozenset(), {})
    before = training(tmp_path, 2, [1, 2, 3], 1)
    assert checks.lost_work(tmp_path, nothing, before, [], 2) == []
    assert "step 3 was done" in checks.lost_work(tmp_path, nothing, before, [], 0)[0]
    now = training(tmp_path, 4, [3, 4], 2)
    assert checks.lost_work(tmp_path, before, now, [], 2) == []
    again = training(tmp_path, 4, [3, 4, 5], 3)
    assert "went on with step 3, its checkpoint was of step 4" in checks.lost_work(tmp_path, now, again, [], 2)[0]


# --- what the campaign found ---


def test_an_event_after_one_that_was_cut_off_stands_on_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    atomic.append_line(file, '{"time": 1}')
    with file.open("a") as handle:
        handle.write('{"time": ')
    assert checks.swallowed_events(file) == []
    atomic.append_line(file, '{"time": 2}')
    assert file.read_text().splitlines() == ['{"time": 1}', '{"time": ', '{"time": 2}']
    file.write_text('{"time": {"time": 2}\n')
    assert len(checks.swallowed_events(file)) == 1
