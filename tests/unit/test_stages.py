"""What single stages promise, without a model: shards, judging, the audit of flags, errors of the worker."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spa_recipes.errors import DataError, StageError
from spa_recipes.recipe.schema import Model
from spa_recipes.run.worker import run_stage
from spa_recipes.stages.common import FEWEST_SCORED, SCORED_PER_SHARD, shard_size, sharded
from spa_recipes.stages.refine import _audit
from spa_recipes.stages.training import train_env
from tests.kit.stages import context_of, judged, spec_of

NUMBERS = pa.schema([("n", pa.int64())])


class Counter:
    """Makes rows and remembers which."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[tuple[int, int]] = []
        self._fail_at = fail_at

    def __call__(self, start: int, end: int) -> pa.Table:
        if self._fail_at is not None and start <= self._fail_at < end:
            raise KeyboardInterrupt
        self.made.append((start, end))
        return pa.table({"n": list(range(start, end))})


def test_trackers_files_outlive_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's default place is among the checkpoints, which are deleted when the stage is finished."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    context, model = context_of(tmp_path, "sft", settings={"seed": 1}), Model(model_name_or_path="m")
    renderer: Any = SimpleNamespace(tokenizer=None)
    assert train_env(context, model, renderer).checkpoints_kept == 2
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    train_env(context, model, renderer)
    place = Path(os.environ.pop("TENSORBOARD_LOGGING_DIR"))
    assert place == context.attempt_dir / "tensorboard"
    assert not place.is_relative_to(context.work)


def test_attempts_of_a_stage_have_one_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer, ids = Model(model_name_or_path="m"), SimpleNamespace(tokenizer=None), []
    for folder in ("one", "one", "two"):
        context = context_of(tmp_path / folder, "sft", settings={"seed": 1})
        monkeypatch.setitem(context.spec.runtime, "tracking", {"report_to": ["wandb"]})
        for name in ("WANDB_RUN_ID", "WANDB_RESUME", "TENSORBOARD_LOGGING_DIR"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        train_env(context, model, cast(Any, renderer))
        ids.append(os.environ["WANDB_RUN_ID"])
        assert os.environ["WANDB_RESUME"] == "allow"
    assert ids[0] == ids[1] != ids[2]


def test_a_few_thousand_rows_keep_several_gpus_busy() -> None:
    """A recipe has 4,000 held-out or seed answers: with 4,096 rows per shard, one GPU would score them all."""
    size = shard_size(4000, fewest=FEWEST_SCORED, most=SCORED_PER_SHARD)
    assert 4000 / size > 4 * 4  # the last shards of four workers end nearly together
    assert shard_size(10**6, fewest=FEWEST_SCORED, most=SCORED_PER_SHARD) == SCORED_PER_SHARD
    assert shard_size(100, fewest=FEWEST_SCORED, most=SCORED_PER_SHARD) == FEWEST_SCORED


def test_shards_that_are_done_are_not_made_again(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sharded(context, "t", 10, 3, NUMBERS, Counter(fail_at=7))
    second = Counter()
    table = sharded(context, "t", 10, 3, NUMBERS, second)
    assert table is not None
    assert table["n"].to_pylist() == list(range(10))
    assert second.made == [(6, 9), (9, 10)]


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really", None, pa.table({"n": [5, 4, 3]})])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: bytes | pa.Table | None) -> None:
    """Empty, no Parquet, cut off; and readable with as many rows, but other ones."""
    context = context_of(tmp_path)
    sharded(context, "t", 6, 3, NUMBERS, Counter())
    shard = context.work / "shards" / "t" / "00000003-00000006.parquet"
    if isinstance(damage, pa.Table):
        pq.write_table(damage, shard)
    else:
        shard.write_bytes(damage if damage is not None else shard.read_bytes()[:-20])
    damaged = shard.read_bytes()
    again = Counter()
    table = sharded(context, "t", 6, 3, NUMBERS, again)
    assert table is not None
    assert table["n"].to_pylist() == list(range(6))
    assert again.made == [(3, 6)]
    assert (context.work / "damaged" / f"{shard.name}.damaged-1").read_bytes() == damaged
    assert "altered or cut off" in (context.attempt_dir / "progress.jsonl").read_text()


def test_another_shard_size_does_not_mix(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    sharded(context, "t", 8, 4, NUMBERS, Counter())
    table = sharded(context, "t", 8, 3, NUMBERS, Counter())
    assert table is not None
    assert table["n"].to_pylist() == list(range(8))


def test_processes_share_the_shards(tmp_path: Path) -> None:
    other = context_of(tmp_path)
    other.rank, other.world_size = 1, 2
    ours = Counter()
    assert sharded(other, "t", 10, 2, NUMBERS, ours) is None
    assert ours.made == [(2, 4), (6, 8)]
    first = context_of(tmp_path)
    first.world_size = 2
    table = sharded(first, "t", 10, 2, NUMBERS, Counter())
    assert table is not None
    assert table["n"].to_pylist() == list(range(10))


def test_the_best_and_the_worst_of_many_make_the_pair(tmp_path: Path) -> None:
    judgments, pairs, _ = judged(tmp_path, [["a", "b", "c"]], [[-10.0, -5.0, -20.0]], [[-10.0, -9.0, -10.0]])
    assert judgments[0]["rewards"] == pytest.approx([0.0, 0.4, -1.0])
    assert (judgments[0]["chosen"], judgments[0]["rejected"]) == (1, 2)
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "b"}]
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "c"}]
    assert pairs[0]["margin"] == pytest.approx(1.4)


