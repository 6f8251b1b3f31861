"""Whole runs with a judge in words: the policy itself, and a model behind an endpoint."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa, start
from tests.kit.endpoint_server import EndpointServer
from tests.kit.llm_judge import KEY, SHORT, longer, parts, template
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics, stage_dir

# --- whole runs


RUN = {"data": {"prompts_per_iteration": [48], "heldout": 0}, "evaluation": {"enabled": False, "reward": "none"}}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a policy has judged its own answers in words."""
    folder = tmp_path_factory.mktemp("home")
    template(folder, SHORT)
    words = {"type": "llm", "prompt": "question.jinja", "max_tokens": 8, "max_unparsed": 1.0}
    write_recipe(folder / "own.yaml", mini(**RUN, name="own", judge=words))
    done = run_spa(folder, "run", "own.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "without a verdict" in done.stdout
    return folder


def test_a_policy_judges_its_own_answers_in_words(home: Path) -> None:
    found = metrics(home, "llm-judge-1", "own")
    assert found["questions"] > 64
    assert 0 <= metrics(home, "judge-1", "own")["accuracy_vs_gold"] <= 1
    lines = read_jsonl(stage_dir(home, "llm-judge-1", "own") / "output" / "verdicts.jsonl")
    assert len(lines) == found["questions"]
    assert found["unparsed"] == sum(line["verdict"] == "unparsed" for line in lines) / len(lines)
    assert (home / "runs" / "own" / "final").is_dir()


def test_the_page_of_a_run_tells_how_the_judge_judged(home: Path) -> None:
    done = run_spa(home, "report", "own", "--out", "page.html")
    assert done.returncode == 0, done.stderr
    page = (home / "page.html").read_text()
    assert "questions without a verdict" in page
    assert "implicit-reward margin" not in page


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_with_a_server_is_killed_and_goes_on_and_pays_once(home: Path) -> None:
    """SIGKILL in the second shard; the server prefers longer answers, so every label can be checked.

    It repeats the key in each answer, and no file of the run and no line has it.
    """
    release = threading.Event()
    shards = "runs/served/stages/*llm-judge-1*/work/shards/replies/*.parquet"

    def answer(body: dict[str, Any]) -> str:
        if list(home.glob(shards)):
            release.wait(120)  # until the run is dead
        return f"your key is {KEY}: {longer(body)}"

    with EndpointServer(answer, key=KEY) as server:
        words = {"type": "llm", "prompt": "question.jinja", "endpoint": server.endpoint(api_key_env="SPA_TEST_KEY")}
        write_recipe(home / "served.yaml", mini(**RUN, name="served", judge=words))
        missing = run_spa(home, "run", "served.yaml", "--trust")  # the key goes to a server of ours
        assert missing.returncode == 2
        assert "SPA_TEST_KEY is not set" in missing.stderr
        running = start(home, "run", "served.yaml", SPA_TEST_KEY=KEY)
        wait_for(lambda: list(home.glob(shards)) and len(server.asked) > 64)
        running.kill()
        wait_for(lambda: not processes_of(home))
        release.set()
        before = [parts(body) for body in server.asked]
        done = run_spa(home, "resume", "served", SPA_TEST_KEY=KEY)
        assert done.returncode == 0, done.stderr + done.stdout
        after = [parts(body) for body in server.asked[len(before) :]]
    questions = metrics(home, "llm-judge-1", "served")["questions"]
    assert len(after) == questions - 64
    assert not set(before[:64]) & set(after)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert not [path for path in home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr
    pairs = read_jsonl(stage_dir(home, "judge-1", "served") / "output" / "pairs.jsonl")
    judgments = read_jsonl(stage_dir(home, "judge-1", "served") / "output" / "judgments.jsonl")
    assert len(pairs) > 40
    for pair, judgment in zip(pairs, judgments, strict=True):
        chosen, rejected = (len(pair[side][0]["content"].split()) for side in ("chosen", "rejected"))
        assert chosen >= rejected
        assert judgment["tied"] == (chosen == rejected)
        assert judgment["margin"] == (0.0 if chosen == rejected else 1.0)
    assert metrics(home, "llm-judge-1", "served")["order_disagreement"] == 0.0
