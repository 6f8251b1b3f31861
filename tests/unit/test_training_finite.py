"""The one check for losses and gradients that are not finite, which all trainers share."""

import math
from types import SimpleNamespace

import pytest
import torch

from spa_recipes.errors import StageError
from spa_recipes.training.order import PADDING_ROW
from spa_recipes.training.token_rows import TrainsTokenRows


def check(losses: list[float], grad_norm: float | None, *, fp16: bool = False) -> None:
    trainer = TrainsTokenRows()
    trainer.args, trainer.state = SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=4)
    trainer._stop_unless_finite(torch.tensor(losses), torch.tensor([9, 2, PADDING_ROW, 2]), grad_norm)


@pytest.mark.parametrize("grad_norm", [0.0, 3.5, None])
def test_finite_figures_pass(grad_norm: float | None) -> None:
    check([0.5, 1e30], grad_norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_is_told_with_step_and_rows(bad: float) -> None:
    with pytest.raises(
        StageError, match=r"^rows 2, 9: the loss of optimizer step 5 is not finite; lower learning_rate"
    ):
        check([0.5, bad], 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_is_told_unless_float16_scales_it(bad: float) -> None:
    with pytest.raises(StageError, match=r"^rows 2, 9: the gradient of optimizer step 5"):
        check([0.5], bad)
    check([0.5], bad, fp16=True)  # the scaler skips the step
    with pytest.raises(StageError, match="the loss"):
        check([math.nan], bad, fp16=True)
