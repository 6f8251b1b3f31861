"""Two models whose difference the judge differentiates along, and adapters, looked at before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.errors import DataError
from spa_recipes.models.lora_names import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from spa_recipes.data.model_files import ModelFiles

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


def refuse_different(model: ModelFiles, other: ModelFiles, *, with_template: bool) -> None:
    """Refuse two models between which there is no way of the weights from one to the other.

    A setting that only one of the two configurations has may be the other one's default, and says nothing.

    Args:
        with_template: the answers that they read are rendered by the chat template of one of them.

    Raises:
        DataError: their shapes or their chat templates differ.
    """
    ours, theirs = model.read("config.json"), other.read("config.json")
    for name in _SHAPE:
        one, another = ours.get(name), theirs.get(name)
        if None not in (one, another) and one != another:
            raise DataError(
                f"the method tangent needs two models of one shape: {name} is {one}, and {another} in {other.location}",
                where=model.location,
                fix=_FIX,
            )
    if with_template and model.chat_template() != other.chat_template():
        raise DataError(
            f"the method tangent needs two models with one chat template, and that of {other.location} differs",
            where=model.location,
            fix=_FIX,
        )


def is_adapter(location: str) -> bool:
    """Whether a folder holds LoRA weights alone."""
    folder = Path(location)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def check_adapter(location: str) -> None:
    """Refuse a folder that is no LoRA adapter in safetensors.

    Raises:
        DataError: a file is missing.
    """
    for name in (CONFIG, WEIGHTS):
        if not (Path(location) / name).is_file():
            raise DataError(
                f"there is no {name}", where=location, fix="give a folder as peft's save_pretrained writes it"
            )
