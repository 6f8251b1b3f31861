"""Trainings in several processes that are forks of one, which has imported the libraries.

    python -m tests.kit.together JOB.json

A job names how many processes train together, how, and which cells. A cell is a kind of training with options:
`refine+lora+bf16`. One after the other leaves its model, trace and checkpoints in a folder of its name, and its result,
or error, in `result-<rank>.json` there.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj", "up_proj"]}
KILLED = 9


def train_together(
    folder: Path,
    policy: Path,
    cells: Sequence[str],
    sharding: str = "none",
    processes: int = 2,
    kill_at: int | None = None,
) -> int:
    """Do the cells in `folder`; returns the exit code.

    Args:
        kill_at: optimizer step after which the first process dies without a word, and the others with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "folder": str(folder),
                "policy": str(policy),
                "cells": list(cells),
                "sharding": sharding,
                "processes": processes,
                "kill_at": kill_at,
            }
        )
    )
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(ROOT / "tests" / "kit" / "cpu_shards"), str(ROOT), *filter(None, before)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.run(
            [sys.executable, "-m", "tests.kit.together", str(job)],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=900,
        ).returncode  # fmt: skip


def results(folder: Path, cell: str, processes: int = 2) -> list[dict[str, Any]]:
    """What each process left of a cell."""
    return [json.loads((folder / cell / f"result-{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Fork the processes; when one fails, end the others, as torch's launcher does."""
    job = json.loads(Path(sys.argv[1]).read_text())
    import spa_recipes.training.reward
    import spa_recipes.training.run  # noqa: F401

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    children = [os.fork() or _be(rank, port, job) for rank in range(job["processes"])]
    code = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        code = code or os.waitstatus_to_exitcode(status)
        if code:
            for other in children:
                os.kill(other, 9)
    sys.exit(code)


def _be(rank: int, port: int, job: Mapping[str, Any]) -> int:
    """Be a process of the job; never returns."""
    code = 1
    try:
        count = str(job["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for cell in job["cells"]:
            _do(cell, rank, job)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _do(cell: str, rank: int, job: Mapping[str, Any]) -> None:
    """Train a cell, and write down what came of it."""
    from spa_recipes.errors import SpaError
    from spa_recipes.training.sharding import in_use

    folder = Path(job["folder"]) / cell
    folder.mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int, logs: dict[str, Any]) -> None:
        if done == job["kill_at"]:
            os._exit(KILLED)

    counts = _count_whole_layers() if "counted" in cell else {}
    try:
        result = _trained(cell, Path(job["policy"]), folder, job["sharding"], progress)
        left = {"metrics": result.metrics, "history": result.history, "along": result.detects_along_update}
        left["most_whole_layers"] = {name: max(of_model) for name, of_model in counts.items()}
    except SpaError as error:
        left = {"error": error.what, "where": error.where, "fix": error.fix}
    (folder / f"result-{rank}.json").write_text(json.dumps({**left, "sharding": in_use()}))
    if "error" in left and job["processes"] > 1:
        import torch.distributed

        torch.distributed.barrier()  # a process that goes on alone would meet the others in the middle of a cell


def _trained(cell: str, policy: Path, folder: Path, sharding: Any, progress: Any) -> Any:
    import torch

    from spa_recipes.recipe.schema import Model
    from spa_recipes.training.run import Start, train_preference, train_sft
    from tests.kit import training as kit

    kind, *options = cell.split("+")
    fields: dict[str, Any] = {"dtype": "bfloat16"} if "bf16" in options else {}
    if "lora" in options or "qlora" in options:
        fields["lora"] = {**LORA, "load_in_4bit": "qlora" in options}
    env = replace(
        kit.make_env(policy, folder, progress, **fields),
        sharding=sharding,
        adapter_dir=None if kind == "reward" else folder / "adapter",
        base=Model(model_name_or_path=str(policy), **fields) if "qlora" in options else None,
        on_notice=lambda text: print("notice:", text, flush=True),
    )
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2, "num_train_epochs": 2, "save_steps": 2, "logging_steps": 1,
        "gradient_checkpointing": "ckpt" in options,
    }  # fmt: skip
    torch.manual_seed(0)  # adapters are drawn
    if kind == "sft":
        return train_sft(policy, kit.make_texts(21), kit.supervised(**settings), env)
    if kind == "reward":
        return kit.train_rewards(policy, kit.make_pairs(21, reference=False), env, **settings)
    if "zeros" in options:
        _give_zeros_as_reference()
    if "nan" in options:
        _lose_the_loss(after=3)
    lam = 0.5 if kind == "refine" else 0.0
    live = kind == "refine" or "qlora" in options
    return train_preference(
        policy,
        kit.make_pairs(21, reference=not live),
        kit.preference(**settings),
        env,
        reference_path=None if "qlora" in options else policy,
        refinement=None if kind == "dpo" else replace(kit.REFINEMENT, lam=lam),
        start=Start() if live else None,  # the log-probs in the rows are invented
    )


def _lose_the_loss(after: int) -> None:
    """The loss is NaN in the step that follows so many."""
    from spa_recipes.training.preference import SpaTrainer

    plain = SpaTrainer._loss

    def lost(trainer: Any, *args: Any) -> Any:
        return plain(trainer, *args) * (float("nan") if trainer.state.global_step == after else 1.0)

    setattr(SpaTrainer, "_loss", lost)  # noqa: B010


def _count_whole_layers() -> dict[str, list[int]]:
    """How many layers of the policy, and of its reference, are whole whenever one of them is about to be passed."""
    from torch.distributed.tensor import DTensor

    from spa_recipes.training.preference import SpaTrainer

    plain = SpaTrainer._compute_loss
    counts: dict[str, list[int]] = {}

    def watch(name: str, layers: Any) -> None:
        def count(*_: Any) -> None:
            counts[name].append(sum(not isinstance(next(layer.parameters()), DTensor) for layer in layers))

        counts[name] = []
        for layer in layers:
            layer.register_forward_pre_hook(count)  # behind the one that gathers its weights

    def watched(trainer: Any, model: Any, *args: Any) -> Any:
        if not counts:
            watch("policy", model.model.layers)
            watch("reference", trainer._given.model.layers)
        return plain(trainer, model, *args)

    setattr(SpaTrainer, "_compute_loss", watched)  # noqa: B010
    return counts


def _give_zeros_as_reference() -> None:
    """What TRL's reference is on all processes but the first where only that one loads the weights."""
    import torch

    from spa_recipes.models.loading import load_causal_lm
    from spa_recipes.training import run

    def zeros(*args: Any, **options: Any) -> Any:
        setattr(run, "load_causal_lm", load_causal_lm)  # noqa: B010  (the policy is loaded next)
        model = load_causal_lm(*args, **options)
        if os.environ["RANK"] != "0":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.zero_()
        return model

    setattr(run, "load_causal_lm", zeros)  # noqa: B010


if __name__ == "__main__":
    main()
