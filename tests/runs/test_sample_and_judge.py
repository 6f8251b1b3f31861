"""`spa sample`, and `spa judge` by a reward model and by a judge in words: from prompts to labelled pairs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.cli.progress import PlainReporter
from spa_recipes.data.sources import read_candidates, read_pairs
from spa_recipes.judge_job import JudgeRequest, judge_pairs
from spa_recipes.plan import Stage
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.run.executors import Executors
from spa_recipes.sample_job import load_sample_job, sample_prompts
from spa_recipes.state.stagedir import Manifest
from tests.kit.benchmark_world import lines_of
from tests.kit.endpoint_server import EndpointServer
from tests.kit.llm_judge import SHORT, longer, template


class Stopped(BaseException):
    """Stands for Ctrl-C at a moment that a test chooses."""


class StopsAfter(PlainReporter):
    """A person who presses Ctrl-C when a stage is finished."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        super().finished(stage, manifest)
        if stage.id == self._stage:
            raise Stopped


@pytest.fixture(scope="module")
def world(benchmark_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(benchmark_world, tmp_path_factory.mktemp("world"), dirs_exist_ok=True))


def sample(world: Path, out: str, executors: Executors, reporter: PlainReporter | None = None, n: int = 3) -> Path:
    """Answers of model `one`; a prompt stands in the file twice."""
    (world / "twice.jsonl").write_text((world / "prompts.jsonl").read_text() * 2)
    options = {
        "MODEL": ("model.model_name_or_path", str(world / "one")),
        "--prompts": ("prompts.source", str(world / "twice.jsonl")),
        "--n": ("sampling.n", n),
    }
    job = load_sample_job(options, ["sampling.max_tokens=12", "sampling.temperature=1.5"])
    sample_prompts(job, world / out, reporter or PlainReporter(), executors)
    return world / out


@pytest.fixture(scope="module")
def answers(world: Path, executors: Executors) -> Path:
    """What `spa sample` writes, by a call that was stopped and went on."""
    with pytest.raises(Stopped):
        sample(world, "answers.jsonl", executors, StopsAfter("prompts"))
    assert not (world / "answers.jsonl").exists()
    return sample(world, "answers.jsonl", executors)


