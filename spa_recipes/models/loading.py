"""Loading a model: one way for all stages, which takes nothing but a whole checkpoint of the right shape."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from spa_recipes.algo.reward import use_score_head
from spa_recipes.data.chat import is_model_folder
from spa_recipes.data.hub import hub_error
from spa_recipes.data.places import is_path, no_such_folder
from spa_recipes.errors import DataError, RecipeError, TryAgainError
from spa_recipes.models.causal import check_causal
from spa_recipes.models.dtype import hides_gpus, torch_dtype
from spa_recipes.models.memory import is_out_of_memory
from spa_recipes.recipe.schema import Model

Load = Callable[[str, Model, torch.dtype], PreTrainedModel]
"""`load_causal_lm` or `load_reward_model`."""

_NAMED = 3  # tensors that an error names, of each kind


def load_causal_lm(path: str | Path, settings: Model, dtype: torch.dtype, *, in_4bit: bool = False) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, on the CPU unless it is loaded in 4 bits on a GPU.

    Args:
        path: a local folder, which is read without the network, or a Hub id. It may differ from the model that
            `settings` names; the revision holds for that one only.
        settings: attention implementation, remote code, revision.
        dtype: precision of the weights in memory.
        in_4bit: quantize the weights to NF4 (QLoRA), on this process's device; products are in `dtype`.

    Raises:
        DataError: there is no such model, it cannot be read, or its weights do not fit its architecture.
        RecipeError: 4 bits without bitsandbytes.
        TryAgainError: the Hub is out of reach.
    """
    if not in_4bit:
        return _load(AutoModelForCausalLM, path, settings, dtype)
    quantization = {"quantization_config": _four_bits(dtype), "device_map": {"": local_device()}}
    model = _load(AutoModelForCausalLM, path, settings, dtype, **quantization)
    for layer in model.modules():
        # On some CPUs, bitsandbytes would store the weights anew in the first pass, and round their scales to bfloat16.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def load_four_bit_values(
    path: str | Path, settings: Model, dtype: torch.dtype, *, trained_in: torch.dtype
) -> PreTrainedModel:
    """A model whose weights have the values that NF4 leaves of them, as plain tensors, on the CPU.

    It gives the log-probs of the model that `load_causal_lm` loads in 4 bits in `trained_in`: that one multiplies by
    these values, too.

    Args:
        path, settings, dtype: as in `load_causal_lm`.
        trained_in: the precision in which adapters on the 4 bits are trained; the values have it.

    Raises: as `load_causal_lm`.
    """
    plain: PreTrainedModel = load_causal_lm(path, settings, trained_in, in_4bit=True).dequantize()
    return plain.to("cpu", dtype)


def load_reward_model(
    path: str | Path, settings: Model, dtype: torch.dtype, *, new_head: bool = False
) -> PreTrainedModel:
    """Load a sequence-classification model with one output in evaluation mode, on the CPU.

    Args:
        path, settings, dtype: as in `load_causal_lm`.
        new_head: make a reward model from a policy: its own head is dropped, and a missing `score` layer is drawn from
            torch's random state. Otherwise the weights have to be those of a whole reward model.

    Raises:
        DataError: as `load_causal_lm`; the model has not exactly one output, or its architecture has no such form.
        TryAgainError: the Hub is out of reach.
    """
    if new_head:
        options: dict[str, Any] = {"num_labels": 1, "fix": "give a finished reward model by judge.model_name_or_path"}
    else:
        options = {"config": reward_config(path, settings)}
    model = _load(AutoModelForSequenceClassification, path, settings, dtype, new_head=new_head, **options)
    use_score_head(model)
    return model


def for_inference(load: Load, settings: Model) -> PreTrainedModel:
    """The model that `settings` names, in its precision, on this process's GPU or on the CPU.

    Raises:
        DataError, RecipeError: as `load`.
        TryAgainError: as `load`; out of memory.
    """
    path = settings.model_name_or_path
    try:
        model: PreTrainedModel = load(path, settings, torch_dtype(settings.dtype)).to(local_device()).eval()
        if load is load_causal_lm:
            check_causal(model)
        return model
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TryAgainError(
            "out of memory while the model was loaded",
            where=path,
            fix="use a device with more memory, or set model.dtype to bfloat16",
        ) from error


def stored_dtype(settings: Model) -> torch.dtype | None:
    """The precision in which a model's weights are stored, as its configuration says it; None where it does not.

    Raises:
        DataError, TryAgainError: as `load_causal_lm`.
    """
    dtype: torch.dtype | None = _config(settings.model_name_or_path, settings).dtype
    return dtype


