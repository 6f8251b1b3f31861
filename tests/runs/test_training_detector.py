"""The detector of noisy labels in half precision: its p~ comes from derivatives, and ranks pairs as float32's does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spa_recipes.models.forward_mode import NoForwardModeError
from spa_recipes.training import along_update, run
from spa_recipes.training.env import PairLoss, Refinement, TrainResult
from spa_recipes.training.run import train_preference
from tests.kit.training import REFINEMENT, make_env, make_half_model, make_pairs, preference, same_weights, trace

EARLY = replace(REFINEMENT, warmup_ratio=0.4)
TELLS = "p~ of the noise detector is a difference of log-probs in bfloat16, not a derivative, since "


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_half_model(tmp_path_factory.mktemp("start"))


def refine(
    start: Path,
    folder: Path,
    refinement: Refinement = EARLY,
    say: Callable[[str], None] = pytest.fail,
    *,
    rows: Any = None,
    **fields: Any,
) -> TrainResult:
    """A small update: ten steps of 8 pairs."""
    env = replace(make_env(start, folder, **{"dtype": "bfloat16", **fields}), on_notice=say)
    settings = preference(num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-4)
    rows = make_pairs(40, reference=False) if rows is None else rows
    return train_preference(start, rows, settings, env, reference_path=start, refinement=refinement)


def agreement(one: Path, other: Path) -> float:
    """The correlation of the ranks of p~, after the warm-up."""
    ranks = [
        torch.tensor([row["p_detect"] for row in trace(folder) if row["step"] > 4]).argsort().argsort().double()
        for folder in (one, other)
    ]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("lam", [pytest.param(0.0, marks=pytest.mark.long), 0.5])
def test_its_ranks_are_those_of_float32_and_without_derivatives_they_are_not(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lam: float
) -> None:
    refinement = replace(EARLY, lam=lam)
    assert not refine(start, tmp_path / "float32", refinement, dtype="float32").detects_along_update
    assert refine(start, tmp_path / "half", refinement).detects_along_update
    monkeypatch.setattr(run, "_along_update", lambda *_: None)
    assert not refine(start, tmp_path / "before", refinement).detects_along_update
    assert agreement(tmp_path / "float32", tmp_path / "half") > 0.97
    assert agreement(tmp_path / "float32", tmp_path / "before") < 0.7


def test_without_a_live_reference_it_takes_the_start_of_the_policy(start: Path, tmp_path: Path) -> None:
    rows = make_pairs(40)
    settings = preference(num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-4)
    env = replace(make_env(start, tmp_path, dtype="bfloat16"), on_notice=pytest.fail)
    assert train_preference(start, rows, settings, env, reference_path=None, refinement=EARLY).detects_along_update
    late = [row["p_detect"] for row in trace(tmp_path) if row["step"] > 1]
    assert max(abs(p - 0.5) for p in late) < 0.1  # the invented log-probs of the reference are nowhere in it


def test_the_start_against_a_mixed_reference_is_part_of_p(start: Path, tmp_path: Path) -> None:
    starts = [0.1 * (k % 5 - 2) for k in range(40)]
    settings = preference(per_device_train_batch_size=4, learning_rate=1e-4)
    said: list[str] = []
    for divergence in ("reverse_kl", "chi_squared"):
        folder, loss = tmp_path / divergence, PairLoss(divergence=divergence, first_margins=starts)
        env = replace(make_env(start, folder, dtype="bfloat16"), on_notice=said.append)
        train_preference(start, make_pairs(40), settings, env, reference_path=None, refinement=EARLY, loss=loss)
    assert [line.startswith(f"{TELLS}the start's distance to a mixed reference is") for line in said] == [True]
    rows = trace(tmp_path / "reverse_kl")
    p_N = torch.tensor([row["p_detect"] for row in rows])
    torch.testing.assert_close(p_N, torch.tensor([starts[row["row"]] for row in rows]).sigmoid(), rtol=0, atol=0.02)


@pytest.mark.parametrize("lam", [0.0, pytest.param(0.5, marks=pytest.mark.long)])
def test_with_lora_it_goes_along_the_adapter(start: Path, tmp_path: Path, lam: float) -> None:
    refinement, lora = replace(EARLY, lam=lam), {"lora_r": 2}
    rows = make_pairs(40, reference=False)
    refine(start, tmp_path / "float32", refinement, rows=rows, lora=lora, dtype="float32")
    assert refine(start, tmp_path / "half", refinement, rows=rows, lora=lora).detects_along_update
    assert agreement(tmp_path / "float32", tmp_path / "half") > 0.9


def test_a_model_without_forward_mode_is_told_once_and_trains_as_before(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NoForwardModeError("a_kernel has no derivative in forward mode")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(along_update, "decoupled_log_ratios", refuse)
        assert not refine(start, tmp_path / "refused", say=said.append).detects_along_update
    assert said == [
        f"{TELLS}a_kernel has no derivative in forward mode: rounding decides in part which pairs are flagged; set "
        "noise.detector to judge, or model.dtype to float32"
    ]
    monkeypatch.setattr(run, "_along_update", lambda *_: None)
    refine(start, tmp_path / "before")
    late = [[row["p_detect"] for row in trace(tmp_path / name) if row["step"] > 2] for name in ("refused", "before")]
    assert late[0] == late[1]
    assert same_weights(tmp_path / "refused" / "out", tmp_path / "before" / "out")


def test_weights_in_shares_have_a_whole_reference_beside_them(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(run, "shards_weights", lambda: True)
        assert refine(start, tmp_path, say=said.append).detects_along_update
    assert not said


def test_a_detector_that_asks_the_judge_alone_needs_no_derivative(start: Path, tmp_path: Path) -> None:
    judge = replace(EARLY, detector="judge", judge_margins=[0.1 * (k % 7 - 3) for k in range(40)])
    assert not refine(start, tmp_path, judge).detects_along_update
