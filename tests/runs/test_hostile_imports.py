"""Files beside a recipe that have the names of modules are not executed by any stage, and do not break a run.

Code that the user asked for still runs: that of a model with `trust_remote_code`, and what PYTHONPATH names.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.recipes import mini, write_recipe

BESIDE = ("random", "yaml", "wandb", "json", "torch", "transformers", "spa_recipes", "sitecustomize")
OWN = """
import os, pathlib
from transformers import LlamaForCausalLM

class OwnModel(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        pathlib.Path(os.environ["TRACES"], "trusted").touch()
"""
ASKED = """
import os, pathlib, sys
if any(argument.startswith("spa_recipes.run.") for argument in sys.orig_argv):
    pathlib.Path(os.environ["TRACES"], "asked").touch()
"""
EXECUTORS: dict[str, dict[str, Any]] = {
    "fork": {"type": "fork"},
    "local": {"type": "local"},
    "accelerate": {"type": "accelerate", "num_processes": 2},
}


@pytest.mark.parametrize(
    "executor", [pytest.param(name, marks=[] if name == "fork" else [pytest.mark.slow]) for name in EXECUTORS]
)
def test_modules_beside_the_recipe_are_not_imported(executor: str, policy: Path, tmp_path: Path) -> None:
    here, traces, lib, model = (tmp_path / name for name in ("here", "traces", "lib", "model"))
    for folder in (here, traces, lib):
        folder.mkdir()
    for name in BESIDE:
        (here / f"{name}.py").write_text(f"open({str(traces / name)!r}, 'w')\nraise SystemExit(9)\n")
    (lib / "sitecustomize.py").write_text(ASKED)
    shutil.copytree(policy, model)
    (model / "modeling_own.py").write_text(OWN)
    config = json.loads((model / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    (model / "config.json").write_text(json.dumps({**config, **own}))
    recipe = mini(sft=None, evaluation={"reward": "none"}, compute={"executor": EXECUTORS[executor]})
    recipe["model"] |= {"model_name_or_path": str(model), "trust_remote_code": True, "dtype": "float32"}
    recipe["data"] |= {"seed_labels": 16}
    for training in ("seed_training", "refine"):
        recipe[training] |= {"per_device_train_batch_size": 8}
    write_recipe(here / "r.yaml", recipe)
    variables = {
        "PYTHONPATH": os.pathsep.join([str(lib), str(Path(__file__).parents[2])]),
        "TRACES": str(traces),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    # As the script `spa` starts: without the current folder on its path.
    command = [sys.executable, "-P", "-m", "spa_recipes.cli", "run", "r.yaml", "--trust", "--until", "seed"]
    done = subprocess.run(command, cwd=here, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert sorted(trace.name for trace in traces.iterdir()) == ["asked", "trusted"]
