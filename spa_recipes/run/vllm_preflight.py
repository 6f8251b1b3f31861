"""Whether the stages that sample with vLLM can start here, found out in seconds and without importing it."""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from spa_recipes.errors import RecipeError
from spa_recipes.plan import Stage
from spa_recipes.recipe.schema import Compute, RayExecutor, SlurmExecutor
from spa_recipes.run.devices import visible_gpus
from spa_recipes.run.executors import vllm_processes_of
from spa_recipes.run.processes import process_environment

_LOOK = """
import importlib.metadata as metadata, importlib.util as util, json
try:
    spa = metadata.version("spa-recipes")
except metadata.PackageNotFoundError:
    spa = None
print(json.dumps({"vllm": util.find_spec("vllm") is not None, "spa": spa}))
"""
_NAME_ONE = "name the `python` of the environment that has vLLM"
_PATIENCE_SECONDS = 60


class SettingNames(NamedTuple):
    """What the user calls the settings that this is about."""

    backend: str
    vllm: str
    transformers: str
    python: str


IN_A_RECIPE = SettingNames(
    "sampling.backend", "sampling.backend.type vllm", "set sampling.backend.type to transformers", "compute.vllm_python"
)
IN_A_JOB = SettingNames("backend", "backend.type vllm", "set backend.type to transformers", "compute.vllm_python")


def check_vllm(stages: Sequence[Stage], compute: Compute, names: SettingNames = IN_A_RECIPE) -> None:
    """Look for vLLM in the environment that these stages would start it in, and for the GPUs that it would need.

    Args:
        stages: those that are to run.
        compute: says which environment.
        names: of the settings, for what is said about them.

    Raises:
        RecipeError: there is no vLLM, another version of this package beside it, or there are too few GPUs.
    """
    needed = [vllm for stage in stages if (vllm := vllm_processes_of(stage, compute)) is not None]
    if not needed:
        return
    if isinstance(compute.executor, RayExecutor):
        pass  # it is looked for on the nodes, where alone it has to be
    elif compute.vllm_python is None:
        if importlib.util.find_spec("vllm") is None:
            raise RecipeError(
                "vLLM is not installed here",
                where=names.vllm,
                fix=f"pip install 'spa-recipes[vllm]', or name the Python that has it in {names.python}, or "
                f"{names.transformers}",
            )
    else:
        _check_python(compute.vllm_python, names.python)
    if isinstance(compute.executor, SlurmExecutor | RayExecutor):
        gpus = compute.executor.nodes * compute.executor.gpus_per_node
    else:
        gpus = len(visible_gpus())
    wanted = max(vllm.copies * vllm.gpus_each for vllm in needed)
    if gpus and wanted > gpus:
        raise RecipeError(
            f"tensor_parallel_size x data_parallel_size asks for {wanted} GPUs and there are {gpus}",
            where=names.backend,
            fix="set one of them lower",
        )


def _check_python(python: str, key: str) -> None:
    if shutil.which(python) is None:
        raise RecipeError(f"no such program: {python}", where=key, fix=_NAME_ONE)
    try:
        answer = subprocess.run(
            [python, "-c", _LOOK],
            env=process_environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RecipeError(
            f"{python} does not run as a Python ({type(error).__name__})", where=key, fix=_NAME_ONE
        ) from error
    if not found["vllm"]:
        raise RecipeError(f"vLLM is not installed for {python}", where=key, fix=f"{python} -m pip install vllm")
    if found["spa"] != version("spa-recipes"):
        raise RecipeError(
            f"spa-recipes {found['spa'] or 'is not installed'} for {python}, and {version('spa-recipes')} here",
            where=key,
            fix="install this version there, too",
        )
