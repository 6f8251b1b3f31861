"""The detector's log-ratios in half precision: from derivatives along the update, not from a difference of log-probs.

Two log-probs of hundreds of nats each have an error of about a nat in half precision, and what the detector ranks is
smaller than that. The forward pass of a training does not even see an update before its weights cross a step of
rounding; the update itself, float32 weights minus the reference's, is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.autograd import forward_ad
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter

from spa_recipes.algo.decoupled import decoupled_log_ratios
from spa_recipes.algo.logps import CHUNK_SIZE, LmHead, logit_rules
from spa_recipes.errors import StageError
from spa_recipes.models.forward_mode import (
    Moving,
    NoForwardModeError,
    derivatives,
    no_tangent,
    one_expert_at_a_time,
    own_rules,
)
from spa_recipes.models.update import NoUpdateError, Update, difference, trained_adapter
from spa_recipes.training.response_logps import IGNORED, scored_states
from spa_recipes.training.sharding import torchs_own_linear, whole_weight

HALF_WAY = 0.5
"""Where along the update the derivatives are taken: the middle, where what they neglect is of the third order. At the
reference it is of the second, and ranks pairs wrongly where log-ratios are a nat or more."""

WORDS = 16384
"""Words of the vocabulary whose logits exist at one time, for `CHUNK_SIZE` tokens, in several float32 tensors."""


@dataclass
class AlongUpdate:
    """log pi~ - log pi_ref of responses by a forward-mode pass between the reference and the policy, along the update.

    It costs three products for each layer, or with LoRA two, and no backward pass. Beside the weights of the training
    it needs the update in the reference's precision, from the first pass of an optimizer step to its end, and the
    reference itself, which a training with lambda = 0 has no other use for. Both are whole on every device, also where
    the training is shared out: there, all processes gather the update together, weight by weight.

    Attributes:
        reference: pi_ref in half precision, whole: what the policy was when its training began; None where it is the
            policy without its adapter.
        stored: the same in float32, on the CPU, where half precision took something from it.
        lam: lambda; with 0 they are the log-ratios of the policy itself.
        say: called once, with the reason, where the model has no forward mode.
        works: False from then on.
    """

    reference: PreTrainedModel | None
    stored: PreTrainedModel | None
    lam: float
    say: Callable[[str], None]
    works: bool = True
    _update: Update | None = field(default=None, init=False)

    def log_ratios(
        self,
        policy: PreTrainedModel,
        input_ids_BT: torch.Tensor,
        response_labels_BT: torch.Tensor,
        *,
        alone: bool = False,
    ) -> torch.Tensor | None:
        """The log-ratios in nats, (B,) in float64; None where the model has no forward mode.

        Args:
            policy: the model in training, unwrapped.
            input_ids_BT, response_labels_BT: padded on the right, as in `add_response_logps`.
            alone: as there.

        Raises:
            StageError: a log-ratio is NaN or infinite, or all are exactly 0.
        """
        try:
            if self._update is None:
                self._update = self._made(policy)
            if self.reference is not None:
                return self._pass(self.reference, self._update, input_ids_BT, response_labels_BT, alone)
            with use_adapter(policy, adapter_name=None):
                return self._pass(_base(policy), self._update, input_ids_BT, response_labels_BT, alone)
        except NoUpdateError:  # before the first step, or after one with a learning rate of 0
            return torch.zeros(len(input_ids_BT), dtype=torch.float64, device=input_ids_BT.device)
        except NoForwardModeError as error:
            self.works, self._update = False, None
            self.say(error.what)
            return None

    def forget(self) -> None:
        """The weights change: the update is another one."""
        self._update = None

    def _made(self, policy: PreTrainedModel) -> Update:
        if self.reference is None or hasattr(policy, "get_base_model"):
            return trained_adapter(_base(policy), onto=self.reference, whole=whole_weight)
        return difference(policy, self.reference, stored=self.stored, whole=whole_weight)

    def _pass(
        self,
        model: PreTrainedModel,
        update: Update,
        input_ids_BT: torch.Tensor,
        response_labels_BT: torch.Tensor,
        alone: bool,
    ) -> torch.Tensor:
        layer = model.get_output_embeddings()
        head = LmHead(layer.weight, layer.bias, *logit_rules(model.config.get_text_config()))
        scored_BT = response_labels_BT[:, 1:] != IGNORED
        moving = Moving(model, update.moves, HALF_WAY / update.scale)
        was_training = model.training
        model.eval()  # adapters have a dropout, and checkpointed activations no derivative
        try:
            with (
                torch.autocast(input_ids_BT.device.type, enabled=False),
                forward_ad.dual_level(),
                one_expert_at_a_time(model),
                torchs_own_linear(),
                derivatives(moving),
            ):
                states_ND = scored_states(model.base_model, input_ids_BT, response_labels_BT, alone=alone)
                hidden, layer = moving.hidden(states_ND, head), moving.head(head)
                with own_rules():
                    log_ratios_N = decoupled_log_ratios(
                        hidden,
                        *layer,
                        response_labels_BT[:, 1:][scored_BT],
                        at=moving.at,
                        reach=(1.0 + self.lam) / update.scale,
                        rows=CHUNK_SIZE,
                        columns=WORDS,
                    )
        finally:
            model.train(was_training)
        log_ratios_B = log_ratios_N.new_zeros(scored_BT.shape).masked_scatter(scored_BT, log_ratios_N).sum(dim=1)
        if not bool(log_ratios_B.isfinite().all()):
            raise StageError(
                "a log-ratio of the noise detector is NaN or infinite",
                fix="look for a training that diverged, or set model.dtype to float32",
            )
        if not bool(log_ratios_B.any()):
            raise no_tangent("of all responses is exactly 0")
        return log_ratios_B


def _base(policy: PreTrainedModel) -> PreTrainedModel:
    """The model inside peft's wrapper."""
    base: PreTrainedModel = policy.get_base_model()
    return base
