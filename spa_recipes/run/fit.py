"""Whether the stages of a plan fit the machine, found out before any of them starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.errors import RecipeError
from spa_recipes.estimates import Hardware, Memory, needs, processes_of, stated_hardware
from spa_recipes.models.dtype import hides_gpus
from spa_recipes.plan import KINDS, Plan, Stage
from spa_recipes.recipe.schema import (
    AccelerateExecutor,
    ForkExecutor,
    RayExecutor,
    Sampling,
    SlurmExecutor,
    VllmBackend,
)
from spa_recipes.run.devices import accelerators, check_supported
from spa_recipes.run.launch_preflight import asked_sharding
from spa_recipes.units import human_bytes

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

_ATTENTION = {"flash_attention_2": ("flash_attn",), "flash_attention_3": ("flash_attn_3", "flash_attn_interface")}
"""Packages, each of which has a kind of attention."""
MEMORY_OF_LINUX = Path("/proc/meminfo")
MEMORY_OF_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def hardware_here() -> Hardware | None:
    """The GPUs of this machine; None without any."""
    gpus = accelerators().gpus
    return Hardware(len(gpus), min(gpu.memory for gpu in gpus), gpus[0].model) if gpus else None


def hardware_for(recipe: AnyRecipe) -> Hardware | None:
    """The GPUs that estimates are for: those here, else those that the recipe says it was written for."""
    return hardware_here() or stated_hardware(getattr(recipe, "hardware", ""))


def hardware_of_work(recipe: AnyRecipe) -> Hardware | None:
    """The GPUs that the stages of a recipe will work on, as far as they are known; None of the CPU."""
    executor = recipe.compute.executor
    if isinstance(executor, SlurmExecutor | RayExecutor):  # the nodes are not this machine
        return hardware_for(recipe) if executor.gpus_per_node else None
    return None if isinstance(executor, ForkExecutor) else hardware_here()


def host_bytes() -> int | None:
    """Memory of this machine, or of the container that this process is in; None where the system does not say."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        (total,) = (line for line in MEMORY_OF_LINUX.read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(int(total.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # "max" is no limit
        found.append(int(MEMORY_OF_CONTAINER.read_text()))
    return min(found, default=None)


def check_fit(stages: Sequence[Stage], plan: Plan) -> None:
    """Refuse a plan whose stages this machine cannot hold, however short the rows are.

    Args:
        stages: those that are to run.

    Raises:
        RecipeError: an accelerator is not supported; there are fewer GPUs than processes, or none to share a training
            out over; attention's package is missing; a stage does not fit.
    """
    recipe = plan.recipe
    working = [stage for stage in stages if KINDS[stage.kind].loads_model]
    executor = recipe.compute.executor
    if not working:
        return
    hardware, host = hardware_of_work(recipe), host_bytes()
    if isinstance(executor, SlurmExecutor | RayExecutor):
        if hardware is None:
            return
        host = None  # that of the nodes is not known
    elif not isinstance(executor, ForkExecutor):
        check_supported()
        _check_mac(recipe)
    if isinstance(executor, AccelerateExecutor) and hardware is not None and executor.num_processes > hardware.gpus:
        raise RecipeError(
            f"asks for {executor.num_processes} processes, one for each GPU, and there are {hardware.gpus} GPUs",
            where="compute.executor.num_processes",
            fix=f"set it to {hardware.gpus} or less",
        )
    if problem := not_shared_out(working, recipe, hardware):
        raise problem
    _check_attention(recipe, hardware)
    for stage in working:
        if problem := misfit(stage, plan, hardware, host):
            raise problem


def not_shared_out(stages: Sequence[Stage], recipe: AnyRecipe, hardware: Hardware | None) -> RecipeError | None:
    """Why trainings cannot be shared out as the recipe says: accelerate does so on GPUs only; None if they can be."""
    executor = recipe.compute.executor
    trains = any("train" in KINDS[stage.kind].work for stage in stages)
    if hardware is not None or not trains or not isinstance(executor, AccelerateExecutor):
        return None
    asked = asked_sharding(executor)
    if asked is None:
        return None
    key = "sharding" if executor.config_file is None else "config_file"
    return RecipeError(
        f"{asked} shares a training out over GPUs, and there is none here",
        where=f"compute.executor.{key}",
        fix=f"{'set it to none' if key == 'sharding' else 'remove it'} to train on the CPU, or use a machine with GPUs",
    )


