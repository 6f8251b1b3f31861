"""Dropout and other chance in a model's forward pass: off wherever log-probs are compared with a reference's."""

import torch
from transformers import PreTrainedModel

from spa_recipes.errors import DataError

_NAMES = ("drop", "jitter")
"""Parts of the names under which architectures keep a share that is dropped, or how strong noise on a router is."""


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Set to 0 what makes a forward pass of a training random: dropout, dropped layers, jitter of routers.

    Architectures keep these as a module (`nn.Dropout`), as a number that a module hands to functions
    (`attention_dropout`), or read them from the configuration at every pass. Adapters that are added later keep their
    own.
    """
    for module in model.modules():
        of_dropout = "dropout" in type(module).__name__.lower()  # whose share is called `p` or `drop_prob`
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(vars(holder).items()) if holder is not None else []:
                named = any(part in name for part in _NAMES) or (of_dropout and holder is module and name == "p")
                if named and isinstance(value, int | float) and not isinstance(value, bool):
                    setattr(holder, name, 0.0)


def check_no_dropout(model: PreTrainedModel, token_ids: list[int], tolerance: float) -> None:
    """Whether a model computes the same in training as otherwise, on a text; `tolerance` is a share of its output.

    Raises:
        DataError: its forward pass is random in a way that `switch_off_dropout` does not know.
    """
    ids_1T = torch.tensor([token_ids], device=model.device)
    was_training = model.training
    outputs = []
    with torch.no_grad():
        for training in (False, True):
            model.train(training)
            outputs.append(model(input_ids=ids_1T, use_cache=False).logits.float())
    model.train(was_training)
    # NaN, which is not more than anything, is told with the row and step that made it.
    if (outputs[1] - outputs[0]).abs().max() > tolerance * outputs[0].abs().max():
        raise DataError(
            f"{type(model).__name__} computes something else while it is trained, though its dropout is switched off: "
            "its log-probs would be those of another model",
            fix="set what is random in its config.json to 0; please report the architecture",
        )
