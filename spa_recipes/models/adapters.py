"""LoRA adapters: peft's settings, the sum with the model, and the adapter that stays beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Lora
from spa_recipes.state import atomic


def lora_config(settings: Lora) -> Any:
    """The settings as peft takes them; RecipeError without peft."""
    try:
        import peft
    except ImportError as error:
        raise RecipeError("LoRA needs peft", where="model.lora", fix="pip install 'spa-recipes[lora]'") from error
    return peft.LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a trained adapter added to its weights; `model` is what the adapter was trained on."""
    import peft

    whole: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return whole


def with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a trained adapter beside its weights, which stay as they are."""
    import peft

    inner: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(adapter)).get_base_model().eval()
    return inner


def keep_or_drop(adapter: Path, folder: Path | None) -> None:
    """Move an adapter that has been merged to `folder`, or delete it where that is None.

    Weights, configuration and tokenizer are kept, and nothing that names a place on this disk: neither peft's empty
    card nor the trainer's pickled arguments nor the path of the base model. The names of the trained layers are sorted,
    since peft writes them in a random order.
    """
    if folder is None:
        shutil.rmtree(adapter, ignore_errors=True)
        return
    for name in ("README.md", TRAINING_ARGS_NAME):
        (adapter / name).unlink(missing_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):  # otherwise it is a pattern
        config["target_modules"].sort()
    atomic.write_json(adapter / "adapter_config.json", config)
    adapter.rename(folder)
