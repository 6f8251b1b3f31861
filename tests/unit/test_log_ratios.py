"""The choice of the way to compute log-ratios: which, why, and that it is made once."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from spa_recipes.data.tables import (
    COMPLETIONS,
    CompletionRow,
    given_answer,
    read_log_ratios,
    read_table,
    write_completions,
)
from spa_recipes.errors import StageError, TryAgainError
from spa_recipes.generation import log_ratios as ways
from spa_recipes.generation.log_ratios import Choice, Way, candidates, choose
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.stages import common
from spa_recipes.stages import log_ratios as stage
from tests.kit.half import half_inputs
from tests.kit.stages import context_of

ITEMS = [Scored([1], [2] * n) for n in (4, 5, 6, 7)]
PAIRS = [(0, 1), (2, 3)]
TRUE = [0.0, 1.0, 0.5, -0.5]
"""Log-ratios; both margins are 1 nat in size."""


class Made:
    """Models whose log-probs are off by as much as a test says, by precision."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.errors = errors

    def logps(self, dtype: str, items: Sequence[Scored], **options: Any) -> tuple[list[float], list[float]]:
        off = self.errors[dtype]
        return [-100.0 + ratio + off * (-1) ** i for i, ratio in enumerate(TRUE)], [-100.0] * len(items)


def chosen(errors: dict[str, float], tangent: Callable[[Way], float], asked: Any = "auto", **given: Any) -> Choice:
    models: Any = Made({"float32": 0.0, **errors})

    def of(way: Way, models: Any, items: Sequence[Scored], **options: Any) -> list[float]:
        if way.kind == "difference":
            return ways.subtracted(*models.logps(way.dtype, items))
        off = tangent(way)
        return [ratio + off * (-1) ** i for i, ratio in enumerate(TRUE)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "log_ratios", of)
        return choose(asked, "bfloat16", models, ITEMS, PAIRS, **{"on_gpu": False, **given})


def test_cheap_ways_come_first_and_float16_only_where_it_is_fast() -> None:
    assert [str(way) for way in candidates("auto", "bfloat16", on_gpu=False)] == [
        "difference in bfloat16",
        "tangent in bfloat16",
        "difference in float32",
    ]
    assert [str(way) for way in candidates("auto", "bfloat16", on_gpu=True)] == [
        "difference in bfloat16",
        "difference in float16",
        "tangent in bfloat16",
        "tangent in float16",
        "difference in float32",
    ]
    assert [str(way) for way in candidates("auto", "float32", on_gpu=True)] == ["difference in float32"]


def test_the_first_way_whose_error_is_a_tenth_of_the_median_margin_is_taken() -> None:
    assert str(chosen({"bfloat16": 0.04}, lambda _: 0.0).way) == "difference in bfloat16"
    assert str(chosen({"bfloat16": 0.06}, lambda _: 0.04).way) == "tangent in bfloat16"
    choice = chosen({"bfloat16": 0.06}, lambda _: 0.06)
    assert str(choice.way) == "difference in float32"
    assert "difference in bfloat16 0.12 nats (12.0%); tangent in bfloat16 0.12 nats (12.0%)" in choice.why
    assert choice.measured[-1].error == pytest.approx(0.12 / 2**16)
    assert Choice.from_json(choice.to_json()) == choice


def test_float16_that_overflows_is_no_candidate_and_is_named() -> None:
    def tangent(way: Way) -> float:
        if way.dtype == "float16":
            raise StageError("the weight w is infinite or NaN in float16")
        return 0.2

    choice = chosen({"bfloat16": 0.5, "float16": 0.3}, tangent, on_gpu=True)
    assert str(choice.way) == "difference in float32"
    assert "tangent in float16: the weight w is infinite or NaN in float16" in choice.why


def test_a_tangent_that_was_asked_for_and_cannot_be_is_an_error() -> None:
    def tangent(way: Way) -> float:
        raise StageError("aten::x has no derivative in forward mode")

    assert str(chosen({"bfloat16": 0.5}, tangent).way) == "difference in float32"
    with pytest.raises(StageError, match="aten::x"):
        chosen({"bfloat16": 0.5}, tangent, "tangent")


def test_of_ways_that_were_asked_for_the_more_precise_one_is_taken() -> None:
    choice = chosen({"bfloat16": 0.5}, lambda way: 0.3 if way.nodes == 1 else 0.2, "tangent")
    assert str(choice.way) == "tangent in bfloat16 at two nodes"
    assert str(chosen({"bfloat16": 0.5}, lambda _: 0.0, "difference").way) == "difference in bfloat16"


