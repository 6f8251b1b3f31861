"""Supervised fine-tuning: the loss of the equations, on response tokens only."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from spa_recipes.algo.logps import sequence_logps
from spa_recipes.errors import DataError, StageError
from spa_recipes.recipe.schema import Lora
from spa_recipes.training.run import train_sft
from spa_recipes.training.sft import SpaSftTrainer
from tests.kit.training import make_env, make_texts, same_weights, supervised, weights


def test_the_first_loss_is_the_mean_over_response_tokens(policy: Path, tmp_path: Path) -> None:
    rows = make_texts(8)
    result = train_sft(policy, rows, supervised(logging_steps=1), make_env(policy, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(policy)
    total = 0.0
    for row in rows:
        ids, mask = torch.tensor([row["input_ids"]]), torch.tensor([row["response_mask"]])
        with torch.no_grad():
            total -= sequence_logps(model(ids).logits, ids, mask).item()
    assert result.history[0]["loss"] == pytest.approx(total / sum(sum(r["response_mask"]) for r in rows), rel=1e-5)
    assert result.tokens == sum(len(row["input_ids"]) for row in rows)


def test_it_learns(policy: Path, tmp_path: Path) -> None:
    result = train_sft(policy, make_texts(16), supervised(num_train_epochs=15), make_env(policy, tmp_path))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    logged = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert logged == result.history


def test_a_global_batch_can_be_cut_in_any_way(policy: Path, tmp_path: Path) -> None:
    """Also the last one, which is filled up with padding rows."""
    rows = make_texts(20)
    for size in (8, 4, 1):
        settings = supervised(per_device_train_batch_size=size)
        train_sft(policy, rows, settings, make_env(policy, tmp_path / str(size)))
    assert same_weights(tmp_path / "8" / "out", tmp_path / "4" / "out", tolerance=1e-4)
    assert same_weights(tmp_path / "8" / "out", tmp_path / "1" / "out", tolerance=1e-4)


def test_lora(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path, lora=Lora(lora_r=4))
    train_sft(policy, make_texts(16), supervised(), env)
    before, after = weights(policy), weights(env.output_dir)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not list(env.output_dir.glob("*adapter*"))


def test_gradient_checkpointing_changes_nothing(policy: Path, tmp_path: Path) -> None:
    for flag in (False, True):
        env = make_env(policy, tmp_path / str(flag))
        train_sft(policy, make_texts(16), supervised(gradient_checkpointing=flag), env)
    assert same_weights(tmp_path / "True" / "out", tmp_path / "False" / "out", tolerance=1e-6)


def test_a_loss_that_is_not_finite_stops_the_training(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SpaSftTrainer.compute_loss

    def broken(self: SpaSftTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = original(self, *arguments, **keywords)
        if self.state.global_step == 1:
            self._seen[-1] = (self._seen[-1][0], self._seen[-1][1] * float("nan"))
        return loss

    monkeypatch.setattr(SpaSftTrainer, "compute_loss", broken)
    with pytest.raises(StageError, match=r"rows \d+, .*the loss of optimizer step 2 is not finite"):
        train_sft(policy, make_texts(16), supervised(), make_env(policy, tmp_path))


def test_missing_columns_are_named(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="response_mask"):
        train_sft(policy, [{"input_ids": [1, 2]}], supervised(), make_env(policy, tmp_path))


def test_a_missing_model_is_named(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train_sft(tmp_path / "nowhere", make_texts(8), supervised(), make_env(policy, tmp_path))


def test_weights_that_do_not_fit_are_never_trained_on(policy: Path, tmp_path: Path) -> None:
    """transformers would load them with a warning, and draw at random what it does not find."""
    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    tensors = {f"module.{name}": tensor for name, tensor in weights(policy).items()}
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    env = make_env(broken, tmp_path)
    with pytest.raises(DataError, match=r"the weights do not fit .*the names begin with `module\.`"):
        train_sft(broken, make_texts(8), supervised(), env)
    assert not env.output_dir.exists()
