"""Half precision in two processes: the same choice, log-ratios, p~ and rounding as in one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spa_recipes.data.tables import given_answer, write_completions
from tests.kit.half import half_inputs
from tests.kit.processes import run_script
from tests.kit.stages import context_of
from tests.kit.training import make_half_model, trace, weights

PROCESS = """
import json, os, pathlib, sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from spa_recipes.stages import common, log_ratios
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.training.run import train_preference
from tests.kit.training import *
start, spec, folder, processes = pathlib.Path(sys.argv[1]), *map(pathlib.Path, sys.argv[2:4]), int(sys.argv[4])
assert int(os.environ.get("WORLD_SIZE", "1")) == processes
common.SCORED_PER_SHARD = 5
log_ratios.run(Context.from_environment(StageSpec.read(spec)))
settings = preference(num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-4)
result = train_preference(
    start, make_pairs(40, reference=False), settings, make_env(start, folder, dtype="bfloat16"),
    reference_path=start, refinement=replace(REFINEMENT, lam=0.5, warmup_ratio=0.4),
)
assert processes == (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
if int(os.environ.get("RANK", "0")) == 0:
    told = {**result.metrics, "detects_along_update": result.detects_along_update}
    (folder / "metrics.json").write_text(json.dumps(told))
"""


class World:
    """The same stage and training, done by one process and by two."""

    def __init__(self, home: Path) -> None:
        self.home = home
        half_inputs(home, pairs=1)
        rows = [
            given_answer(i, f"p{i}", k, "", [5, 6, 7 + i % 40], [8 + 3 * k + i % 40] * (6 + k))
            for i in range(90)
            for k in range(2)
        ]
        write_completions(home / "completions.parquet", rows)
        start = make_half_model(home / "start")
        script = home / "process.py"
        script.write_text(PROCESS)
        for processes in (1, 2):
            spec = self._spec(home / f"stage-{processes}")
            run_script(script, start, spec, self.training(processes), str(processes), processes=processes)

    def _spec(self, folder: Path) -> Path:
        model = {"model_name_or_path": "m", "dtype": "bfloat16", "max_length": 128, "max_prompt_length": 48}
        names = {"policy": "policy", "reference": "reference", "completions": "completions.parquet"}
        inputs = {role: self.home / name for role, name in names.items()}
        context = context_of(folder, "log_ratios", settings={"model": model, "method": "auto"}, inputs=inputs)
        path = context.attempt_dir / "spec.json"
        context.spec.write(path)
        return path

    def training(self, processes: int) -> Path:
        return self.home / f"training-{processes}"

    def metrics(self, processes: int) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.training(processes) / "metrics.json").read_text())
        return metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("processes"))


pytestmark = pytest.mark.slow  # tests/unit/test_log_ratios.py has the stage's two ranks one after the other


def test_the_choice_and_every_log_ratio_are_the_same_bytes(world: World) -> None:
    for name in ("work/log-ratios.choice.json", "output.draft-1/log_ratios.parquet"):
        one, two = ((world.home / f"stage-{processes}" / name).read_bytes() for processes in (1, 2))
        assert one == two


def test_weights_are_rounded_by_the_same_bits(world: World) -> None:
    """Two processes sum gradients in another order, so a few weights end on the other side of their random number."""
    one, two = (weights(world.training(processes) / "out") for processes in (1, 2))
    start = weights(world.home / "start")
    other = sum(int((one[name] != two[name]).sum()) for name in one)
    moved = sum(int((one[name] != start[name]).sum()) for name in one)
    total = sum(tensor.numel() for tensor in one.values())
    assert {tensor.dtype for tensor in two.values()} == {torch.bfloat16}
    assert moved > 0.1 * total
    assert other < 0.01 * total
    figures = ("update_kept", "update_visible", "rounding_to_update")
    assert [world.metrics(2)[name] for name in figures] == pytest.approx(
        [world.metrics(1)[name] for name in figures], rel=0.05
    )


def test_p_of_the_detector_comes_from_the_same_pass(world: World) -> None:
    assert world.metrics(1)["detects_along_update"] is world.metrics(2)["detects_along_update"] is True
    traces = [{(row["step"], row["row"]): row["p_detect"] for row in trace(world.training(p))} for p in (1, 2)]
    assert traces[0].keys() == traces[1].keys()
    p_2N = torch.tensor([[found[key] for key in sorted(found)] for found in traces]).double()
    late_2N = p_2N[:, p_2N[0] != 0.5]
    assert late_2N.shape[1] >= 40
    assert float(torch.corrcoef(late_2N.argsort(dim=1).argsort(dim=1).double())[0, 1]) > 0.95