def reward_config(path: str | Path, settings: Model) -> PretrainedConfig:
    """The configuration of a reward model, without its weights.

    Raises:
        DataError: there is no such model, or it has not exactly one output.
        TryAgainError: the Hub is out of reach.
    """
    config = _config(path, settings)
    if config.num_labels != 1:
        raise DataError(
            f"a reward model has one output (num_labels 1), not {config.num_labels}",
            where=str(path),
            fix="name a reward model, saved with num_labels=1",
        )
    return config


def _config(path: str | Path, settings: Model) -> PretrainedConfig:
    with _explained(path):
        return AutoConfig.from_pretrained(
            str(path),
            revision=revision_of(path, settings),
            local_files_only=Path(path).is_dir(),
            trust_remote_code=settings.trust_remote_code,
        )


def revision_of(path: str | Path, settings: Model) -> str | None:
    """The revision of the model that a recipe names on the Hub; folders and models trained from it have none."""
    return settings.revision if str(path) == settings.model_name_or_path and not Path(path).is_dir() else None


def local_device() -> torch.device:
    """The GPU of this process (CUDA, ROCm or a Mac's), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() and not hides_gpus() else "cpu")


def _load(
    kind: Any,
    path: str | Path,
    settings: Model,
    dtype: torch.dtype,
    *,
    fix: str = "",
    new_head: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load by one of transformers' `Auto` classes; `options` are further arguments of its `from_pretrained`."""
    transformers_logging.disable_progress_bar()
    with _explained(path, fix):
        model, info = kind.from_pretrained(
            str(path),
            revision=revision_of(path, settings),
            local_files_only=Path(path).is_dir(),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
            attn_implementation=settings.attn_implementation,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
    _refuse_misfits(model, info, str(path), new_head=new_head)
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _explained(path: str | Path, fix: str = "") -> Iterator[None]:
    """Say in one line why transformers cannot load something; an error about memory stays as it is."""
    name, local = str(path), is_model_folder(str(path))
    if not local and is_path(name):
        raise no_such_folder(name)
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and not local:
            raise hub_error("model", name, error) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot load a model: {reason}",
            where=name,
            fix=fix or "give a folder with config.json and weights, or a Hub id",
        ) from error


# --- tensors that do not fit


def _refuse_misfits(model: PreTrainedModel, info: dict[str, Any], where: str, *, new_head: bool) -> None:
    """Refuse weights that are not exactly those of the architecture: transformers would draw the others at random.

    transformers leaves tied tensors out of `info`, and those that a model class declares as not needed.

    Args:
        info: names by `missing_keys` and `unexpected_keys`; (name, its shape, the model's) by `mismatched_keys`.
        new_head: tensors outside the body may be missing or left over.

    Raises:
        DataError: names some of the tensors.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if new_head:
        missing, unexpected = ({name for name in names if _is_in_body(name, model)} for names in (missing, unexpected))
    shapes = {name: f"is {list(found)} and should be {list(own)}" for name, found, own in info["mismatched_keys"]}
    problems = [
        *([f"the weights of {_some(missing)} are missing"] if missing else []),
        *([f"the weights of {_some(unexpected)} are unexpected"] if unexpected else []),
        *([f"the shape of {_some(f'{name} {shape}' for name, shape in shapes.items())}"] if shapes else []),
    ]
    if problems:
        raise DataError(
            f"the weights do not fit {type(model).__name__}: {', '.join(problems)}",
            where=where,
            fix=_remedy(missing, set(info["unexpected_keys"]), misshapen=bool(shapes)),
        )


def _is_in_body(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor belongs to the model without its head."""
    return not model.base_model_prefix or name.startswith(f"{model.base_model_prefix}.")


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _remedy(missing: set[str], unexpected: set[str], *, misshapen: bool) -> str:
    """What to do about what most likely went wrong."""
    prefix = _common_prefix(missing, unexpected)
    if prefix:
        return f"the names begin with `{prefix}`: save the model itself, without its wrapper, by `save_pretrained`"
    if misshapen:
        return "put the config.json there that was saved with these weights"
    if missing == {"score.weight"}:
        return "name a whole reward model, not a language model"
    if any(name.startswith("score.") for name in unexpected):
        return "name a language model, not a reward model"
    return "save the whole model again by `save_pretrained`, with the class that config.json names"


def _common_prefix(missing: set[str], unexpected: set[str]) -> str:
    """What stands before some missing names among the unexpected ones; empty where it is not the same for all."""
    some = sorted(missing)[:_NAMED]
    prefixes = {found.removesuffix(name) for found in unexpected for name in some if found.endswith(f".{name}")}
    return prefixes.pop() if len(prefixes) == 1 else ""


# --- 4 bits


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    if not transformers.utils.is_bitsandbytes_available():
        raise RecipeError(
            "weights in 4 bits (QLoRA) need bitsandbytes",
            where="model.lora.load_in_4bit",
            fix="pip install 'spa-recipes[qlora]'",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
