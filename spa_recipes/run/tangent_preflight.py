"""Two models whose difference the judge differentiates along, and adapters, looked at before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.errors import DataError

if TYPE_CHECKING:
    from spa_recipes.run.model_files import ModelFiles

_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""What config.json says of the shapes of weights."""

_FIX = "give a policy and the model that it was trained from, or set the method to difference"


def refuse_different(policy: ModelFiles, reference: ModelFiles) -> None:
    """Refuse two models between which there is no way of the weights from one to the other.

    Raises:
        DataError: their shapes or their chat templates differ.
    """
    ours, theirs = policy.read("config.json"), reference.read("config.json")
    for name in _SHAPE:
        if ours.get(name) != theirs.get(name):
            raise DataError(
                f"the method tangent needs two models of one shape: {name} is {ours.get(name)}, and {theirs.get(name)} "
                f"in {reference.location}",
                where=policy.location,
                fix=_FIX,
            )
    if policy.chat_template() != reference.chat_template():
        raise DataError(
            f"the method tangent needs two models with one chat template, and that of {reference.location} differs",
            where=policy.location,
            fix=_FIX,
        )


def check_adapter(location: str) -> None:
    """Refuse a folder that is no LoRA adapter in safetensors.

    Raises:
        DataError: a file is missing.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(location) / name).is_file():
            raise DataError(
                f"there is no {name}", where=location, fix="give a folder as peft's save_pretrained writes it"
            )
