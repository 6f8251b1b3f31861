"""The accelerators that a process started here would use, found without importing torch into this one.

torch alone knows them: drivers leave different signs in containers, in WSL2 and with ROCm, and a GPU may be divided
(MIG) or hidden. So where there is any sign of one, torch is asked in a process that ends at once.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from spa_recipes.errors import RecipeError
from spa_recipes.models.dtype import gpu_drivers, hides_gpus

ASCEND = "/dev/davinci_manager"
_PATIENCE_SECONDS = 120
_ASK = """
import json, torch
found = {"hip": torch.version.hip is not None, "gpus": [], "mps": torch.backends.mps.is_available()}
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bfloat16 = torch.cuda.is_bf16_supported()
        found["gpus"].append([facts.name, facts.total_memory, bfloat16])
print(json.dumps(found))
"""


class Device(NamedTuple):
    """A GPU, or a part of one.

    Attributes:
        name: as `CUDA_VISIBLE_DEVICES` spells it: a number, or the UUID of a GPU or of a part of one.
        model: what its maker calls it.
        memory: bytes.
        bfloat16: whether it computes in bfloat16.
    """

    name: str
    model: str
    memory: int
    bfloat16: bool


class Accelerators(NamedTuple):
    """What torch can use here besides the CPU.

    Attributes:
        gpus: those that are not hidden, in their order.
        variable: of the environment that hides GPUs.
        mps: whether this is a Mac whose GPU torch can use.
    """

    gpus: tuple[Device, ...] = ()
    variable: str = "CUDA_VISIBLE_DEVICES"
    mps: bool = False


@cache
def accelerators() -> Accelerators:
    """Look for GPUs; nothing is started where there is no sign of one.

    Raises:
        RecipeError: torch cannot be asked.
    """
    if not gpu_drivers() and sys.platform != "darwin":
        return Accelerators()
    from spa_recipes.run.processes import process_environment  # most machines that plan have no GPU to ask about

    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK],
            env=process_environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
        found = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        raise RecipeError(
            f"torch does not say which GPUs there are ({said[-1] if said else type(error).__name__})",
            fix="look what `python -c 'import torch'` says; CUDA_VISIBLE_DEVICES=-1 uses the CPU",
        ) from error
    amd = found["hip"] and "HIP_VISIBLE_DEVICES" in os.environ
    variable = "HIP_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES"
    names = _names(os.environ.get(variable), len(found["gpus"]))
    gpus = tuple(Device(name, *facts) for name, facts in zip(names, found["gpus"], strict=True))
    return Accelerators(gpus, variable, found["mps"])


def visible_gpus() -> list[str]:
    """Names of the GPUs that a process started here would see, as `CUDA_VISIBLE_DEVICES` spells them."""
    return [gpu.name for gpu in accelerators().gpus]


def only(names: list[str]) -> dict[str, str]:
    """Environment of a process that sees these GPUs alone."""
    return {accelerators().variable: ",".join(names)}


def check_supported() -> None:
    """Refuse a machine whose accelerator would be left idle without a word, while the CPU did its work.

    Raises:
        RecipeError: says how to use it, or the CPU.
    """
    build = _torch_build()
    if "xpu" in build:
        raise RecipeError(
            f"this torch ({build}) is for Intel's GPUs (XPU), which are not supported",
            fix="install torch for CUDA, ROCm or the CPU",
        )
    if Path(ASCEND).exists() and importlib.util.find_spec("torch_npu") is not None:
        raise RecipeError("Ascend NPUs are not supported", fix="uninstall torch_npu to use the CPU, or take a GPU")
    if gpu_drivers() and not accelerators().gpus and not hides_gpus():
        raise RecipeError(
            f"there is a GPU's driver ({gpu_drivers()[0]}), but this torch ({build}) sees no GPU",
            fix="install torch for this driver, or set CUDA_VISIBLE_DEVICES=-1 to use the CPU",
        )


def _names(chosen: str | None, count: int) -> list[str]:
    """What the first `count` GPUs are called, where a variable chooses some."""
    listed = [] if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    return listed[:count] if len(listed) >= count else [str(index) for index in range(count)]


def _torch_build() -> str:
    from importlib.metadata import PackageNotFoundError, version  # which takes long to import

    try:
        return version("torch")
    except PackageNotFoundError:
        return "not installed"
