"""`spa label` as a command: sampled pairs, the pairs of a run, and what its file is worth."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from spa_recipes.data.counts import check_skipped
from spa_recipes.data.sources import read_pairs
from spa_recipes.recipe.schema import DatasetSource
from tests.kit.benchmark_world import lines_of
from tests.kit.cli import Spa, run_spa, start
from tests.kit.forked import Command
from tests.kit.labelling import ask
from tests.kit.runs import output


def label(folder: Path, *arguments: str) -> tuple[Command, str]:
    """Start the command, and wait for the address of its page."""
    command = start(folder, "label", *arguments)
    end = time.monotonic() + 120
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", command.out())):
        assert time.monotonic() < end, command.out()
        assert not command.err()
        time.sleep(0.05)
    return command, found[0]


def prefer_all_left(address: str) -> None:
    """Prefer the left answer of every pair that is left, and end."""
    while (number := ask(address, "state")["number"]) is not None:
        ask(address, "choose", {"number": number, "choice": "left"})
    ask(address, "end", {})


def test_from_prompts_to_labels_that_a_recipe_reads(here: Path) -> None:
    arguments = (
        "--model",
        "one",
        "--prompts",
        "prompts.jsonl",
        "--out",
        "labels.jsonl",
        "--set",
        "sampling.max_tokens=8",
    )
    command, address = label(here, *arguments)
    for number, choice in enumerate(["left", "right", "tie", "skip"]):
        state = ask(address, "choose", {"number": number, "choice": choice})
    assert command.kill(signal.SIGINT) == 130
    assert f"{state['labels']} labels, 1 tie, 1 skip in labels.jsonl" in command.out()
    assert "the same command again continues" in command.err()

    command, address = label(here, *arguments)
    assert "done before" in command.out()  # nothing is sampled again
    assert ask(address, "state")["done"] == 4
    prefer_all_left(address)
    assert command.wait() == 0
    assert command.out().endswith("`spa init my.yaml --model one --pairs labels.jsonl --prompts prompts.jsonl`\n")
    source = DatasetSource(source=str(here / "labels.jsonl"))
    loaded = read_pairs(source)
    rows = lines_of(here / "labels.jsonl")
    assert len(loaded.rows) == sum(row["status"] == "preferred" for row in rows) == len(rows) - 3
    assert sorted(why for _, why in loaded.skipped) == [
        "a tie, by a person", "skipped by a person", "the second look of a person at a pair"
    ]  # fmt: skip
    check_skipped(loaded, source, "data.pairs", most=0.0)  # they are no fault of the file
    assert loaded.rows[0]["chosen"] == rows[0]["chosen"]

    (here / "labels.jsonl").unlink()
    command, address = label(here, *arguments)
    prefer_all_left(address)
    assert command.wait() == 0
    assert command.out().endswith("`spa init my.yaml --model one --pairs labels.jsonl`\n")  # no prompt is left over


@pytest.fixture(scope="module")
def told(home: Path) -> str:
    """What the command says when five pairs of a finished run were labelled."""
    command, address = label(home, "mini", "--limit", "6", "--repeats", "0")
    for number in range(5):
        ask(address, "choose", {"number": number, "choice": "left"})
    ask(address, "end", {})
    assert command.wait() == 0
    return command.out()


def test_the_judge_of_a_run_is_looked_at(home: Path, told: str) -> None:
    rows = lines_of(home / "runs/mini/labels-2.jsonl")
    judged = {row["prompt_id"]: row for row in lines_of(output(home, "judge-2", "judgments.jsonl"))}
    doubted = sorted(judged.values(), key=lambda row: row["margin"])
    assert [row["judge_p"] for row in rows] == [row["p_chosen"] for row in doubted][:5]
    pairs = {
        row["chosen"][0]["content"]: row["rejected"][0]["content"]
        for row in lines_of(output(home, "judge-2", "pairs.jsonl"))
    }
    agreed = sum(row["better"] == row["judge_better"] for row in rows)
    assert agreed == sum(pairs.get(row["chosen"][0]["content"]) == row["rejected"][0]["content"] for row in rows)
    assert f"agree on {agreed / 5:.1%}" in told
    assert "of its other pairs this says nothing" in told


def test_labels_join_the_iterations_to_come(home: Path, told: str) -> None:
    shutil.copy(home / "runs/mini/labels-2.jsonl", home / "runs/mini/labels-1.jsonl")
    refused = run_spa(home, "resume", "mini")
    assert refused.returncode == 5
    assert (
        "added to the seed labels from iteration 2 on (data.added): 5 labels of runs/mini/labels-1.jsonl"
        in refused.stdout
    )
    assert "not added, as no iteration comes after 2" in refused.stdout
    assert "done again with the labels: refine-2, evaluate-2" in refused.stderr
    accepted = run_spa(home, "resume", "mini", "--accept")
    assert accepted.returncode == 0, accepted.stderr
    ran = [line.split()[1] for line in accepted.stdout.splitlines() if line.startswith("  + ")]
    assert ran == ["labels-1", "refine-2", "evaluate-2"]  # and no other
    plan = json.loads((home / "runs/mini/plan.json").read_text())
    (key,) = (stage["key"][:8] for stage in plan if stage["id"] == "refine-2")
    (manifest,) = (home / "runs/mini/stages").glob(f"*-refine-2-{key}/manifest.json")
    assert json.loads(manifest.read_text())["metrics"]["replayed_pairs"] == 5
    again = run_spa(home, "resume", "mini")
    assert again.returncode == 0
    assert "added to the seed labels" not in again.stdout


def test_what_cannot_be_labelled_is_one_line(spa: Spa, here: Path) -> None:
    for arguments, code, line in (
        ([], 2, "--model and --prompts and --out are missing; give a RUN, or --model, --prompts and --out"),
        (["--model", "one", "--out", "l.jsonl"], 2, "--prompts is missing"),
        (
            ["--model", "one", "--prompts", "prompts.jsonl", "--out", "prompts.jsonl"],
            2,
            "prompts.jsonl:1: not a row of",
        ),
        (["--model", "one", "--prompts", "none.jsonl", "--out", "l.jsonl"], 3, "none.jsonl: no such file or folder"),
        (["--model", "./no-model", "--prompts", "prompts.jsonl", "--out", "l.jsonl"], 3, "no-model"),
        (["no-run"], 2, "no run 'no-run' in runs"),
        (["no-run", "--model", "one"], 2, "RUN goes without --model"),
        (["--pick", "random"], 2, "--pick: needs a RUN"),
        (["no-run", "--pick", "best"], 2, "--pick: must be doubted or random, not 'best'"),
    ):
        answer = spa("label", *arguments)
        assert answer.returncode == code, answer.stderr
        assert len(answer.stderr.splitlines()) == 1
        assert line in answer.stderr
