"""The precision that `model.dtype` names, for all that load, save or estimate weights. Imports nothing heavy."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of a GPU's driver: NVIDIA's, NVIDIA's in a container, WSL2's, AMD's."""
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


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
    return 4 if resolved_dtype(name, has_bfloat16=bool(gpu_drivers()) and not hides_gpus()) == "float32" else 2


def gpu_drivers() -> list[str]:
    """Files that are there where a driver for GPUs is."""
    return [path for path in _DRIVERS if Path(path).exists()]


def hides_gpus() -> bool:
    """Whether the user hides all GPUs from programs."""
    chosen = [os.environ.get(name) for name in _HIDING]
    return any(value is not None and value.split(",")[0].strip() in ("", "-1") for value in chosen)


def in_float64(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor in float64, on its device where that has it; a Mac's GPU does not."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
