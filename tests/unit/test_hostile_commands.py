"""Commands that are suggested can be pasted, whatever the names in them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.cli.evaluate import _next
from spa_recipes.cli.summary import _print_places
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.run.runner import Outcome
from spa_recipes.units import for_shell
from tests.kit.finished_runs import make_run
from tests.kit.plans import plan_of

ODD = ["it's mine", "a b", "$(touch evil)", "`x`", "-rf", "ü;ls", "a\nb"]


def commands(text: str, program: str = "spa") -> list[list[str]]:
    return [shlex.split(found) for found in re.findall(rf"(?<=`)(?:{program}) .*?(?=`[, ]|`$)", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_one_word_and_no_option(name: str) -> None:
    (word,) = shlex.split(for_shell(name))
    assert Path(word) == Path(name)
    assert not word.startswith("-")


def test_what_a_run_ends_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = plan_of(), tmp_path / "it's $mine"
    run = make_run(folder / "mini", plan)
    _print_places(api.Prepared(plan, run, None), Outcome({}, (), 1.0))
    judge, status = commands(" ".join(capsys.readouterr().out.split()))
    assert judge[:4] == ["spa", "judge", "--policy", str(run.final)]
    assert judge[4] == "--reference"
    assert Path(judge[5]).is_relative_to(folder)
    assert status == ["spa", "status", str(run.path)]


def test_what_init_says(tmp_path: Path, spa_here: Any) -> None:
    said = " ".join(spa_here("init", "my recipe; ls.yaml").out.split())
    assert commands(said) == [["spa", name, "my recipe; ls.yaml"] for name in ("validate", "plan")]


def test_what_an_evaluation_ends_with() -> None:
    job = {"model": {"model_name_or_path": "m"}, "benchmark": {"type": "alpaca_eval"}}
    (command,) = commands(_next(BenchmarkJob.model_validate(job), Path("my results")), "alpaca_eval")
    assert command == ["alpaca_eval", "--model_outputs", "my results/model_outputs.json"]
