"""Results that were changed after their stage: whoever uses them says so, and nothing that they need is deleted."""

import os
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import DataError
from spa_recipes.plan import Plan
from spa_recipes.run import gc
from spa_recipes.run.intact import check_made_model, remarks
from spa_recipes.run.reuse import reuse, set_damaged_aside
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo, file_digest
from tests.kit.finished_runs import make_run as make_whole_run
from tests.kit.garbage import folder_of, make_run
from tests.kit.plans import plan_of
from tests.unit.test_hostile_reuse import Heard

LATER = 3_000_000_000_000_000_000
"""A time after all others, in nanoseconds."""


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def run(tmp_path: Path, plan: Plan) -> RunDir:
    """A finished run."""
    return make_run(tmp_path / "runs", plan)


def weights(run: RunDir, plan: Plan, stage: str = "refine-2") -> Path:
    return folder_of(run, plan, stage).output / "model" / "model.safetensors"


def alter(file: Path, *, later: bool = True) -> None:
    """Change a byte; the size stays, and without `later` the time too."""
    facts, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(LATER, LATER) if later else (facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("place", ["final", "model", "named by a link"])
def test_a_damaged_model_of_a_run_is_not_used(run: RunDir, plan: Plan, place: str, tmp_path: Path) -> None:
    model = weights(run, plan).parent
    (tmp_path / "mine").symlink_to(run.final)
    location = {"final": run.final, "model": model, "named by a link": tmp_path / "mine"}[place]
    check_made_model(str(location))
    alter(weights(run, plan))
    with pytest.raises(DataError, match=r"model.safetensors was altered, since .*refine-2.* made it") as caught:
        check_made_model(str(location))
    assert f"`spa resume {run.path}` makes it again" in str(caught.value)
    weights(run, plan).write_bytes(b"cut")
    with pytest.raises(DataError, match="has 3 bytes instead of"):
        check_made_model(str(location))
    weights(run, plan).unlink()
    with pytest.raises(DataError, match="is missing"):
        check_made_model(str(location if place == "model" else model))


def test_the_command_that_would_use_it_says_so(run: RunDir, plan: Plan, tmp_path: Path, spa_here: Any) -> None:
    alter(weights(run, plan))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    arguments = (
        "--policy",
        str(run.final),
        "--reference",
        str(run.final),
        "--pairs",
        "pairs.jsonl",
        "--out",
        "o.jsonl",
    )
    done = spa_here("judge", *arguments)
    assert (done.code, "was altered, since" in done.err, done.err.count("\n")) == (3, True, 1)


def test_a_model_that_was_only_copied_is_read_and_taken(run: RunDir, plan: Plan) -> None:
    """A copy may have newer files than its manifest: they are compared, and are the same."""
    os.utime(weights(run, plan), ns=(LATER, LATER))
    check_made_model(str(run.final))


def test_other_folders_and_names_are_fine(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    check_made_model(str(tmp_path / "output"))
    check_made_model("org/model")


@pytest.mark.parametrize("damaged", ["refine-2", "evaluate-1"])
def test_gc_frees_no_weights_that_something_damaged_needs(run: RunDir, plan: Plan, damaged: str) -> None:
    file = weights(run, plan) if damaged == "refine-2" else folder_of(run, plan, damaged).output / "model" / "log.jsonl"
    alter(file, later=False)
    for sweep in (*gc.look([run], models=True), *gc.sweep([run], models=True)):
        assert sweep.items == []
        assert len(sweep.kept) == 2
        assert all(f"{damaged} is damaged" in kept.why for kept in sweep.kept)
    assert weights(run, plan, "seed").exists()


def test_a_damaged_model_whose_source_was_freed_is_made_again_at_once(run: RunDir, plan: Plan) -> None:
    """The freed model comes first in the plan: that it is needed again has to be known before it is passed by."""
    gc.sweep([run], models=True)
    assert not weights(run, plan, "refine-1").exists()
    alter(weights(run, plan), later=False)
    heard = Heard()
    set_damaged_aside(plan, run, heard, plan.stages)
    again = [stage.id for stage in plan.stages if reuse(plan, run, heard, stage) is None]
    assert again == ["seed", "refine-1", "refine-2"]


def test_a_changed_input_of_the_same_size_and_time_is_seen_where_a_run_goes_on(tmp_path: Path) -> None:
    file, memo = tmp_path / "pairs.jsonl", tmp_path / "memo.json"
    file.write_text('{"a": 1}\n')
    other = tmp_path / "other"
    other.write_text("x")
    first = DigestMemo(memo)
    before, _ = first.of(file), first.of(other)
    first.save()
    alter(file, later=False)
    assert DigestMemo(memo).of(file) == before  # a look at the plan is quick
    again = DigestMemo(memo, afresh=True)
    assert again.of(file) == file_digest(file) != before
    again.save()
    assert DigestMemo(memo).of(file) == file_digest(file)
    assert str(other) in memo.read_text()  # what was not asked for is not forgotten


def test_status_and_report_say_what_is_not_as_the_run_left_it(tmp_path: Path, plan: Plan, spa_here: Any) -> None:
    run = make_whole_run(tmp_path / "runs" / "mini", plan)
    assert remarks(run) == []
    (run.final / "README.md").write_text("cut")
    alter(weights(run, plan))
    model, card = remarks(run)
    assert "model.safetensors was altered, since" in model
    assert card.startswith(f"{run.final / 'README.md'} was changed since the run wrote it")
    done = spa_here("status", "mini")
    assert (done.code, "README.md was changed" in done.out, "was altered, since" in done.out) == (0, True, True)
