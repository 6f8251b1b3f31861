"""`spa judge` takes the lengths that the models have, and what it suggests instead of wrong ones works."""

import re
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.judge_job import JudgeRequest, judge_job
from tests.kit.cli import run_spa
from tests.kit.models import judge_inputs, model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    judge_inputs(folder, 4)
    return folder


def judged(folder: Path, *options: str, **variables: str) -> tuple[int, str]:
    names = ("policy", "reference", "pairs")
    places = [text for name in names for text in (f"--{name}", str(folder / (name + ".jsonl" * (name == "pairs"))))]
    out = folder / f"out{len(options)}.jsonl"
    result = run_spa(folder, "judge", *places, "--out", str(out), *options, **variables)
    return result.returncode, result.stdout + result.stderr


def test_the_quickstarts_models_are_judged_with_the_defaults_on_an_ascii_stream(folder: Path) -> None:
    code, output = judged(folder, PYTHONIOENCODING="ascii")
    assert (code, output.count("Value error")) == (0, 0), output


def test_a_suggestion_works(folder: Path) -> None:
    code, output = judged(folder, "--max-length", "2048")
    assert code == 2
    suggested = re.search(r"set (--max-length) to (\d+)", " ".join(output.split()))
    assert suggested is not None, output
    code, output = judged(folder, *suggested.groups())
    assert code == 0, output


def test_lengths_are_what_both_models_have(tmp_path: Path) -> None:
    long = model_folder(tmp_path / "long", {"max_position_embeddings": 8192})
    short = model_folder(tmp_path / "short", {"max_position_embeddings": 512})
    pairs = tmp_path / "p.jsonl"
    pairs.touch()
    request = JudgeRequest(str(long), str(short), str(pairs), tmp_path / "o.jsonl")

    def lengths(**options: Any) -> tuple[int, int]:
        model = judge_job(request._replace(**options)).model
        return model.max_length, model.max_prompt_length

    assert lengths() == (512, 256)
    assert lengths(reference=str(long), max_prompt_length=100) == (8192, 100)
    assert lengths(max_length=300) == (300, 150)
