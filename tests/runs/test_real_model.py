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

from tests.kit.cli import run_spa

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
