"""LoRA adapters: peft's settings, their sums with the weights, and the adapter that stays beside it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME

from spa_recipes.errors import RecipeError, StageError
from spa_recipes.models.loading import local_device
from spa_recipes.models.lora_files import read_lora
from spa_recipes.models.lora_names import CONFIG
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


def refuse_on_output_layer(model: PreTrainedModel) -> None:
    """Refuse adapters on the output layer, whose weight is read directly, and on embeddings that are tied to it.

    Merged into tied embeddings, an adapter would change the output layer, which was trained without it.

    Raises:
        RecipeError: names the layer.
    """
    from peft.tuners.lora import LoraLayer

    head = model.get_output_embeddings()
    weight = getattr(head.get_base_layer() if isinstance(head, LoraLayer) else head, "weight", None)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and layer.get_base_layer().weight is weight:
            short = name.rpartition(".")[2]
            raise RecipeError(
                f"{short} is the output layer" + ("" if layer is head else ", too, as the embeddings are tied"),
                where="model.lora.lora_target_modules",
                fix=f"remove {short}: log-probs are read from its weight directly",
            )


def sums_with(model: PreTrainedModel, adapter: Path) -> tuple[PreTrainedModel, dict[str, Callable[[], torch.Tensor]]]:
    """The model without layers of peft, and what makes each of its weights that a trained adapter is added to.

    One sum is in memory at a time, in float32 and on this process's GPU where it has one. Layers that were trained as a
    whole are in the model already.

    Args:
        model: what the adapter was trained on, in any precision that its weights are exact in. It is changed.
    """
    import peft
    from peft.tuners.lora import LoraLayer

    wrapped = peft.PeftModel.from_pretrained(model, str(adapter))
    layers = {name: layer for name, layer in wrapped.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    bare: PreTrainedModel = wrapped.unload()
    return bare, {f"{name}.weight": partial(_sum, layer, local_device()) for name, layer in layers.items()}


def _sum(layer: Any, device: torch.device) -> torch.Tensor:
    """The weight of a layer with its adapter in float32, as peft merges it."""
    (adapter,) = layer.active_adapters
    weight: torch.Tensor = layer.get_base_layer().weight.detach().to(device, torch.float32)
    for factors in (layer.lora_A, layer.lora_B):
        factors.to(device, torch.float32)
    delta: torch.Tensor = layer.get_delta_weight(adapter).detach()
    return weight + delta


def with_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with a trained adapter beside its weights, which stay as they are."""
    import peft

    inner: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(adapter)).get_base_model().eval()
    return inner


def lay_under(model: PreTrainedModel, adapter: Path, dtype: torch.dtype) -> None:
    """Let the layers of a frozen model, perhaps in 4 bits, compute with an adapter that was trained before.

    An adapter that peft adds then is on top of it: switched off, it leaves the model as it is here.

    Args:
        dtype: precision of the products.

    Raises:
        DataError, StageError: the adapter cannot be read, is not plain LoRA, or has no place in the model.
    """
    lora = read_lora(adapter)
    layers = dict(model.named_modules())
    for name, (down, up) in lora.factors.items():
        if name not in layers:
            raise StageError(f"the adapter does not fit the model, which has no {name}", where=str(adapter))
        device = next(layers[name].parameters()).device
        factors = (down.to(device, dtype), (lora.scale * up.float()).to(device, dtype))
        layers[name].register_forward_hook(partial(_add_product, *factors))


def _add_product(
    down: torch.Tensor, up: torch.Tensor, layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:
    """A layer's output with an adapter's."""
    added = linear(linear(inputs[0].to(down.dtype), down), up)
    return output + added.to(output.dtype)


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
    config = json.loads((adapter / CONFIG).read_text())
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):  # otherwise it is a pattern
        config["target_modules"].sort()
    atomic.write_json(adapter / CONFIG, config)
    adapter.rename(folder)
