"""The precision that `model.dtype` names, for all that load, save or estimate weights. Imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GPU_DRIVER = Path("/proc/driver/nvidia/version")


def resolved_dtype(name: str, *, has_bfloat16: bool) -> str:
    """The name of the precision; `auto` is bfloat16 where the device has it, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if has_bfloat16 else "float32"


def torch_dtype(name: str) -> "torch.dtype":
    """The precision on this process's device."""
    import torch

    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    dtype: torch.dtype = getattr(torch, resolved_dtype(name, has_bfloat16=has_bfloat16))
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """The name of a precision, as `model.dtype` and a model's configuration have it."""
    return str(dtype).removeprefix("torch.")


def weight_bytes(name: str) -> int:
    """Bytes per weight; an estimate for `auto`, which takes a GPU driver as a sign of bfloat16."""
    return 4 if resolved_dtype(name, has_bfloat16=_GPU_DRIVER.exists()) == "float32" else 2
