"""What the launcher of several processes needs, looked at before a stage is started with it.

What accelerate's own configuration (`compute.executor.config_file`) says of gradients, processes or precision is also
said by the recipe: two different answers would train something else than the recipe says, or end in an error of a
library hours later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from spa_recipes.errors import RecipeError
from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import AccelerateExecutor
from spa_recipes.run.packages import INSTALL_DEEPSPEED, is_installed
from spa_recipes.state.reading import read_text

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

KEY = "compute.executor.config_file"
_MAX_BYTES = 1024 * 1024
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""What accelerate calls the precisions of `model.dtype`."""


class _Problem(NamedTuple):
    key: str
    what: str
    fix: str


def check_launch(stages: Sequence[Stage], recipe: AnyRecipe) -> None:
    """Refuse a configuration that cannot be read, or contradicts the recipe.

    Args:
        stages: those that are to run.

    Raises:
        RecipeError: says which key, and what to set.
    """
    executor = recipe.compute.executor
    if not isinstance(executor, AccelerateExecutor) or not any(KINDS[stage.kind].loads_model for stage in stages):
        return
    trainings = [stage for stage in stages if "train" in KINDS[stage.kind].work]
    if executor.config_file is None:
        return
    path = Path(executor.config_file)
    content = _read(path, KEY)
    for problem in _problems(content, path, executor, trainings, recipe):
        raise RecipeError(f"{problem.key}: {problem.what}", where=f"{KEY} ({path})", fix=problem.fix)


def asked_sharding(executor: AccelerateExecutor) -> str | None:
    """By which way a recipe, or the configuration that it names, shares a training out; None where by none.

    Raises:
        RecipeError: the configuration cannot be read.
    """
    if executor.config_file is None:
        return None if executor.sharding in ("auto", "none") else executor.sharding
    kind = str(_read(Path(executor.config_file), KEY).get("distributed_type", "")).upper()
    return {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}.get(kind)


def _read(path: Path, key: str) -> Mapping[str, Any]:
    """A mapping in YAML or JSON."""
    try:
        content = yaml.safe_load(read_text(path, limit=_MAX_BYTES))
    except FileNotFoundError:
        raise RecipeError("there is no such file", where=f"{key} ({path})", fix="check the path") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(f"cannot be read: {reason}", where=f"{key} ({path})", fix="write it anew") from error
    if not isinstance(content, Mapping):
        raise RecipeError(
            "holds no settings", where=f"{key} ({path})", fix="`accelerate config --config_file FILE` writes them"
        )
    return content


def _problems(
    content: Mapping[str, Any],
    path: Path,
    executor: AccelerateExecutor,
    trainings: Sequence[Stage],
    recipe: AnyRecipe,
) -> Iterator[_Problem]:
    processes, precision = content.get("num_processes"), content.get("mixed_precision")
    if processes not in (None, -1, executor.num_processes):
        yield _Problem(
            "num_processes",
            f"is {processes}, and compute.executor.num_processes is {executor.num_processes}",
            "make them equal",
        )
    if content.get("num_machines") not in (None, 1):
        yield _Problem(
            "num_machines",
            f"is {content['num_machines']}, and nothing would be started on the other machines",
            "set it to 1, or replace it by compute.executor.type: slurm or ray, which start processes on all nodes",
        )
    wanted = _PRECISIONS.get(recipe.model.dtype)
    if wanted is not None and precision not in (None, "no", False, wanted):
        yield _Problem(
            "mixed_precision", f"is {precision}, and model.dtype is {recipe.model.dtype}", f"set it to '{wanted}'"
        )
    kind = str(content.get("distributed_type", "")).upper()
    if kind == "FSDP":
        yield from _of_fsdp(_section(content, "fsdp_config"), trainings, recipe)
    if kind == "DEEPSPEED":
        if not is_installed("deepspeed"):
            yield _Problem("distributed_type", f"is {kind}, and DeepSpeed is not installed here", INSTALL_DEEPSPEED)
        deepspeed = _section(content, "deepspeed_config")
        yield from _of_deepspeed(deepspeed, "deepspeed_config", executor, trainings)
        if (own := deepspeed.get("deepspeed_config_file")) is not None:
            yield from _of_deepspeed(
                _read(Path(str(own)), f"{KEY}: deepspeed_config_file"), str(own), executor, trainings
            )


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}


def _of_fsdp(fsdp: Mapping[str, Any], trainings: Sequence[Stage], recipe: AnyRecipe) -> Iterator[_Problem]:
    if str(fsdp.get("fsdp_version", 1)) != "2":
        yield _Problem(
            "fsdp_config.fsdp_version",
            f"is {fsdp.get('fsdp_version', '1, the default')}: FSDP1 is not supported",
            f"set it to 2, or replace {KEY} by compute.executor.sharding: fsdp2",
        )
    loads_once = str(fsdp.get("fsdp_cpu_ram_efficient_loading", True)).lower() in ("true", "1", "yes")
    if loads_once and any(_loads_reference(stage, recipe) for stage in trainings):
        yield _Problem(
            "fsdp_config.fsdp_cpu_ram_efficient_loading",
            "is true, and only the first process would load the reference of the refinement",
            f"set it to false, or replace {KEY} by compute.executor.sharding: fsdp2",
        )


def _loads_reference(stage: Stage, recipe: AnyRecipe) -> bool:
    """Whether a model is in memory beside the policy while a stage trains."""
    return "p_detect" in stage.settings or (recipe.model.lora is None and bool(stage.settings.get("lambda")))


def _of_deepspeed(
    deepspeed: Mapping[str, Any], place: str, executor: AccelerateExecutor, trainings: Sequence[Stage]
) -> Iterator[_Problem]:
    said = deepspeed.get("gradient_accumulation_steps")
    if said in (None, "auto"):
        return
    for stage in trainings:
        training = stage.settings["training"]
        wanted = training.global_batch_size // (training.per_device_train_batch_size * executor.num_processes)
        if said != wanted:
            yield _Problem(
                f"{place}.gradient_accumulation_steps" if place == "deepspeed_config" else place,
                f"gradient_accumulation_steps is {said}, and the batches of {stage.id} need {wanted}",
                "set it to auto",
            )
