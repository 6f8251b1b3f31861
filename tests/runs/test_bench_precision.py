"""The benchmark of half precision, in miniature: its tables say what they should, and a second call makes nothing."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import preference_rows
from tests.benchmarks import bench_precision


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is stored in bfloat16, and pairs as strings."""
    home = tmp_path_factory.mktemp("precision")
    build_model(home / "model", hidden_size=32, intermediate_size=64)
    AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.bfloat16).save_pretrained(home / "model")
    rows = [
        {"prompt": row["prompt"], **{side: row[side][-1]["content"] for side in ("chosen", "rejected")}}
        for row in preference_rows(60, seed=0)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def measure(home: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    command = ["--model", str(home / "model"), "--data", str(home / "pairs.jsonl"), "--work", str(home / "work")]
    chosen = ["--quick", "--seeds", "1", "--rates", "1e-4", "--loop-rates", "1e-4", "--ways", "truth", "today", "new"]
    monkeypatch.setattr("sys.argv", ["bench_precision", *command, *chosen, *more])
    bench_precision.main()
    return (home / "work" / "results.md").read_text()


def made(home: Path) -> dict[Path, int]:
    """Files of measured values, and weights of trained policies, with the times they were written."""
    values = [file for kind in ("passes", "answers", "updates", "plain-*") for file in home.glob(f"work/{kind}/*.json")]
    weights = list(home.glob("work/runs/*/stages/*/output/model/model.safetensors"))
    assert values
    assert weights
    return {file: file.stat().st_mtime_ns for file in values + weights}


def cells(text: str, label: str) -> list[str]:
    """The row of a table."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


@pytest.mark.slow
def test_it_measures_every_way_and_goes_on_where_it_was_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = measure(home, monkeypatch, "--parts", "ways", "checks")
    assert cells(text, "float32 throughout")[0].startswith("0 ")
    today, new = "to nearest, bfloat16, two", "stochastically, bfloat16, tangent"
    error = {name: float(cells(text, name)[0].split()[0]) for name in (today, new)}
    assert error[new] < error[today]
    before = made(home)
    assert measure(home, monkeypatch, "--seeds", "1", "2", "--parts") == text  # nothing of seed 2 is there: left out
    assert measure(home, monkeypatch, "--parts", "ways", "checks") == text
    assert made(home) == before


@pytest.mark.slow
def test_it_measures_whole_loops(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = measure(home, monkeypatch, "--parts", "loops", "--loops", "float32", "new", "today", "again")
    assert cells(text, "T = 2, float32 ")[0].startswith("1.000")
    for label in ("bfloat16, now", "bfloat16, before", "float32, other random numbers"):
        assert cells(text, f"T = 2, {label}")
