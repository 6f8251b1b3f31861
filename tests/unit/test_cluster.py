"""Recipes on clusters: what is refused before nodes are held, what a job's script says, and what nodes are asked."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.cli import cluster
from spa_recipes.errors import LockedError, RecipeError, SpaError, TryAgainError
from spa_recipes.plan.powers import powers_of
from spa_recipes.recipe.schema import Compute, RayExecutor, SlurmExecutor
from spa_recipes.run import nodes, probe, ray_cluster, slurm, submit
from spa_recipes.run.executors import Executors, vllm_processes_of
from spa_recipes.run.ray_launch import Asked
from spa_recipes.state.versions import library_versions
from tests.kit.plans import plan_of, vllm_plan
from tests.kit.recipes import mini, write_recipe

SLURM = SlurmExecutor(type="slurm", nodes=2, gpus_per_node=8, time="24:00:00")
RAY = RayExecutor(type="ray", address="10.0.0.7:6379", nodes=2, gpus_per_node=8)
BATCHES = {
    name: {"global_batch_size": 32, "per_device_train_batch_size": 2} for name in ("sft", "seed_training", "refine")
}


def on_slurm(**changes: Any) -> dict[str, Any]:
    return mini(**BATCHES, compute={"executor": {"type": "slurm", "nodes": 2, "gpus_per_node": 8, **changes}})


# --- recipes


def test_where_it_runs_changes_no_key() -> None:
    here, there = plan_of(**BATCHES), plan_of(**BATCHES, compute={"executor": SLURM.model_dump()})
    elsewhere = plan_of(**BATCHES, compute={"executor": RAY.model_dump()})
    assert [stage.key for stage in here.stages] == [stage.key for stage in there.stages]
    assert [stage.key for stage in here.stages] == [stage.key for stage in elsewhere.stages]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sbatch": {"--wrap": "x"}}, "sbatch: --wrap is no long name of an option of sbatch"),
        ({"sbatch": {"nodes": 3}}, "sbatch: nodes is set by compute.executor itself"),
        ({"partition": "a\n#SBATCH --wrap=x"}, "partition"),
        ({"setup": ["one\ntwo"]}, "setup: has a line that is several"),
        ({"nodes": 0}, "nodes"),
    ],
)
def test_what_cannot_be_an_option_of_slurm_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        api.prepare(write_recipe(tmp_path / "mini.yaml", on_slurm(**changes)))
    assert words in str(caught.value)


def test_batches_that_do_not_split_are_told_before_nodes_are_held(tmp_path: Path) -> None:
    recipe = on_slurm(nodes=3)
    with pytest.raises(
        RecipeError, match=r"does not split into 24 processes \(compute.executor.nodes x gpus_per_node\)"
    ):
        api.prepare(write_recipe(tmp_path / "mini.yaml", recipe))


def test_vllm_has_a_copy_for_all_gpus_of_the_cluster() -> None:
    plan = vllm_plan(sampling={"backend": {"data_parallel_size": "auto", "tensor_parallel_size": 4}})
    workers = vllm_processes_of(plan.stage("generate-1"), Compute(executor=SLURM))
    assert workers is not None
    assert (workers.copies, workers.gpus_each) == (4, 4)


def test_commands_at_the_beginning_of_a_job_and_a_cluster_elsewhere_need_trust() -> None:
    plan = plan_of(**BATCHES, compute={"executor": {**SLURM.model_dump(), "setup": ["source /venv/bin/activate"]}})
    assert [power.key for power in powers_of(plan, Path("run")).asked] == ["compute.executor.setup"]
    plan = plan_of(**BATCHES, compute={"executor": RAY.model_dump()})
    assert [power.key for power in powers_of(plan, Path("run")).asked] == ["compute.executor.address"]


# --- a job


def test_the_script_of_a_job_asks_for_what_the_recipe_says_and_goes_on_when_its_time_runs_out(tmp_path: Path) -> None:
    settings = SlurmExecutor(
        type="slurm",
        nodes=4,
        gpus_per_node=8,
        time="24:00:00",
        account="us",
        sbatch={"constraint": "h100"},
        setup=["module load cuda"],
    )
    text = submit.script(settings, "mini", tmp_path / "a run", ["spa", "run", "my recipe.yaml"], tmp_path)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in ('nodes="4"', 'gpus-per-node="8"', 'time="24:00:00"', 'account="us"', 'constraint="h100"', "no-kill"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --requeue" in lines
    assert "trap 'again=1; kill -TERM \"$driver\"' USR1" in lines
    assert lines.index("module load cuda") < lines.index("spa run 'my recipe.yaml' < /dev/null &")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    once = submit.script(settings.model_copy(update={"requeue": False}), "mini", tmp_path, ["spa"], tmp_path)
    assert "#SBATCH --no-requeue" in once
    assert "scontrol" not in once


@pytest.mark.parametrize(
    ("code", "signalled", "count", "again"),
    [(0, False, 0, False), (75, False, 0, True), (75, False, 3, False), (2, False, 0, False), (143, True, 9, True)],
)
def test_a_job_is_queued_again_when_its_time_runs_out_or_a_node_failed(
    tmp_path: Path, code: int, signalled: bool, count: int, again: bool
) -> None:
    """The script, run by bash with a driver that ends with `code`; with 143 only where the script is signalled."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/said\n")
    (tmp_path / "scontrol").chmod(0o755)
    waits = "trap 'kill $!; exit 143' TERM; sleep 60 & sleep 1; kill -USR1 $PPID; wait" if signalled else f"exit {code}"
    text = submit.script(SLURM, "mini", tmp_path, ["bash", "-c", waits], tmp_path)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12",
        "SLURM_RESTART_COUNT": str(count),
    }
    done = subprocess.run(["bash", "-c", text], env=environment, check=False, timeout=30)
    assert done.returncode == code
    assert (tmp_path / "said").exists() == again
    assert not again or (tmp_path / "said").read_text() == "requeue 12\n"


