"""Packages and files of this machine that a recipe's settings need, looked for without importing any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import AccelerateExecutor, ForkExecutor, LmEval, LocalExecutor, Recipe

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

INSTALL_DEEPSPEED = "pip install 'spa-recipes[deepspeed]', or let FSDP2 do it: compute.executor.sharding: fsdp2"


def missing_packages(recipe: AnyRecipe) -> Iterator[RecipeError]:
    """What is not here: trackers, packages of adapters, of 4 bits and of ZeRO, accelerate's configuration."""
    for tracker in recipe.tracking.report_to:
        names = ("tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,)
        if not any(map(is_installed, names)):
            yield RecipeError(
                f"{tracker} is not installed here",
                where="tracking.report_to",
                fix=f"pip install {tracker}, or leave it out",
            )
    lora = recipe.model.lora
    if lora is not None and not is_installed("peft"):
        yield RecipeError(
            "adapters need peft, which is not installed here",
            where="model.lora",
            fix="pip install 'spa-recipes[lora]', or set it to null",
        )
    if lora is not None and lora.load_in_4bit and not is_installed("bitsandbytes"):
        yield RecipeError(
            "weights in 4 bits (QLoRA) need bitsandbytes, which is not installed here",
            where="model.lora.load_in_4bit",
            fix="pip install 'spa-recipes[qlora]', or set it to false",
        )
    for key, _ in _lm_evals(recipe):
        if not is_installed("lm_eval"):
            yield RecipeError(
                "the package lm-eval is not installed here",
                where=f"{key}.type",
                fix="pip install 'spa-recipes[lm_eval]', or leave this benchmark out",
            )
    executor = recipe.compute.executor
    sharding = "none" if isinstance(executor, LocalExecutor | ForkExecutor) else executor.sharding
    if sharding in ("zero2", "zero3") and not is_installed("deepspeed"):
        yield RecipeError(
            f"{sharding} needs DeepSpeed, which is not installed here",
            where="compute.executor.sharding",
            fix=INSTALL_DEEPSPEED,
        )
    config = executor.config_file if isinstance(executor, AccelerateExecutor) else None
    if config is not None and not Path(config).is_file():
        yield RecipeError(
            f"no file {config}",
            where="compute.executor.config_file",
            fix="check the path, or write one with `accelerate config --config_file FILE`",
        )


def missing_tasks(recipe: AnyRecipe) -> Iterator[DataError]:
    """Tasks of lm-eval that are in no file, and files of tasks that are broken; looking for them takes a while."""
    for key, benchmark in _lm_evals(recipe):
        from spa_recipes.benchmarks.lm_eval import check_tasks

        try:
            check_tasks(benchmark, key)
        except DataError as error:
            yield error


def _lm_evals(recipe: AnyRecipe) -> list[tuple[str, LmEval]]:
    """The benchmarks of a recipe or job that are tasks of lm-eval, each with its key."""
    if isinstance(recipe, Recipe):
        found = {f"evaluation.benchmarks.{i}": each for i, each in enumerate(recipe.evaluation.benchmarks)}
    else:
        found = {"benchmark": recipe.benchmark} if hasattr(recipe, "benchmark") else {}
    return [(key, each) for key, each in found.items() if isinstance(each, LmEval)]


def is_installed(name: str) -> bool:
    """Whether a package is here, without importing it."""
    from importlib.metadata import PackageNotFoundError, distribution  # slow, and most recipes need none of these

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