def misfit(stage: Stage, plan: Plan, hardware: Hardware | None, host: int | None) -> RecipeError | None:
    """Why a stage does not fit, however short its rows are; None if it does, or where nothing is known.

    Args:
        hardware: GPUs; None: it works on the CPU.
        host: bytes of the machine's own memory; None where they are not known.
    """
    need, processes = needs(stage, plan, hardware), processes_of(plan.recipe)
    if need.memory is not None:
        least = (processes if hardware is None else 1) * need.memory.least.total
        room = host if hardware is None else int(hardware.memory * _usable(stage))
        if room is not None and least > room:
            where, whose = ("", "this machine") if hardware is None else (" on each GPU", hardware.model or "each")
            return RecipeError(
                f"does not fit: {human_bytes(least)}{where} before any activation ({in_words(need.memory.least)}), and "
                f"{whose} has {human_bytes(room)}",
                where=stage.id,
                fix=_remedy(stage, plan.recipe, hardware),
            )
    if need.host is not None and host is not None and need.host > host:
        return RecipeError(
            f"does not fit: {human_bytes(need.host)} of the machine's own memory to load and save weights, and there "
            f"are {human_bytes(host)}",
            where=stage.id,
            fix="use fewer processes, model.lora, or a machine with more memory",
        )
    return None


def is_tight(stage: Stage, plan: Plan, hardware: Hardware | None) -> bool:
    """Whether a stage may lack memory where its rows are as long as they may be."""
    memory = needs(stage, plan, hardware).memory
    return hardware is not None and memory is not None and memory.total > hardware.memory * _usable(stage)


def in_words(memory: Memory) -> str:
    """The parts of an estimate, the largest first: `29.0 GB optimizer, 14.5 GB weights`."""
    parts = sorted(memory._asdict().items(), key=lambda part: -part[1])
    return ", ".join(f"{human_bytes(size)} {name}" for name, size in parts if size)


def _usable(stage: Stage) -> float:
    """Share of a GPU's memory that a stage may use."""
    sampling = stage.settings.get("sampling")
    if isinstance(sampling, Sampling) and isinstance(sampling.backend, VllmBackend):
        return sampling.backend.gpu_memory_utilization
    return 1.0


def _remedy(stage: Stage, recipe: AnyRecipe, hardware: Hardware | None) -> str:
    """What to set so that less is held."""
    lora = recipe.model.lora
    more = "use a device with more memory"
    if "train" in KINDS[stage.kind].work:
        if lora is not None:
            return more if lora.load_in_4bit else f"set model.lora.load_in_4bit: true, or {more}"
        if hardware is not None and hardware.gpus > processes_of(recipe):
            return (
                f"set compute.executor to {{type: accelerate, num_processes: {hardware.gpus}}}, which shares it out, "
                "or model.lora: {}"
            )
        return f"set model.lora: {{}} to train adapters, or {more}"
    if _usable(stage) < 1.0:
        return f"set sampling.backend.tensor_parallel_size higher, or {more}"
    if "method" in stage.settings:
        return f"set judge.method: difference, which has one model in memory at a time, or {more}"
    if "sampling" in stage.settings:
        return f"set sampling.backend.batch_size lower, or {more}"
    return more


def _check_mac(recipe: AnyRecipe) -> None:
    """Refuse half precision on a Mac's GPU, which has no float64 for the log-ratios of it."""
    found = accelerators()
    if found.mps and not found.gpus and not hides_gpus() and recipe.model.dtype not in ("auto", "float32"):
        raise RecipeError(
            f"{recipe.model.dtype} is not supported on a Mac's GPU",
            where="model.dtype",
            fix="set it to float32, or set CUDA_VISIBLE_DEVICES=-1 to use the CPU",
        )


def _check_attention(recipe: AnyRecipe, hardware: Hardware | None) -> None:
    """Refuse a kind of attention whose package, or GPU, is not here."""
    wanted = recipe.model.attn_implementation
    packages = _ATTENTION.get(wanted or "", ())
    if packages and (hardware is None or all(importlib.util.find_spec(name) is None for name in packages)):
        lacks = (
            "needs a GPU, and there is none" if hardware is None else f"is not installed (pip install {packages[0]})"
        )
        raise RecipeError(
            f"{wanted} {lacks}", where="model.attn_implementation", fix="or remove it: sdpa is the default"
        )