def test_each_distinct_prompt_is_answered_n_times(
    world: Path, answers: Path, executors: Executors, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, prompts = lines_of(answers), [row["prompt"] for row in lines_of(world / "prompts.jsonl")]
    assert [row["prompt"][-1]["content"] for row in rows] == prompts
    assert all(len(set(row["responses"])) == 3 for row in rows)
    again = sample(world, "again.jsonl", executors)
    assert f"{len(prompts)} rows repeat a prompt" in capsys.readouterr().out
    assert again.read_bytes() == answers.read_bytes()
    assert not list(world.glob("*.spa"))
    (single, *_) = lines_of(sample(world, "single.jsonl", executors, n=1))
    assert single["responses"] == rows[0]["responses"][:1]


def judged(world: Path, answers: Path, out: str, executors: Executors, kind: str, *settings: str) -> list[Any]:
    request = JudgeRequest(None, None, str(answers), world / out, judge=kind, settings=settings)
    manifest = judge_pairs(request, PlainReporter(), executors)
    assert manifest.rows == len(lines_of(answers))
    pairs = read_pairs(DatasetSource(source=str(world / out))).rows
    given = read_candidates(answers).rows
    for pair, row in zip(pairs, given, strict=True):
        assert {pair["chosen"][0]["content"], pair["rejected"][0]["content"]} <= set(row["responses"])
    return lines_of(world / out)


def test_a_reward_model_labels_sampled_answers(world: Path, answers: Path, executors: Executors) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name = f"judge.model_name_or_path={world / 'rewarder'}"
    rows = judged(world, answers, "rewarded.jsonl", executors, "reward_model", name)
    model = AutoModelForSequenceClassification.from_pretrained(world / "rewarder").eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "rewarder")

    def reward(prompt: list[Any], text: str) -> float:
        conversation = [*prompt, {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
        with torch.no_grad():
            return float(model(torch.tensor([ids["input_ids"]])).logits.item())

    for row, given in zip(rows, lines_of(answers), strict=True):
        rewards = [reward(given["prompt"], text) for text in given["responses"]]
        assert row["chosen_score"] == pytest.approx(max(rewards), abs=1e-5)
        assert row["rejected_score"] == pytest.approx(min(rewards), abs=1e-5)
        assert row["source"] == "reward_model"


def test_a_judge_in_words_labels_them_and_is_asked_once(
    world: Path, answers: Path, executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with EndpointServer(lambda body: longer(body)) as server:
        settings = (
            f"judge.prompt={template(world, SHORT)}",
            f"judge.endpoint={{base_url: {server.base_url}, model: m, api_key_env: null}}",
        )
        request = JudgeRequest(None, None, str(answers), world / "said.jsonl", judge="llm", settings=settings)
        with pytest.raises(Stopped):
            judge_pairs(request, StopsAfter("verdicts"), executors)
        asked = len(server.asked)
        rows = judged(world, answers, "said.jsonl", executors, "llm", *settings)
        assert len(server.asked) == asked == 6 * len(rows)
    for row, given in zip(rows, lines_of(answers), strict=True):
        longest = max(len(text.split()) for text in given["responses"])
        assert len(row["chosen"][0]["content"].split()) == longest


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["judge", "--judge", "llm"], "--judge: judge.model_name_or_path: the llm judge needs a model; "),
        (["judge", "--judge", "reward_model"], "--judge: judge.model_name_or_path: the reward_model judge needs a mod"),
        (["judge", "--judge", "llm", "--policy", "m"], "--policy: has no effect with the llm judge; leave it out, and"),
        (["judge", "--judge", "llm", "--beta", "1"], "--beta: judge.beta: unknown key; allowed for type llm: type, "),
        (["judge", "--judge", "wise"], "--judge: judge.type: must be one of implicit_reward, llm, reward_model, not"),
        (["judge", "--policy", "m"], "--reference: the implicit reward needs a policy and its reference; "),
        (["judge"], "--policy: the implicit reward needs a policy and its reference; name a folder or a Hub id, or"),
        (
            ["judge", "--judge", "reward_model", "--set", "judge.model_name_or_path=./none"],
            "judge.model_name_or_path: ./none: no such model",
        ),
    ],
)
def test_a_judge_that_cannot_be_is_told_in_one_line(
    spa_here: Any, tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
    done = spa_here(*arguments, "--pairs", "p.jsonl", "--out", "o.jsonl")
    assert done.code in (2, 3)
    assert done.err.startswith(f"error: {line}")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "o.jsonl.spa").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--n", "0"], "--n: sampling.n: must be an integer of at least 1, not 0"),
        (
            ["--set", "sampling.max_tokens=4096"],
            "--set sampling.max_tokens: sampling.max_tokens (4096) must be smaller",
        ),
        (["--set", "sampling.beam=4"], "--set sampling.beam: unknown key; "),
        (
            ["--set", "compute.vllm_python=py"],
            "--set compute.vllm_python: has no effect with sampling.backend.type tra",
        ),
        (["--prompts", "none.jsonl"], "--prompts: none.jsonl: no such file or folder"),
        ([], "model.model_name_or_path: ./none: no such model"),
    ],
)
def test_a_sampling_that_cannot_be_is_told_in_one_line(
    spa_here: Any, tmp_path: Path, options: list[str], line: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    done = spa_here("sample", "./none", "--prompts", "p.jsonl", "--out", "o.jsonl", *options)
    assert done.code in (2, 3)
    assert done.err.startswith(f"error: {line}")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "o.jsonl.spa").exists()
