"""`spa judge` and recipes in bfloat16: labels are those of exact arithmetic, and the noise is said."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa
from tests.kit.half import exact_margins, half_inputs

Exact = dict[str, tuple[str, float]]
PAIRS = 80
LENGTHS = ("--max-length", "128", "--max-prompt-length", "48")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    half_inputs(folder, pairs=PAIRS)
    return folder


def judged(world: Path, name: str, *options: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The labelled pairs by their prompt, and what was printed."""
    inputs = ("--policy", "policy", "--reference", "reference", "--pairs", "pairs.jsonl", "--out", f"{name}.jsonl")
    done = run_spa(world, "judge", *inputs, "--dtype", "bfloat16", *LENGTHS, *options)
    assert done.returncode == 0, done.stderr + done.stdout
    return {row["prompt_id"]: row for row in read_jsonl(world / f"{name}.jsonl")}, done.stdout + done.stderr


@pytest.fixture(scope="module")
def automatic(world: Path) -> tuple[dict[str, dict[str, Any]], str]:
    return judged(world, "auto")


@pytest.fixture(scope="module")
def subtracted(world: Path) -> tuple[dict[str, dict[str, Any]], str]:
    return judged(world, "difference", "--method", "difference")


@pytest.fixture(scope="module")
def exact(world: Path) -> Exact:
    return exact_margins(world)


def wrong(rows: dict[str, dict[str, Any]], exact: Exact) -> float:
    """Share of the labels that exact arithmetic does not give."""
    flips = [(rows[name]["chosen"][0]["content"] == first) != (margin > 0) for name, (first, margin) in exact.items()]
    return float(sum(flips)) / len(flips)


def test_labels_are_those_of_float64_where_subtracted_log_probs_are_not(
    automatic: Any, subtracted: Any, exact: Exact
) -> None:
    assert wrong(automatic[0], exact) <= 0.0125
    assert wrong(subtracted[0], exact) >= 0.1


def test_the_choice_is_said_with_its_error(automatic: Any) -> None:
    (line,) = [line for line in automatic[1].splitlines() if "median error of a margin" in line]
    assert "log-ratios: tangent in bfloat16; " in line
    assert "difference in bfloat16" in line
    assert "by tangent in bfloat16" in automatic[1]


def test_every_pair_has_a_standard_error_that_holds_for_others(subtracted: Any, exact: Exact) -> None:
    """Fitted on 16 of the pairs, it covers what rounding did to the others."""
    rows = subtracted[0]
    off = [abs(row["margin"] - abs(exact[name][1])) / row["standard_error"] for name, row in rows.items()]
    assert sum(value < 2 for value in off) / len(off) > 0.85
    assert sum(value < 0.25 for value in off) / len(off) < 0.6


def test_that_it_holds_for_others_was_checked_on_some_and_is_said(subtracted: Any) -> None:
    said = re.search(r"errors of other pairs over the estimated ones ([\d.]+)", subtracted[1])
    assert said is not None
    assert 0.3 < float(said[1]) < 3


def test_many_labels_in_the_noise_are_warned_of_with_the_key(automatic: Any, subtracted: Any) -> None:
    (line,) = [line for line in subtracted[1].splitlines() if "two standard errors" in line]
    assert line.endswith("; set --method to auto")
    assert "two standard errors" not in automatic[1]


def test_pairs_in_the_noise_are_dropped_on_request(world: Path, subtracted: Any) -> None:
    rows, text = judged(world, "sure", "--method", "difference", "--min-margin-in-noise", "2")
    kept = {name for name, row in subtracted[0].items() if row["margin"] >= 2 * row["standard_error"]}
    assert set(rows) == kept
    assert f"dropped as uncertain {PAIRS - len(kept)}" in text
    assert 0 < len(kept) < PAIRS


def test_margins_of_many_nats_are_subtracted(tmp_path: Path) -> None:
    """An instruct model against its base: two log-probs differ by far more than rounding."""
    half_inputs(tmp_path, pairs=20, update=0.05)
    _, text = judged(tmp_path, "far")
    assert "log-ratios: difference in bfloat16; " in text


@pytest.mark.long  # test_qlora.py has the derivative along an adapter
def test_an_adapter_over_its_base_is_judged_without_a_merge(world: Path, tmp_path: Path) -> None:
    from tests.kit.half import adapter_over

    home = Path(shutil.copytree(world, tmp_path, dirs_exist_ok=True))
    adapter_over(home / "reference", home / "lora")
    inputs = ("--policy", "lora", "--reference", "reference", "--pairs", "pairs.jsonl", *LENGTHS)
    margins = {}
    ways = {"half": ("--dtype", "bfloat16", "--method", "tangent"), "whole": ("--dtype", "float32")}
    for name, options in ways.items():
        done = run_spa(home, "judge", *inputs, "--out", f"{name}.jsonl", *options)
        assert done.returncode == 0, done.stderr + done.stdout
        margins[name] = {row["prompt_id"]: row for row in read_jsonl(home / f"{name}.jsonl")}
    same = [margins["half"][name]["chosen"] == row["chosen"] for name, row in margins["whole"].items()]
    assert sum(same) / len(same) >= 0.97
    assert all(math.isfinite(row["margin"]) and row["standard_error"] > 0 for row in margins["half"].values())
