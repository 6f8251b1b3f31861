"""Results that were changed after their stage: whoever uses them says so, and nothing that they need is deleted."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.errors import DataError
from spa_recipes.plan import Plan
from spa_recipes.run import gc
from spa_recipes.run.final import RECORD, model_shown
from spa_recipes.run.intact import check_made_model, remarks
from spa_recipes.run.reuse import finished, reuse, set_damaged_aside
from spa_recipes.run.rundir import RECIPE_DIGEST, RunDir
from spa_recipes.state import atomic
from spa_recipes.state.digests import DigestMemo, file_digest
from tests.kit.cli import one_error
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


# --- what a person changed in the folder of a run


@pytest.fixture
def whole(tmp_path: Path, plan: Plan) -> RunDir:
    """A finished run with a card and a recipe of its own."""
    return make_whole_run(tmp_path / "runs" / "mini", plan)


def test_a_changed_recipe_is_said_and_stays_as_it_is(whole: RunDir, plan: Plan) -> None:
    recipe = whole.path / "recipe.yaml"
    recipe.write_text("name: another\n")
    for _ in range(2):
        (line,) = remarks(whole)
        assert line.startswith(f"{recipe} was changed since the run wrote it; the run goes on with the recipe in")
        prepared = api.prepare_resume("mini", whole.path.parent)
        whole.write_recipe(prepared.text, plan.recipe, plan)
        assert recipe.read_text() == "name: another\n"
    whole.write_recipe("name: mini\n", plan.recipe, plan)  # as `spa run` does
    assert remarks(whole) == []
    recipe.unlink()
    assert "recipe.yaml was deleted since" in remarks(whole)[0]
    assert api.prepare_resume("mini", whole.path.parent).run.path == whole.path


def test_a_run_killed_while_its_recipe_is_written_has_no_false_remark(
    whole: RunDir, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = atomic.write_text
    for written in range(3):
        whole.write_recipe("name: mini\n", plan.recipe, plan)
        left = [written]

        def killed(path: Path, content: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, content)

        with monkeypatch.context() as during, suppress(KeyboardInterrupt):
            during.setattr(atomic, "write_text", killed)
            whole.write_recipe("name: other\n", plan.recipe, plan)
        assert remarks(whole) == []


def test_a_run_of_an_earlier_version_has_no_digest_of_its_recipe_and_no_remark(whole: RunDir) -> None:
    (whole.path / RECIPE_DIGEST).unlink()
    (whole.path / "recipe.yaml").write_text("name: another\n")
    assert remarks(whole) == []


def test_compare_and_the_report_show_a_damaged_model(whole: RunDir, plan: Plan, spa_here: Any) -> None:
    alter(weights(whole, plan))
    table = spa_here("compare", "mini")
    assert (table.code, "was altered, since" in table.out) == (0, True)
    document = spa_here("compare", "mini", "--json")
    assert "was altered, since" in document.err
    assert json.loads(document.out)
    assert spa_here("report", "mini").code == 0
    page = (whole.path / "report.html").read_text()
    assert "model.safetensors was altered, since" in page
    assert page.count('<p class="remark">') == 1


def test_a_good_run_is_compared_and_reported_without_remarks(whole: RunDir, spa_here: Any) -> None:
    done = spa_here("compare", "mini")
    assert (done.code, done.err, "since" in done.out) == (0, "", False)
    assert spa_here("report", "mini").code == 0
    assert '<p class="remark">' not in (whole.path / "report.html").read_text()


@pytest.mark.parametrize("damage", ["altered", "cut", "no manifest to read"])
def test_damage_in_a_run_that_cannot_be_written_is_named(whole: RunDir, plan: Plan, damage: str) -> None:
    file, words = weights(whole, plan), f"output/model/{weights(whole, plan).name} was altered"
    if damage == "altered":
        alter(file, later=False)
    elif damage == "cut":
        file.write_bytes(b"cut")
        words = "has 3 bytes instead of"
    else:
        (file.parents[2] / "manifest.json").write_text("{")
        words = "manifest.json was altered"
    with pytest.raises(DataError, match=rf"refine-2 is damaged \(.*{words}.*\), and nothing can be written there"):
        finished(plan, whole, Heard(), plan.stage("refine-2"))


def test_a_stage_that_a_run_without_writing_still_needs_is_named(whole: RunDir, plan: Plan) -> None:
    shutil.rmtree(weights(whole, plan).parents[2])
    with pytest.raises(DataError, match="refine-2 is still to be done, and nothing can be written there"):
        finished(plan, whole, Heard(), plan.stage("refine-2"))


@pytest.mark.parametrize("name", ["a link", "zz link"])
def test_a_persons_link_into_another_stage_is_not_the_final_model(whole: RunDir, plan: Plan, name: str) -> None:
    shown = (folder_of(whole, plan, "refine-2").output / "model").resolve()
    (whole.final / name).symlink_to(os.path.relpath(weights(whole, plan, "seed"), whole.final))
    assert model_shown(whole.final) == shown
    moved = whole.path.rename(whole.path.with_name("moved"))
    assert model_shown(moved / "final") == moved / shown.relative_to(whole.path)


@pytest.mark.parametrize(
    "record",
    ["[" * 100_000, '{"model": "../../x", "texts": {}}', '{"model": "\\u0000", "texts": {}}', '{"texts": {}}', "no"],
)
def test_a_forged_record_names_no_other_model(whole: RunDir, plan: Plan, record: str) -> None:
    (whole.final / RECORD).write_text(record)
    (whole.final / "loop").symlink_to("loop")
    assert model_shown(whole.final) == (folder_of(whole, plan, "refine-2").output / "model").resolve()


def test_a_copy_of_the_final_folder_shows_itself(whole: RunDir, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole.final, tmp_path / "final"))
    assert model_shown(copy) == copy


# --- figures


@pytest.mark.parametrize("figure", ["win_rate_vs_init", "heldout_accuracy", "mean_tokens"])
@pytest.mark.parametrize("value", ["high", [0.5], {}, True])
@pytest.mark.parametrize("command", ["status", "report", "compare"])
def test_a_figure_that_is_no_number_is_one_clear_line(
    whole: RunDir, plan: Plan, figure: str, value: Any, command: str, spa_here: Any
) -> None:
    folder = folder_of(whole, plan, "evaluate-1")
    manifest = folder.manifest()
    assert manifest is not None
    atomic.write_json(
        folder.path / "manifest.json", replace(manifest, metrics={**manifest.metrics, figure: value}).to_json()
    )
    line = one_error(spa_here(command, "mini"), 3)
    assert line.startswith(f"manifest.json of evaluate-1: {figure} is not a number, so the file was altered; move")
