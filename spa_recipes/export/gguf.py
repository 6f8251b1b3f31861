"""A model as a GGUF file, which llama.cpp, Ollama and LM Studio run.

The names of tensors and keys are those of llama.cpp's package `gguf`. Weights keep their precision: they go from
safetensors into the file tensor by tensor, so memory holds one at a time. What llama.cpp would compute in another way
than transformers is refused, or said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.model_files import ModelFiles
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.export.vocabulary import Vocabulary, vocabulary_of
from spa_recipes.models.lora_names import CONFIG as ADAPTER_CONFIG
from spa_recipes.run.downloads import check_named_model
from spa_recipes.run.intact import check_made_model
from spa_recipes.run.model_preflight import refuse_quantised
from spa_recipes.state import atomic

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",  # llama.cpp knows both by this name
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""What llama.cpp calls an architecture, by the name that `config.json` has."""

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NOT_WRITTEN = ("rotary_emb.inv_freq",)
"""Ends of tensors that old checkpoints hold and that are computed anew."""


class Exported(NamedTuple):
    """A file that was written.

    Attributes:
        context: tokens that the file says the model reads.
        notices: what a person should know, in words.
    """

    path: Path
    tensors: int
    bytes: int
    context: int
    notices: list[str]


class _Tensor(NamedTuple):
    """A tensor of the checkpoint: its name in both files, and where it is."""

    source: str
    name: str
    file: Path
    shape: list[int]
    dtype: str


def export_gguf(location: str, name: str, out: Path) -> Exported:
    """Write a model with its tokenizer and chat template as a GGUF file.

    Args:
        location: a local folder, or a Hub id, which is downloaded.
        name: what the file calls the model.
        out: the file; it is whole or absent.

    Raises:
        RecipeError: the package gguf is missing, the output is there already, or its folder is not.
        DataError: there is no such model, or it is one that cannot be exported.
        TryAgainError: the Hub is out of reach.
    """
    if find_spec("gguf") is None:
        raise RecipeError("the package gguf is not installed", fix="pip install 'spa-recipes[gguf]'")
    if out.exists():
        raise RecipeError("it is there already", where=str(out), fix="choose another --out, or move it away")
    if not out.absolute().parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    files = ModelFiles(location, None).at_commit()
    check_named_model(location, files.revision)
    architecture = _architecture(files)
    folder = _folder(files)
    check_made_model(str(folder))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    notices = _refuse_differences(config, location)
    tensors = _tensors(folder, architecture, config, location)
    vocabulary = vocabulary_of(folder, config.vocab_size, location)
    return _write(out, architecture, name, config, tensors, vocabulary, notices)


# --- what can be exported


def _architecture(files: ModelFiles) -> str:
    """What llama.cpp calls the model's architecture.

    Raises:
        DataError: it is another one than those of FAMILIES, only an adapter, or quantised.
    """
    config = files.read("config.json", needed=True)
    if not config:
        adapter = files.find(ADAPTER_CONFIG) is not None
        raise DataError(
            "only an adapter, without the model that it belongs to" if adapter else "no such model: no config.json",
            where=files.location,
            fix="merge it into its model first; a run's own models are merged" if adapter else "check the name",
        )
    refuse_quantised(files, config)
    names = config.get("architectures") or [config.get("model_type")]
    if names[0] not in FAMILIES:
        raise DataError(
            f"{names[0]} cannot be exported as GGUF here: that is for {', '.join(FAMILIES)}",
            where=files.location,
            fix="use convert_hf_to_gguf.py of llama.cpp for it",
        )
    return FAMILIES[names[0]]


def _folder(files: ModelFiles) -> Path:
    """The folder with the model's files, which are downloaded where it is on the Hub."""
    if files.local:
        return Path(files.location)
    from huggingface_hub import snapshot_download

    from spa_recipes.data.hub import hub_error

    try:
        return Path(
            snapshot_download(
                files.location,
                revision=files.revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*"],
            )
        )
    except Exception as error:  # the Hub client and its network library raise what they like
        raise hub_error("model", files.location, error) from error


def _refuse_differences(config: Any, where: str) -> list[str]:
    """Refuse what llama.cpp would compute in another way, and say what it leaves out."""
    rope = _rope(config)
    differences = {
        f"its activation is {config.hidden_act}": config.hidden_act != "silu",
        f"its rotary embedding is {rope['rope_type']}": rope["rope_type"] not in _ROPE,
        "only a part of each head is rotated": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "its rotary embedding has settings of its own": bool(rope.keys() - _ROPE.get(rope["rope_type"], set()) - _BASE),
    }
    for what, differs in differences.items():
        if differs:
            raise DataError(
                f"{what}, which this export does not know", where=where, fix="use convert_hf_to_gguf.py of llama.cpp"
            )
    window = _window(config)
    if window is None or window >= config.max_position_embeddings:
        return []
    return [
        f"the model's attention has a window of {window} tokens, which llama.cpp reads without: the file says that its "
        f"context is {window} tokens, within which both are the same"
    ]


