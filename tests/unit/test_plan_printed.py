"""What `spa plan` prints: a line per stage and totals, or everything."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.cli.plan import HEADINGS, print_plan
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import marker
from tests.kit.finished_runs import commit
from tests.kit.plans import plan_of, plan_of_recipe
from tests.kit.recipes import mini


def printed(capsys: pytest.CaptureFixture[str], folder: Path, *, verbose: bool = False, **changes: Any) -> list[str]:
    prepared = api.Prepared(plan_of(**changes), RunDir(folder / "mini"), "")
    print_plan(prepared, diff=False, verbose=verbose)
    return capsys.readouterr().out.splitlines()


def test_a_stage_is_one_line_and_all_lines_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of()
    lines = printed(capsys, tmp_path)
    assert lines[2].split("  ")[0] == HEADINGS[0]
    stages = lines[3 : 3 + len(plan.stages)]
    assert [line.split()[0] for line in stages] == [stage.id for stage in plan.stages]
    assert max(map(len, stages)) <= 110
    refine = next(line for line in stages if line.startswith("refine-2")).split()
    assert refine[3:6] == ["48", "3", "12.3k"]  # 48 pairs in batches of 16, 2 * 128 tokens each
    assert not any("waits for" in line or "key" in line for line in lines)


def test_totals_are_of_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "mini")
    marker.claim(run.path, run.kind)
    before = printed(capsys, tmp_path)
    for stage in plan.stages:
        if not stage.id.startswith("refine"):
            commit(run, plan, stage.id)
    lines = printed(capsys, tmp_path)
    assert any(line.startswith(f"to do:  {len(plan.stages)} of {len(plan.stages)} stages, ") for line in before)
    assert any(line.startswith(f"to do:  2 of {len(plan.stages)} stages, 5 optimizer steps, ") for line in lines)
    for name in ("refine-1", "refine-2"):
        commit(run, plan, name)
    assert "to do:  nothing; every stage is done" in printed(capsys, tmp_path)


def test_a_size_that_is_not_known_is_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"model": {"model_name_or_path": "org/model"}, "sft": None}
    unknown = printed(capsys, tmp_path, **changes)
    assert any(line.startswith("disk:   unknown; ") for line in unknown)
    (memory,) = (line for line in unknown if line.startswith("memory:"))
    assert "unknown, as the size of org/model is" in memory
    assert "model.num_parameters" in memory
    assert " 0 B" not in "\n".join(unknown)
    changes["model"]["num_parameters"] = 1e9
    known = printed(capsys, tmp_path, **changes)
    assert any(line.startswith("disk:   ") and "GB for results" in line for line in known)


def test_a_training_whose_only_step_has_rate_0_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_step = {"global_batch_size": 48, "per_device_train_batch_size": 16}
    said = "nothing is learned in one step at learning rate 0, the warm-up's first"
    assert f"! {said}: refine-1, refine-2" in printed(capsys, tmp_path, refine=one_step)
    for learns in ({"warmup_ratio": 0.0}, {"lr_scheduler_type": "constant"}, {"num_train_epochs": 2}):
        assert not any(said in line for line in printed(capsys, tmp_path, refine=one_step | learns))


def test_verbose_has_inputs_keys_and_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(capsys, tmp_path, verbose=True))
    for words in ("key              ", "needs            rows 48, steps 3, tokens <= 12.3k", "seed/model"):
        assert words in text


def test_a_stage_whose_rows_are_not_known_is_not_counted_as_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = mini(hardware="4 GPUs with 80 GB (H100)", data={"seed_labels": 0.5}, evaluation={"reward": "none"})
    recipe["data"] |= {name: {"type": "dataset", "source": f"org/{name}"} for name in ("pairs", "prompts")}
    for rows_are_known, plan in ((False, plan_of_recipe(recipe)), (True, plan_of(hardware="4 GPUs with 80 GB (H100)"))):
        print_plan(api.Prepared(plan, RunDir(tmp_path / "mini"), ""), diff=False)
        lines = capsys.readouterr().out.splitlines()
        for start in ("to do:", "time:"):
            (line,) = (line for line in lines if line.startswith(start))
            assert (", and seed, whose rows are not known yet" in line) is not rows_are_known


def test_a_training_that_cannot_be_shared_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without GPUs, of a recipe that is written for none."""
    batch = {"per_device_train_batch_size": 4}
    executor = {"type": "accelerate", "num_processes": 2, "sharding": "fsdp2"}
    changes: dict[str, Any] = {"compute": {"executor": executor}, "sft": batch, "seed_training": batch, "refine": batch}
    (line,) = (line for line in printed(capsys, tmp_path, **changes) if line.startswith("! "))
    assert "fsdp2 shares a training out over GPUs, and there is none here" in line
    assert not any(
        "shares a training" in line for line in printed(capsys, tmp_path, hardware="2 GPUs with 80 GB", **changes)
    )