def test_ties_are_counted_and_broken_the_same_way_every_time(tmp_path: Path) -> None:
    texts = [["a", "b"]] * 40
    equal = [[-7.0, -7.0]] * 40
    first, _, metrics = judged(tmp_path / "1", texts, equal, equal)
    second, _, _ = judged(tmp_path / "2", texts, equal, equal)
    assert metrics["ties"] == 40
    assert [j["chosen"] for j in first] == [j["chosen"] for j in second]
    assert 5 < sum(j["chosen"] for j in first) < 35  # not always the first answer
    assert {j["p_chosen"] for j in first} == {0.5}


def test_identical_answers_make_no_pair(tmp_path: Path) -> None:
    texts = [["same", "same"], ["a", "b"]]
    judgments, _, metrics = judged(tmp_path, texts, [[-3.0, -4.0]] * 2, [[-3.0, -3.0]] * 2)
    assert [j["item"] for j in judgments] == [1]
    assert metrics["dropped_identical"] == 1
    with pytest.raises(DataError, match="every prompt's answers are the same"):
        judged(tmp_path / "all", [["same", "same"]], [[-3.0, -4.0]], [[-3.0, -3.0]])


def test_a_reward_that_is_no_number_is_never_labelled(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="prompt p0"):
        judged(tmp_path, [["a", "b"]], [[float("nan"), -4.0]], [[-3.0, -3.0]])


def test_the_coin_ignores_the_rewards(tmp_path: Path) -> None:
    texts, policy, reference = [["a", "b"]] * 60, [[-1.0, -90.0]] * 60, [[-1.0, -1.0]] * 60
    judgments, pairs, _ = judged(tmp_path, texts, policy, reference, judge={"type": "random"})
    assert 15 < sum(j["chosen"] == 0 for j in judgments) < 45
    assert {pair["source"] for pair in pairs} == {"random"}


def test_precision_and_recall_of_the_flags() -> None:
    def judgment(gold_chosen: float, gold_rejected: float) -> dict[str, Any]:
        return {"chosen": 0, "rejected": 1, "gold": [gold_chosen, gold_rejected], "margin": 1.0}

    judgments: list[Any] = [judgment(0, 1), judgment(1, 0), judgment(0, 1), judgment(2, 1), judgment(1, 1)]
    trace: list[Any] = [{"row": i, "flagged": int(i in (0, 1, 4))} for i in range(5)]
    metrics = _audit(judgments, trace)
    assert metrics["flagged_pairs"] == 3
    assert metrics["wrong_base_rate"] == pytest.approx(2 / 4)  # the pair of equal gold is neither right nor wrong
    assert metrics["flag_precision"] == pytest.approx(1 / 2)
    assert metrics["flag_recall"] == pytest.approx(1 / 2)


def test_a_failing_stage_leaves_its_error_and_no_output(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {
            "pairs": {"type": "dataset", "source": ""},
            "prompts": None,
            "seed_labels": 5,
            "prompts_per_iteration": [],
        }
    }
    spec = spec_of(tmp_path / "stage", "data", settings, {"pairs": tmp_path / "missing.jsonl"})
    assert run_stage(spec) == DataError.exit_code
    error = json.loads((tmp_path / "stage" / "attempts" / "1" / "error.json").read_text())
    assert error["exit_code"] == 3
    assert "missing.jsonl" in error["where"] + error["what"]
    assert not (tmp_path / "stage" / "output").exists()
    assert not (tmp_path / "stage" / "manifest.json").exists()


def test_an_unexpected_error_is_one_line_with_its_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(tmp_path / "stage", "judge", {}, {"prompts": tmp_path / "none.jsonl"})
    (tmp_path / "none.jsonl").write_text('{"prompt_id": "p0", "prompt": []}\n')
    assert run_stage(spec) == 1
    error = json.loads((tmp_path / "stage" / "attempts" / "1" / "error.json").read_text())
    assert error["what"].startswith("KeyError")
    assert "Traceback" in capsys.readouterr().err  # in the log, for whoever looks there
