"""A training begins with its first step: nothing is done to all weights that nobody needs."""

from pathlib import Path

import pytest
from trl.trainer import dpo_trainer

from spa_recipes.training.run import train_preference
from tests.kit.training import make_env, make_model, make_pairs, preference


def test_weights_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(module: object) -> str:
        raise AssertionError("TRL hashes all weights where the rows have log-probs of the reference")

    monkeypatch.setattr(dpo_trainer, "hash_module", refused)
    policy = make_model(tmp_path / "policy")
    env = make_env(policy, tmp_path)
    result = train_preference(policy, make_pairs(8), preference(), env, reference_path=None, refinement=None)
    assert result.steps == 1
    assert dpo_trainer.hash_module is refused