def test_without_slurm_and_outside_of_a_job_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="Slurm is not installed here"):
        slurm.check_allocation(SLURM)
    with pytest.raises(RecipeError, match="Slurm is not installed here"):
        submit.submit("#!/bin/sh\n", tmp_path)
    (tmp_path / "srun").touch(0o755)
    with pytest.raises(RecipeError, match="`spa submit RECIPE`"):
        slurm.check_allocation(SLURM)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    with pytest.raises(RecipeError, match="asks for 2 nodes, and job 12 has 1"):
        slurm.check_allocation(SLURM)


def test_a_run_whose_job_waits_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path / "mini.yaml", on_slurm())
    prepared = api.prepare(path, run_dir=tmp_path / "runs" / "mini")
    prepared.run.path.mkdir(parents=True)
    submit.note_job(prepared.run.path, "12")
    (prepared.run.path / ".spa-folder").write_text("run\n")
    monkeypatch.setattr(submit, "queue_state", lambda job: "PENDING (Priority)")
    with pytest.raises(LockedError, match=r"job 12 does this run already \(PENDING \(Priority\)\)"):
        api.submit(prepared, path, [], lambda plan, run: None)


def test_a_rehearsal_is_submitted_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\ncp "$2" {tmp_path}/submitted\necho 34\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "mini.yaml", on_slurm())
    cluster.submit(path, rehearse=True, until="sft")
    folder = tmp_path / "runs" / "rehearsals" / "mini"
    assert submit.job_of(folder) == "34"
    assert not (tmp_path / "runs" / "mini").exists()
    lines = (tmp_path / "submitted").read_text().splitlines()
    assert f'#SBATCH --output="{folder}/slurm-%j.log"' in lines
    # It is `spa run` of the recipe's own folder that rehearses: one below this one would be a rehearsal of a rehearsal.
    assert any(f"--run-dir {tmp_path}/runs/mini --until sft --rehearse <" in line for line in lines)
    said = capsys.readouterr().out
    assert "submitted a rehearsal of mini as job 34: `spa status runs/rehearsals/mini` shows" in " ".join(said.split())
    assert "the end of the job's log: runs/rehearsals/mini/slurm-34.log" in " ".join(said.split())


def test_what_slurm_says_of_a_job_is_one_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"1": "PENDING|Priority|2026-01-01T08:00:00|\n", "2": "RUNNING|None|x|n[1-2]\n", "3": ""}
    monkeypatch.setattr(submit, "query", lambda command: said[command[3]])
    assert submit.queue_state("1") == "PENDING (Priority), starts 2026-01-01T08:00:00"
    assert submit.queue_state("2") == "RUNNING on n[1-2]"
    assert submit.queue_state("3") is None


def test_a_step_has_its_share_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    monkeypatch.setattr(slurm, "query", lambda command: "JobId=12 AllocTRES=cpu=128,mem=1000G,node=2,gres/gpu=16 x=y")
    monkeypatch.setattr(slurm, "Step", lambda command, log, environment: started.append(command))
    steps = slurm.Steps(SLURM)
    steps.slot(["python"], tmp_path / "log", {}, 4)
    steps.gang(["python"], tmp_path / "log", {})
    assert {"--exact", "--nodes=1", "--cpus-per-task=32", "--mem=256000M", "--gpus-per-node=4"} <= set(started[0])
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=64", "--mem=512000M"} <= set(started[1])
    assert {"--gpus-per-node=8", "--kill-on-bad-exit=1"} <= set(started[1])