def test_kept_log_probs_are_compared_with_scored_ones() -> None:
    kept = [-100.0 + ratio + 0.25 for ratio in TRUE]
    assert chosen({"bfloat16": 0.0}, lambda _: 0.0, kept=kept).kept == pytest.approx(0.25)


# --- the stage


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    half_inputs(tmp_path, pairs=4)
    answer(tmp_path / "completions.parquet", 6)
    names = {"policy": "policy", "reference": "reference", "completions": "completions.parquet"}
    return {role: tmp_path / name for role, name in names.items()}


def answer(path: Path, prompts: int) -> None:
    """Two answers to each prompt, of several lengths."""
    rows = [
        given_answer(item, f"p{item}", k, "", [5, 6, 7 + item % 40], [8 + 3 * k + item % 40] * (6 + k + item % 3))
        for item in range(prompts)
        for k in range(2)
    ]
    write_completions(path, rows)


def context(folder: Path, inputs: dict[str, Path], **changes: Any) -> Any:
    model = {"model_name_or_path": "m", "dtype": "bfloat16", "max_length": 128, "max_prompt_length": 48}
    return context_of(folder, "log_ratios", settings={"model": model, "method": "tangent", **changes}, inputs=inputs)


def test_a_kill_between_choice_and_shards_changes_nothing(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = context(tmp_path / "whole", inputs)
    stage.run(undisturbed)

    def killed(*arguments: Any, **options: Any) -> list[float]:
        raise KeyboardInterrupt

    first = context(tmp_path / "again", inputs)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "tangents", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.run(first)
    assert (first.work / "log-ratios.choice.json").exists()
    assert not [*first.work.glob("shards/*/*.parquet")]
    monkeypatch.setattr(stage, "choose", killed)  # the choice is not made a second time
    stage.run(first)
    one, other = ((c.draft / "log_ratios.parquet").read_bytes() for c in (undisturbed, first))
    assert one == other


def test_other_processes_read_the_choice(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = context(tmp_path / "stage", inputs)
    stage.run(first)
    shards = sorted(path.parent.name for path in first.work.glob("shards/*/*.parquet"))
    assert shards == ["log-ratios-tangent-in-bfloat16"]
    other = context(tmp_path / "stage", inputs)
    other.rank, other.world_size = 1, 2
    monkeypatch.setattr(stage, "choose", lambda *arguments, **options: pytest.fail("only the first process chooses"))
    assert stage.run(other).rows == 0


def test_two_processes_give_the_bytes_of_one(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each computes every second shard; test_half_precision_processes.py has two at the same time."""
    monkeypatch.setattr(common, "SCORED_PER_SHARD", 4)
    alone = context(tmp_path / "alone", inputs)
    stage.run(alone)
    first, second = (context(tmp_path / "two", inputs) for _ in range(2))
    for rank, of_two in enumerate((first, second)):
        of_two.rank, of_two.world_size = rank, 2
    shutil.copy(alone.work / "log-ratios.choice.json", first.work)
    shards = []
    for of_two in (second, first):
        stage.run(of_two)
        shards.append(sorted(path.stem for path in first.work.glob("shards/*/*.parquet")))
    assert shards == [["00000004-00000008"], ["00000000-00000004", "00000004-00000008", "00000008-00000012"]]
    one, two = ((c.draft / "log_ratios.parquet").read_bytes() for c in (alone, first))
    assert one == two


def test_log_ratios_and_standard_errors_stand_beside_the_completions(inputs: dict[str, Path], tmp_path: Path) -> None:
    here = context(tmp_path / "stage", inputs, method="auto")
    result = stage.run(here)
    table = read_log_ratios(here.draft / "log_ratios.parquet", read_table(inputs["completions"], COMPLETIONS))
    assert len(table.values) == len(table.errors) == result.rows == 12
    assert table.choice["method"] == result.metrics["method"]
    assert table.errors[1] / table.errors[0] == pytest.approx((7 / 6) ** 0.5)


def test_what_bfloat16_takes_from_float32_checkpoints_is_no_part_of_the_update(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Two checkpoints in float32, judged in bfloat16: the update is their stored difference, not that of copies."""
    half_inputs(tmp_path / "whole", pairs=1, whole=True)
    models = {role: tmp_path / "whole" / role for role in ("policy", "reference")}
    here = context(tmp_path / "stage", {**inputs, **models})
    metrics = stage.run(here).metrics
    assert metrics["method"] == "tangent in bfloat16"
    assert metrics["method_error"] < 0.1 * metrics["median_margin"]


def test_log_probs_of_another_model_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    """What the engine kept is far from the policy's own: it sampled from something else."""
    rows: list[CompletionRow] = pq.read_table(inputs["completions"]).to_pylist()
    for row in rows:
        row["logps"] = [-1.0] * len(row["response_ids"])
    write_completions(inputs["completions"], rows)
    with pytest.raises(StageError, match=r"the log-probs that sampling kept differ .* rounding explains"):
        stage.run(context(tmp_path / "stage", inputs))


def test_what_a_gpu_has_no_room_for_is_measured_on_the_cpu_and_not_taken() -> None:
    """A float32 copy of a large model does not fit beside what half precision is there for."""

    class Small(Made):
        def logps(self, dtype: str, items: Sequence[Scored], **options: Any) -> tuple[list[float], list[float]]:
            if dtype == "float32":
                raise TryAgainError("out of memory while the model was loaded")
            return super().logps(dtype, items, **options)

    small: Any = Small({"bfloat16": 0.2})
    small.on_cpu = Made({"float32": 0.0})

    def full(way: Way, models: Any, items: Sequence[Scored], **options: Any) -> list[float]:
        raise RuntimeError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "log_ratios", full)
        choice = choose("auto", "bfloat16", small, ITEMS, PAIRS, on_gpu=False)
        assert str(choice.way) == "difference in bfloat16"
        assert choice.dropped == {"tangent in bfloat16": "out of memory", "difference in float32": "out of memory"}
        small.on_cpu = None
        with pytest.raises(TryAgainError):
            choose("auto", "bfloat16", small, ITEMS, PAIRS, on_gpu=False)


# --- the estimate of the standard errors


def test_standard_errors_are_checked_on_a_tenth_of_the_pairs_which_were_not_measured(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(inputs["completions"], 90)
    here = context(tmp_path / "stage", inputs)
    metrics = stage.run(here).metrics
    table = read_log_ratios(here.draft / "log_ratios.parquet", read_table(inputs["completions"], COMPLETIONS))
    others = table.choice["others"]
    assert metrics["checked_pairs"] == len(others) == 9
    in_units = []
    exact = exact_ratios(inputs)
    for first, second, margin in others:
        assert margin == pytest.approx(exact[first] - exact[second], abs=1e-3)
        off = table.values[first] - table.values[second] - margin
        in_units.append(off / math.hypot(table.errors[first], table.errors[second]))
    assert metrics["error_check"] == pytest.approx(math.sqrt(sum(u * u for u in in_units) / 9))
    assert metrics["error_check"] == table.choice["error_check"]
    assert 0.3 < metrics["error_check"] < 3
    places = {first // 2 for first, _, _ in others}
    measured = {first // 2 for first, _ in stage._measured_pairs([Scored([1], [k]) for k in range(180)], TWOS)[0]}
    assert len(places) == 9
    assert not places & measured

    # The same, had the 16 pairs by chance been ten times as exact as the others.
    again = context(tmp_path / "again", inputs)
    choice = json.loads((here.work / "log-ratios.choice.json").read_text())
    (again.work / "log-ratios.choice.json").write_text(json.dumps({**choice, "noise": choice["noise"] / 10}))
    capsys.readouterr()
    assert stage.run(again).metrics["error_check"] == pytest.approx(10 * metrics["error_check"])
    said = f"on 9 others, errors are {10 * metrics['error_check']:.2g} times as large as estimated"
    assert said in capsys.readouterr().out


TWOS = [(k, k + 1) for k in range(0, 180, 2)]


def exact_ratios(inputs: dict[str, Path]) -> list[float]:
    """Log-ratios in float64 on the stored weights."""
    rows: list[CompletionRow] = pq.read_table(inputs["completions"]).to_pylist()
    items = [Scored(row["prompt_ids"], row["response_ids"]) for row in rows]
    models = (AutoModelForCausalLM.from_pretrained(inputs[role]).double().eval() for role in ("policy", "reference"))
    return ways.subtracted(*(sequence_logps(model, items, tokens_per_batch=2000) for model in models))


def test_nothing_is_checked_where_that_would_say_little_or_cost_much(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert stage._measured_pairs([Scored([1], [k]) for k in range(158)], TWOS[:79])[1] == []
    few = context(tmp_path / "few", inputs)
    assert "error_check" not in stage.run(few).metrics
    answer(inputs["completions"], 90)
    whole = {"model_name_or_path": "m", "dtype": "float32", "max_length": 128, "max_prompt_length": 48}
    assert "error_check" not in stage.run(context(tmp_path / "float32", inputs, model=whole)).metrics