_BASE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ROPE: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
"""Kinds of rotary embedding, with the settings that are written."""


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", **(config.rope_parameters or {})}


def _window(config: Any) -> int | None:
    """The attention's window; None where every token sees all before it."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return window if isinstance(window, int) and getattr(config, "use_sliding_window", True) else None


# --- weights


def _tensors(folder: Path, architecture: str, config: Any, where: str) -> list[_Tensor]:
    """The tensors to write, without any of their values.

    Raises:
        DataError: there are no safetensors, or a tensor is none of the architecture's.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors import safe_open

    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    found = []
    for file in _weight_files(folder, where):
        with safe_open(file, framework="pt") as handle:
            for source in sorted(handle.keys()):
                if source.endswith(_NOT_WRITTEN) or (source == "lm_head.weight" and config.tie_word_embeddings):
                    continue
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    what = f"llama.cpp's {architecture} has no tensor for {source}"
                    raise DataError(what, where=where, fix="use convert_hf_to_gguf.py of llama.cpp")
                part = handle.get_slice(source)
                if part.get_dtype() not in PRECISIONS:
                    what = f"{source} is stored as {part.get_dtype()}, not as {', '.join(PRECISIONS)}"
                    raise DataError(what, where=where, fix="save the model in one of them")
                found.append(_Tensor(source, name, file, part.get_shape(), part.get_dtype()))
    return found


def _weight_files(folder: Path, where: str) -> list[Path]:
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    index = ModelFiles(str(folder), None).read(INDEX)
    files = [folder / str(name) for name in sorted(set(index.get("weight_map", {}).values()))]
    missing = [file.name for file in files if not file.is_file()]
    if not files or missing:
        what = f"the weights {missing[0]} are missing" if missing else "there are no weights in safetensors"
        raise DataError(what, where=where, fix="download or save the model again")
    return files


PRECISIONS = ("BF16", "F16", "F32")
"""The precisions that are kept, which safetensors and GGUF call by the same names."""


def _values(tensors: list[_Tensor], architecture: str, config: Any) -> Iterator[torch.Tensor]:
    """The values of the tensors, one at a time, as llama.cpp has them."""
    from safetensors import safe_open

    for tensor in tensors:
        with safe_open(tensor.file, framework="pt") as handle:
            values: torch.Tensor = handle.get_tensor(tensor.source)
        if architecture == "llama" and ".q_proj." in tensor.source:
            values = _interleaved(values, config.num_attention_heads)
        elif architecture == "llama" and ".k_proj." in tensor.source:
            values = _interleaved(values, config.num_key_value_heads)
        yield values.float() if len(tensor.shape) == 1 else values  # vectors are in float32 in every GGUF


def _interleaved(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection in llama.cpp's order: it rotates neighbours, transformers the two halves of a head."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape).contiguous()


# --- the file


def _write(
    out: Path,
    architecture: str,
    name: str,
    config: Any,
    tensors: list[_Tensor],
    vocabulary: Vocabulary,
    notices: list[str],
) -> Exported:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter

    window = _window(config)
    context = config.max_position_embeddings if window is None else min(window, config.max_position_embeddings)
    writer = GGUFWriter(None, architecture)
    _describe(writer, name, config, context, tensors)
    vocabulary.write(writer)
    factors = _frequency_factors(config)
    if factors:
        writer.add_tensor_info("rope_freqs.weight", [len(factors)], np.dtype(np.float32), 4 * len(factors))
    for tensor in tensors:
        kind = GGMLQuantizationType.F32 if len(tensor.shape) == 1 else GGMLQuantizationType[tensor.dtype]
        size = math.prod(tensor.shape) * (4 if kind == GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    with atomic.replacing(out) as temporary:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors:
                writer.write_tensor_data(np.array(factors, dtype=np.float32))
            for values in _values(tensors, architecture, config):
                writer.write_tensor_data(values.contiguous().view(torch.uint8).numpy())
        finally:
            writer.close()
        with temporary.open("rb") as handle:
            atomic.fsync(handle.fileno())
    return Exported(out, len(tensors) + bool(factors), out.stat().st_size, context, notices)


def _describe(writer: GGUFWriter, name: str, config: Any, context: int, tensors: list[_Tensor]) -> None:
    """Write the model's shape."""
    from gguf import LlamaFileType, RopeScalingType

    rope = _rope(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = {tensor.dtype for tensor in tensors if len(tensor.shape) > 1}
    file_type = {
        "BF16": LlamaFileType.MOSTLY_BF16,
        "F16": LlamaFileType.MOSTLY_F16,
        "F32": LlamaFileType.ALL_F32,
    }[next(kind for kind in PRECISIONS if kind in kinds)]
    writer.add_name(name)
    writer.add_file_type(int(file_type))
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        with suppress(KeyError):
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _frequency_factors(config: Any) -> list[float]:
    """What llama.cpp divides the frequencies of a `llama3` rotary embedding by; empty for every other kind."""
    rope: Mapping[str, Any] = _rope(config)
    if rope["rope_type"] != "llama3":
        return []
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, head, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(float(factor))
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