# --- nodes


GOOD: dict[str, Any] = {
    "node": "n2",
    "versions": {name: library_versions().get(name, "(none)") for name in ("spa-recipes", "torch")},
    "vllm": True,
    "gpus": 8,
    "sees": True,
    "held": True,
}


class Saying:
    """A cluster whose nodes say what a test wants."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def gang(self, command: list[str], log: Path, environment: dict[str, str]) -> "Saying":
        assert (log.parent / probe.CANARY).read_text() == command[-1]
        log.write_text("\n".join(self._lines) + "\n")
        return self

    def poll(self) -> int:
        return 0

    def stop(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sees": False}, "node n2 does not see the run's folder; put it on a drive that all nodes mount"),
        ({"versions": {**GOOD["versions"], "spa-recipes": "0.0.9"}}, "node n2 has spa-recipes 0.0.9, and there is"),
        ({"gpus": 7}, "gpus_per_node: node n2 has 7 GPUs that torch sees, fewer than asked; set it to 7"),
        ({"vllm": False}, "vLLM is not installed on node n2"),
        ({"held": False}, "node n2 does not see that this process holds the run"),
    ],
)
def test_a_node_that_cannot_do_its_part_is_told_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        nodes.check_nodes(Saying(json.dumps(GOOD), json.dumps(GOOD | changes)), SLURM, tmp_path, vllm=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / probe.CANARY).exists()


def test_nodes_that_are_well_are_let_through_and_one_that_says_nothing_is_told(tmp_path: Path) -> None:
    nodes.check_nodes(Saying(json.dumps(GOOD), json.dumps(GOOD)), SLURM, tmp_path, vllm=True)
    refused = "srun: error: n2: task 1: Exited with exit code 127"
    with pytest.raises(TryAgainError, match="1 of 2 nodes say what they are: srun: error: n2"):
        nodes.check_nodes(Saying(json.dumps(GOOD), refused), SLURM, tmp_path, vllm=False)


def test_a_plan_without_heavy_stages_asks_no_node(tmp_path: Path) -> None:
    plan = plan_of(**BATCHES)
    Executors(SLURM).look_at_nodes(tmp_path, [plan.stage("data"), plan.stage("judge-1")], Compute(executor=SLURM))


# --- Ray


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("127.0.0.1:1", TryAgainError, "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://10.0.0.1:10001", RecipeError, "is no address of a Ray cluster; write host:port"),
        ("somewhere", RecipeError, "is no address of a Ray cluster"),
        ("auto", TryAgainError, "there is no Ray cluster on this machine"),
    ],
)
def test_an_address_where_no_cluster_is_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, kind: type[SpaError], words: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(ray_cluster, "CURRENT", tmp_path / "none")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(kind) as caught:
        ray_cluster.check_head(RAY.model_copy(update={"address": address}))
    assert words in str(caught.value)


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"Ray is not installed here; pip install 'spa-recipes\[ray\]'"):
        ray_cluster.check_head(RAY)


def test_a_gang_asks_ray_for_all_nodes_and_a_worker_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(ray_cluster, "Task", lambda command, *others: started.append(command))
    tasks = ray_cluster.Tasks(RAY)
    tasks.gang(["python"], tmp_path / "worker.log", {})
    tasks.slot(["python"], tmp_path / "worker.log", {}, 4)
    gang, slot = (Asked(**json.loads(command[3])) for command in started)
    assert (gang.nodes, gang.gpus, slot.nodes, slot.gpus) == (2, 8, 1, 4)
    assert gang.address == "10.0.0.7:6379"


def test_processes_that_wait_for_room_are_told_together(tmp_path: Path) -> None:
    assert ray_cluster.waiting_for_room(tmp_path) == []
    for name in ("worker-pool-0", "worker-pool-1"):
        (tmp_path / f"{name}.pending").write_text("for 1 x (1 GPU)\n")
    (tmp_path / "worker-pool-2.pending").write_text("x" * 10_000)  # no launcher wrote it
    os.mkfifo(tmp_path / "worker-pool-3.pending")
    assert ray_cluster.waiting_for_room(tmp_path) == ["waits for room in the Ray cluster: for 1 x (1 GPU)"]


def test_probes_may_wait_as_long_as_a_stage_may_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(nodes, "_wait", lambda running, log, seconds: waited.append(seconds))
    for settings in (SLURM, RAY):
        nodes.check_nodes(Saying(json.dumps(GOOD), json.dumps(GOOD)), settings, tmp_path, vllm=False)
    assert waited == [nodes.PATIENCE_SECONDS, nodes.PATIENCE_SECONDS + RAY.wait_minutes * 60]
