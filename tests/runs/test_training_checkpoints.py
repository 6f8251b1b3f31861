"""Checkpoints: recognised when damaged, and exact when resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spa_recipes.models import products
from spa_recipes.recipe.schema import Lora
from spa_recipes.training.checkpoints import CheckpointCallback, newest_complete_checkpoint
from spa_recipes.training.env import TrainResult
from spa_recipes.training.run import train_sft
from tests.kit.training import (
    KilledError,
    dying_at,
    make_env,
    make_texts,
    same_weights,
    supervised,
    train_pairs,
)


@pytest.fixture(scope="module")
def interrupted(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose training died in step 5 of 6, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KilledError):
        train_pairs(policy, folder, on_progress=dying_at(5))
    return folder


@pytest.mark.parametrize("case", [pytest.param("plain", marks=pytest.mark.long), "decoupled", "lora-dropout"])
def test_a_resumed_preference_training_is_the_same_bit_by_bit(policy: Path, tmp_path: Path, case: str) -> None:
    fields: dict[str, Any] = {"lam": 0.5 if case == "decoupled" else 0.0}
    if case == "lora-dropout":  # draws random numbers in every step
        fields["lora"] = Lora(lora_r=4, lora_alpha=8, lora_dropout=0.2)
    straight = train_pairs(policy, tmp_path / "straight", **fields)
    with pytest.raises(KilledError):
        train_pairs(policy, tmp_path / "resumed", on_progress=dying_at(5), **fields)
    resumed = train_pairs(policy, tmp_path / "resumed", **fields)
    assert (straight.metrics.pop("resumed_from_step"), resumed.metrics.pop("resumed_from_step")) == (0, 4)
    assert straight == resumed
    first, second = tmp_path / "straight" / "out", tmp_path / "resumed" / "out"
    assert same_weights(first, second)
    for name in ("pairs_trace.jsonl", "training_log.jsonl", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_resumed_sft_is_the_same_bit_by_bit(policy: Path, tmp_path: Path) -> None:
    settings = supervised(num_train_epochs=2, per_device_train_batch_size=4, save_steps=2)
    straight = train_sft(policy, make_texts(20), settings, make_env(policy, tmp_path / "straight"))
    with pytest.raises(KilledError):
        train_sft(policy, make_texts(20), settings, make_env(policy, tmp_path / "resumed", on_progress=dying_at(5)))
    resumed = train_sft(policy, make_texts(20), settings, make_env(policy, tmp_path / "resumed"))
    assert (straight.metrics.pop("resumed_from_step"), resumed.metrics.pop("resumed_from_step")) == (0, 4)
    assert straight == resumed
    assert same_weights(tmp_path / "straight" / "out", tmp_path / "resumed" / "out")


def train_by_onednn(policy: Path, folder: Path, **fields: Any) -> TrainResult:
    rows, settings = make_texts(20), supervised(num_train_epochs=2, per_device_train_batch_size=4, save_steps=2)
    return train_sft(policy, rows, settings, replace(make_env(policy, folder), **fields))


def test_a_training_whose_products_are_onednns_is_resumed_bit_by_bit(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    by_torch = train_by_onednn(policy, tmp_path / "torch", onednn_products=False)
    calls: list[tuple[int, ...]] = []
    product = torch.ops.mkldnn._linear_pointwise

    def counted(input_: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(tuple(input_.shape))
        result: torch.Tensor = product(input_, *rest)
        return result

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    monkeypatch.setattr(products, "_gains", lambda: True)
    monkeypatch.setattr(products, "WORTH_A_GRADIENT", 1)
    train_by_onednn(policy, tmp_path / "switched off", onednn_products=False)
    assert calls == []
    straight = train_by_onednn(policy, tmp_path / "straight")
    # Ten micro-batches, seven layers, three products each: the backward pass is oneDNN's, too.
    assert len(calls) == 10 * 7 * 3
    with pytest.raises(KilledError):
        train_by_onednn(policy, tmp_path / "resumed", on_progress=dying_at(5))
    train_by_onednn(policy, tmp_path / "resumed")
    assert same_weights(tmp_path / "straight" / "out", tmp_path / "resumed" / "out")
    assert straight.metrics["train_loss"] == pytest.approx(by_torch.metrics["train_loss"], rel=1e-4)


def test_checkpoints_say_what_is_in_them(interrupted: Path) -> None:
    folder = interrupted / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    newest = folder / "checkpoint-4"
    assert newest_complete_checkpoint(folder) == (newest, [])
    files = json.loads((newest / "spa_checkpoint.json").read_text())["files"]
    assert files.keys() == {path.name for path in newest.iterdir()} - {"spa_checkpoint.json"}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "spa_state.json"} <= files.keys()
    state = json.loads((newest / "spa_state.json").read_text())
    assert len(state["trace"]) == 28
    assert len(state["window"]["values"]) == 24


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no-marker", "bad-marker", "list-marker"])
def test_a_damaged_checkpoint_is_skipped(interrupted: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(interrupted / "checkpoints", folder)
    weights, marker = folder / "checkpoint-4" / "model.safetensors", folder / "checkpoint-4" / "spa_checkpoint.json"
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "no-marker":
        marker.unlink()
    else:
        marker.write_text('{"files": ' if damage == "bad-marker" else "[]")
    assert newest_complete_checkpoint(folder) == (folder / "checkpoint-2", ["checkpoint-4"])


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_checkpoints_stay_as_are_wanted_the_new_one_first(tmp_path: Path, keep: int) -> None:
    callback = CheckpointCallback(dict, keep)
    seen = []
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text(str(step))
        seen.append(len(list(tmp_path.iterdir())))
        callback.on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=step), None)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (2, 4, 6, 8)[-keep:]}
    assert max(seen) == keep + 1
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-8", [])


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_do_not_push_out_the_new_one(tmp_path: Path, keep: int) -> None:
    """All were damaged, the training began again, and its first checkpoint has an earlier step."""
    callback = CheckpointCallback(dict, keep)
    for step in (4, 6, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        weights = tmp_path / f"checkpoint-{step}" / "weights"
        weights.write_text(str(step))
        callback.on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=step), None)
        if step != 2:
            weights.write_text("damaged")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2"}
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", [])


def test_a_training_goes_on_from_the_last_whole_checkpoint(
    policy: Path, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train_pairs(policy, tmp_path / "straight")
    shutil.copytree(interrupted, tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    capsys.readouterr()
    resumed = train_pairs(policy, tmp_path / "resumed")
    said = "checkpoint-4 was altered or cut off: kept as checkpoint-4.damaged-1, going on from checkpoint-2"
    assert said in capsys.readouterr().out.splitlines()
    assert (tmp_path / "resumed" / "damaged" / "checkpoint-4.damaged-1" / "optimizer.pt").read_bytes() == b"half"
    assert resumed.metrics.pop("resumed_from_step") == 2
    straight.metrics.pop("resumed_from_step")
    assert resumed == straight
    assert same_weights(tmp_path / "straight" / "out", tmp_path / "resumed" / "out")


def test_nothing_to_find(tmp_path: Path) -> None:
    assert newest_complete_checkpoint(tmp_path / "none") == (None, [])
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    assert newest_complete_checkpoint(tmp_path) == (None, ["checkpoint-3"])
