"""Before the first step of a refinement the policy is its reference: other margins stop it."""

from pathlib import Path

import pytest

from spa_recipes.errors import StageError
from spa_recipes.training.run import Start, train_preference
from tests.kit.training import REFINEMENT, make_env, make_pairs, preference


def test_a_reference_that_is_another_model_is_found_in_the_first_step(policy: Path, tmp_path: Path) -> None:
    rows = make_pairs(8)  # with invented log-probs of a reference
    with pytest.raises(StageError, match=r"the margins before the first step are .* and should be 0"):
        train_preference(
            policy,
            rows,
            preference(),
            make_env(policy, tmp_path),
            reference_path=None,
            refinement=None,
            start=Start(0.002),
        )
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_rounding_is_no_other_model(policy: Path, tmp_path: Path) -> None:
    """A live reference, in bfloat16, whose margins are 0 but for rounding."""
    from dataclasses import replace

    result = train_preference(
        policy,
        make_pairs(8, reference=False),
        preference(),
        make_env(policy, tmp_path, dtype="bfloat16"),
        reference_path=policy,
        refinement=replace(REFINEMENT, lam=0.5),
        start=Start(),
    )
    assert result.steps == 1
