"""A real chat model and real preference pairs through the whole loop, where both are at hand.

The model is SmolLM2-135M-Instruct: the folder named by SPA_SMOLLM2, or made by ../shared/scripts/make_smollm2.py; the
pairs are ../shared/data/gpt4_preferences.jsonl, brought into the form of the Argilla-cleaned UltraFeedback.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spa_recipes.estimates import training_memory
from tests.kit.cli import run_spa
from tests.kit.plans import plan_of

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
PAIRS = SHARED / "data" / "gpt4_preferences.jsonl"
MAKE_MODEL = SHARED / "scripts" / "make_smollm2.py"
ROWS = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not PAIRS.is_file(), reason=f"no preference pairs at {PAIRS}"),
    pytest.mark.skipif(
        "SPA_SMOLLM2" not in os.environ and not MAKE_MODEL.is_file(), reason="no SPA_SMOLLM2 and no script to make it"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SPA_SMOLLM2" in os.environ:
        return Path(os.environ["SPA_SMOLLM2"])
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    subprocess.run(
        [sys.executable, str(MAKE_MODEL), str(folder)],
        check=True,
        capture_output=True,
    )
    return folder


def ultrafeedback_like(folder: Path) -> Path:
    """A Hub-like folder: `data/train-00000-of-00001.parquet`, string prompt, whole-conversation chosen and rejected."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    short = [row for row in map(json.loads, PAIRS.read_text().splitlines()) if len(row["prompt"]) < 300]
    rows = [
        {
            "source": "alpaca_eval",
            "prompt": row["prompt"],
            **{
                name: [{"content": row["prompt"], "role": "user"}, {"content": row[name], "role": "assistant"}]
                for name in ("chosen", "rejected")
            },
            "chosen-rating": 10 * row["score_chosen"],
        }
        for row in {row["prompt"]: row for row in short}.values()
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:ROWS]), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def test_the_loop_on_a_real_model_and_real_pairs(model: Path, tmp_path: Path) -> None:
    pairs = ultrafeedback_like(tmp_path / "ultrafeedback")
    overrides = ["--set", f"model.model_name_or_path={model}", "--set", f"data.pairs.source={pairs}"]
    done = run_spa(tmp_path, "run", ROOT / "recipes" / "smollm2_local.yaml", *overrides)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    (final,) = (tmp_path / "runs" / "smollm2_local" / "stages").glob("*-refine-1-????????/output/model")
    (labelled,) = (tmp_path / "runs" / "smollm2_local" / "stages").glob("*-judge-1-????????/output/pairs.jsonl")
    assert len(labelled.read_text().splitlines()) >= 10
    (seed,) = (tmp_path / "runs" / "smollm2_local" / "stages").glob("*-seed-????????/output/model/training_log.jsonl")
    first = json.loads(seed.read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=2e-3)  # policy = reference at the first step

    judged = run_spa(
        tmp_path, "judge", "--policy", final, "--reference", model, "--pairs", pairs, "--out", "labelled.jsonl",
        "--max-length", "512", "--max-prompt-length", "192", "--dtype", "float32",
    )  # fmt: skip
    print(judged.stdout)
    assert judged.returncode == 0, judged.stderr
    assert f"{ROWS} labels that were there" in judged.stdout
    assert len((tmp_path / "labelled.jsonl").read_text().splitlines()) == ROWS


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from spa_recipes.recipe.schema import Model, PreferenceTraining
from tests.kit.training import make_env
from spa_recipes.training.run import train_preference

torch.set_num_threads(1)
model, folder, length = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
half = [100 + i % 3000 for i in range(length // 2)]
row = {"prompt_ids": half, "chosen_ids": half, "rejected_ids": half[::-1]}
rows = [{**row, "ref_chosen_logps": -400.0, "ref_rejected_logps": -400.0}] * 4
settings = PreferenceTraining(learning_rate=1e-6, global_batch_size=2, per_device_train_batch_size=1)
held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
train_preference(model, rows, settings, make_env(model, folder, dtype="float32"), reference_path=None, refinement=None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held)
"""


def test_its_training_takes_the_memory_that_was_estimated(model: Path, tmp_path: Path) -> None:
    length = 256
    lengths = {"max_length": length, "max_prompt_length": length // 2}
    training = {"global_batch_size": 2, "per_device_train_batch_size": 1}
    plan = plan_of(
        model={"model_name_or_path": str(model), "dtype": "float32", **lengths}, sft=None, seed_training=training
    )
    estimate = training_memory(plan.stage("seed"), plan.recipe)
    assert estimate is not None
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), str(tmp_path), str(length)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == pytest.approx(estimate.total, rel=0.2)
