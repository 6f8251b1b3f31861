"""Loading the model to train and saving the trained one."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import Lora, Model
from spa_recipes.state import atomic

_ADAPTER = ".adapter"


def resolve_dtype(model: Model) -> torch.dtype:
    """Precision of the computation and of saved models; RecipeError where this machine cannot do it."""
    cuda = torch.cuda.is_available()
    if model.dtype == "auto":
        return torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
    if model.dtype == "float16" and not cuda:
        raise RecipeError("float16 training needs a GPU", where="model.dtype", fix="set float32, bfloat16 or auto")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[model.dtype]


def load_model(path: Path | str, settings: Model, dtype: torch.dtype, *, in_4bit: bool = False) -> PreTrainedModel:
    """A causal language model in the given precision, on the CPU unless it is loaded in 4 bits.

    Raises:
        DataError: there is no such model, or it cannot be read.
        RecipeError: 4 bits without a GPU or without bitsandbytes.
    """
    transformers_logging.disable_progress_bar()
    quantization = {"quantization_config": _four_bits(dtype), "device_map": {"": _local_gpu()}} if in_4bit else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(path),
            revision=_revision(path, settings),
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.trust_remote_code,
            **quantization,
        )
    except (OSError, SafetensorError) as error:
        raise DataError(f"no model can be loaded from {path}: {error}", fix="check model_name_or_path") from error


def lora_config(settings: Lora) -> Any:
    """peft's form of the settings; RecipeError without peft."""
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


def save_full(
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    source: Path | str,
    settings: Model,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write weights (safetensors), config and generation config.

    The configurations are those of the model that was trained from: trainers write their own pad and end tokens into
    the ones in memory.

    Args:
        state_dict: whole weights, on any device.
        source: path of the model before the training.
    """
    revision = _revision(source, settings)
    model.config = AutoConfig.from_pretrained(
        str(source), revision=revision, trust_remote_code=settings.trust_remote_code
    )
    with suppress(OSError):  # a model need not have one
        model.generation_config = GenerationConfig.from_pretrained(str(source), revision=revision)
    for tied, kept in model.all_tied_weights_keys.items():  # a sharded model hands out two copies
        if kept in state_dict:
            state_dict.pop(tied, None)
    model.save_pretrained(folder, state_dict=_cast(state_dict, dtype))
    _declare_dtype(folder / "config.json", dtype)


def save_merged(adapter: Path, source: Path | str, settings: Model, folder: Path, dtype: torch.dtype) -> None:
    """Add the trained adapter to the model that it was trained on, and write the sum like `save_full`."""
    import peft

    model = peft.PeftModel.from_pretrained(load_model(source, settings, torch.float32), str(adapter))
    merged = model.merge_and_unload()
    save_full(merged, merged.state_dict(), source, settings, folder, dtype)


def adapter_folder(output_dir: Path) -> Path:
    """Where the adapter lies until it is merged; hidden, so that it is no output."""
    return output_dir / _ADAPTER


def drop_adapter(output_dir: Path) -> None:
    """Remove the adapter after the merge."""
    shutil.rmtree(adapter_folder(output_dir), ignore_errors=True)


def keep_adapter(output_dir: Path, folder: Path) -> None:
    """Move the adapter out of the merged model's folder.

    peft writes the place of the base model on this disk into its config, and a card that says nothing: neither stays.
    """
    adapter = adapter_folder(output_dir)
    (adapter / "README.md").unlink(missing_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    atomic.write_json(adapter / "adapter_config.json", {**config, "base_model_name_or_path": None})
    adapter.rename(folder)


def _cast(state_dict: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating-point tensors in another precision; tied tensors stay one tensor."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state_dict.values():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in done:
            done[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: done[(tensor.data_ptr(), tensor.shape)] for name, tensor in state_dict.items()}


def _declare_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """transformers writes the precision of the model in memory, which is that of the training."""
    config = json.loads(config_file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    atomic.write_json(config_file, config)


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    if not torch.cuda.is_available():
        raise RecipeError("load_in_4bit needs a CUDA GPU", where="model.lora.load_in_4bit", fix="set it to false")
    if not transformers.utils.is_bitsandbytes_available():
        raise RecipeError(
            "load_in_4bit needs bitsandbytes", where="model.lora.load_in_4bit", fix="pip install 'spa-recipes[qlora]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
    )


def _revision(path: Path | str, settings: Model) -> str | None:
    """The revision belongs to the model that the recipe names, not to those trained from it."""
    return settings.revision if str(path) == settings.model_name_or_path else None


def _local_gpu() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
