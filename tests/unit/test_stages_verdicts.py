"""The stage of the judge in words: against a server that answers by a known rule, and with a model on this machine."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.questions import load_question
from spa_recipes.data.rows import Message, read_jsonl, write_jsonl
from spa_recipes.data.tables import CompletionRow, write_completions
from spa_recipes.errors import DataError, RecipeError, StageError, TryAgainError
from spa_recipes.generation import endpoint as client
from spa_recipes.generation.requests import Completion, Request
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.schema import Recipe, Section
from spa_recipes.stages import generate, verdicts
from spa_recipes.stages.context import Result
from spa_recipes.state.digests import DigestMemo
from tests.kit.endpoint_server import EndpointServer, Reply
from tests.kit.llm_judge import SHORT, longer, parts, template
from tests.kit.recipes import mini
from tests.kit.stages import context_of

END = 4  # <end> of the sandbox's tokenizer

# --- the stage


@pytest.fixture(autouse=True)
def _no_proxy_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)


def inputs_of(folder: Path, answers: list[list[str]]) -> dict[str, Path]:
    """Files with made-up answers to prompts `q0`, `q1`, ..., and SHORT as the question."""
    folder.mkdir(exist_ok=True)
    prompts = [{"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": f"q{i}"}]} for i in range(len(answers))]
    write_jsonl(folder / "prompts.jsonl", prompts)
    rows: list[CompletionRow] = [
        {
            "item": i, "prompt_id": f"p{i}", "sample": k, "prompt_ids": [1], "response_ids": [2], "text": text,
            "logps": [-1.0], "finish_reason": "stop",
        }
        for i, texts in enumerate(answers)
        for k, text in enumerate(texts)
    ]  # fmt: skip
    write_completions(folder / "completions.parquet", rows)
    return {
        "completions": folder / "completions.parquet",
        "prompts": folder / "prompts.jsonl",
        "question": template(folder, SHORT),
    }


def ask(folder: Path, server: EndpointServer, answers: list[list[str]], **settings: Any) -> Result:
    """Run the stage on made-up answers with a server."""
    asking = {"type": "llm", "max_tokens": 20, "max_unparsed": settings.pop("max_unparsed", 0.5)}
    context = context_of(
        folder / "stage",
        "endpoint_verdicts",
        settings={"judge": asking, "endpoint": server.endpoint(**settings)},
        inputs=inputs_of(folder, answers),
    )
    return verdicts.run(context)


def rewards_in(folder: Path) -> list[float]:
    table = pq.read_table(folder / "stage" / "output.draft-1" / "rewards.parquet")
    assert table.column_names == ["item", "sample", "reward"]
    return [float(value) for value in table["reward"].to_pylist()]


def lines_in(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "stage" / "output.draft-1" / "verdicts.jsonl")


def test_every_pair_is_asked_in_both_orders_without_sampling(tmp_path: Path) -> None:
    with EndpointServer(longer) as server:
        result = ask(tmp_path, server, [["a", "b b"], ["c c", "d"], ["e", "f"]], max_concurrency=1)
    assert [parts(body) for body in server.asked] == [
        ("a", "b b"), ("b b", "a"), ("c c", "d"), ("d", "c c"), ("e", "f"), ("f", "e"),
    ]  # fmt: skip
    assert {(body["temperature"], body["max_tokens"]) for body in server.asked} == {(0.0, 20)}
    assert rewards_in(tmp_path) == [0.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    assert result.rows == 6
    assert result.metrics == {
        "questions": 6, "too_long": 0, "unparsed": 0.0, "verdict_ties": 2 / 6, "order_disagreement": 0.0,
        "first_place": 0.5,
    }  # fmt: skip
    assert lines_in(tmp_path)[1] == {
        "item": 0, "prompt_id": "p0", "first": 1, "second": 0, "reply": "I count. [[A]]", "verdict": "first",
    }  # fmt: skip


def test_different_texts_of_several_answers_are_compared_and_empty_ones_are_not(tmp_path: Path) -> None:
    with EndpointServer(longer) as server:
        ask(tmp_path, server, [["a a", "a", "a a", "a a a"], ["b", " ", "b b", ""], ["c", "c", "c", "c"]])
    asked = Counter(frozenset(parts(body)) for body in server.asked)
    assert asked == {
        frozenset({"a a", "a"}): 2,
        frozenset({"a a", "a a a"}): 2,
        frozenset({"a", "a a a"}): 2,
        frozenset({"b", "b b"}): 2,
    }
    assert rewards_in(tmp_path) == [0.5, 0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_a_judge_that_likes_the_first_place_makes_ties_and_is_found_out(tmp_path: Path) -> None:
    with EndpointServer(lambda body: "[[A]]") as server:
        result = ask(tmp_path, server, [["a", "b"], ["c", "d"]])
    assert rewards_in(tmp_path) == [0.5] * 4
    assert (result.metrics["order_disagreement"], result.metrics["first_place"]) == (1.0, 1.0)


def by_words(body: dict[str, Any]) -> str:
    """One point per word of the answer; says nothing of an answer with five words."""
    words = len(re.findall("<X>(.*)</X>", body["messages"][-1]["content"])[0].split())
    return "I cannot say." if words == 5 else f"I count. [[{words}]]"


def test_single_answers_get_scores_whose_mean_is_the_reward(tmp_path: Path) -> None:
    answers = [["a", "b b", "b b"], ["c c", "", "d"], ["e", "e"], ["f", "g g g", "h h h h h"], ["i", "k"]]
    inputs = inputs_of(tmp_path, answers)
    inputs["question"].write_text("{{ prompt }}\n<X>{{ answer }}</X>")
    with EndpointServer(by_words) as server:
        context = context_of(
            tmp_path / "stage",
            "endpoint_verdicts",
            settings={
                "judge": {"type": "llm", "mode": "single", "samples": 2, "max_tokens": 20},
                "endpoint": server.endpoint(max_concurrency=1),
            },
            inputs=inputs,
        )
        result = verdicts.run(context)
    assert {body["temperature"] for body in server.asked} == {1.0}  # several replies to one question are sampled
    shown = [(line["prompt_id"], line["answer"], line["sample"], line["score"]) for line in lines_in(tmp_path)]
    assert shown[:6] == [
        ("p0", 0, 0, 1.0), ("p0", 0, 1, 1.0), ("p0", 1, 0, 2.0), ("p0", 1, 1, 2.0), ("p1", 0, 0, 2.0),
        ("p1", 0, 1, 2.0),
    ]  # fmt: skip
    assert "p2" not in {prompt for prompt, *_ in shown}  # both answers are the same
    # Equal texts share their reward; what has no score gets the mean of the others.
    assert rewards_in(tmp_path)[:3] == [1.0, 2.0, 2.0]
    assert rewards_in(tmp_path)[8:11] == [1.0, 3.0, 2.0]
    assert result.metrics["questions"] == len(shown) == 18
    assert result.metrics["unparsed"] == 2 / 18
    assert result.metrics["same_score"] == 1 / 4


def test_a_reply_without_a_verdict_is_a_tie_and_is_counted(tmp_path: Path) -> None:
    def half(body: dict[str, Any]) -> str:
        return "Hm." if parts(body)[0] == "a" else "[[A]]"

    with EndpointServer(half) as server:
        result = ask(tmp_path, server, [["a", "b"], ["c", "d"]])
    assert rewards_in(tmp_path) == [0.25, 0.75, 0.5, 0.5]
    assert result.metrics["unparsed"] == 0.25
    assert result.metrics["order_disagreement"] == 1.0  # of the pair with two verdicts


def test_too_many_replies_without_a_verdict_stop_the_stage_and_cost_nothing_twice(tmp_path: Path) -> None:
    with EndpointServer(lambda body: "Who knows?") as server:
        with pytest.raises(StageError, match=r"4 of 4 questions are without a verdict.*judge\.max_unparsed \(50\.0%\)"):
            ask(tmp_path, server, [["a", "b"], ["c", "d"]])
        assert [line["reply"] for line in lines_in(tmp_path)] == ["Who knows?"] * 4
        result = ask(tmp_path, server, [["a", "b"], ["c", "d"]], max_unparsed=1.0)
    assert len(server.asked) == 4
    assert result.metrics["unparsed"] == 1.0
    assert "order_disagreement" not in result.metrics
    assert rewards_in(tmp_path) == [0.5] * 4


def test_answers_that_are_all_the_same_need_no_question(tmp_path: Path) -> None:
    with EndpointServer(longer) as server:
        result = ask(tmp_path, server, [["a", "a"]])
    assert server.asked == []
    assert result.metrics == {"questions": 0, "too_long": 0}
    assert rewards_in(tmp_path) == [0.5, 0.5]


ANSWERS = [[f"a{i}", f"b{i} b"] for i in range(12)]
"""24 questions: with `few`, shards of 16 and 8."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "ENDPOINT_SHARD", 16)


def test_a_shard_costs_at_most_64_answers() -> None:
    assert verdicts.ENDPOINT_SHARD == 64


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("reply", "kind"), [(Reply(400, "no"), DataError), (Reply(503), TryAgainError), (Reply(401), RecipeError)]
)
def test_a_stage_that_failed_asks_only_what_is_missing(tmp_path: Path, reply: Reply, kind: type[Exception]) -> None:
    def fails(body: dict[str, Any]) -> str | Reply:
        return reply if parts(body)[0] == "a10" else longer(body)

    with EndpointServer(fails) as server:
        with pytest.raises(kind) as caught:
            ask(tmp_path, server, ANSWERS, max_retries=0)
        first = [parts(body) for body in server.asked]
        server.answer = longer
        server.asked.clear()
        result = ask(tmp_path, server, ANSWERS)
    again = [parts(body) for body in server.asked]
    assert len(again) == 24 - 16
    assert not set(again) & set(first[:16])
    assert rewards_in(tmp_path) == [0.0, 1.0] * 12
    assert result.metrics["questions"] == 24
    if kind is DataError:
        assert str(caught.value).startswith("a question about one of the prompts p8 to p11: ")


def test_the_result_does_not_depend_on_the_concurrency(tmp_path: Path) -> None:
    with EndpointServer(longer) as server:
        ask(tmp_path / "one", server, ANSWERS, max_concurrency=1)
        ask(tmp_path / "many", server, ANSWERS, max_concurrency=16)
    for name in ("rewards.parquet", "verdicts.jsonl"):
        one, many = ((tmp_path / run / "stage" / "output.draft-1" / name).read_bytes() for run in ("one", "many"))
        assert one == many


# --- a model on this machine


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from spa_recipes.sandbox.model import build_model

    folder = tmp_path_factory.mktemp("models") / "policy"
    build_model(folder)
    return folder


def ask_model(folder: Path, policy: Path, answers: list[list[str]], **fields: Any) -> Result:
    """Run the stage on made-up answers with the sandbox's model and the settings of the plan."""
    recipe = mini(judge={"type": "llm", "max_tokens": 8, **fields}, sampling={"backend": {"shard_size": 4}})
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(folder / "memo.json"))
    values = plan.stage("llm-judge-1").settings
    settings = {name: v.model_dump(mode="json") if isinstance(v, Section) else v for name, v in values.items()}
    inputs = {**inputs_of(folder, answers), "policy": policy}
    return verdicts.run(context_of(folder / "stage", "verdicts", settings=settings, inputs=inputs))


class Script:
    """An engine that answers question number k with the k-th word of the vocabulary, and may fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[Request] = []
        self._fail_at = fail_at

    def open(self, model: Any, sampling: Any, stop_ids: list[int], **_: Any) -> "Script":
        assert (sampling.temperature, sampling.max_tokens) == (0.0, 8)
        return self

    def stream(self, groups: Any, **_: Any) -> Iterator[tuple[int, list[Completion]]]:
        for number, requests in enumerate(groups):
            if self._fail_at is not None and self._fail_at in [request.sample for request in requests]:
                raise KeyboardInterrupt
            self.asked += requests
            yield number, [Completion(r.prompt_id, r.sample, [10 + r.sample, END], [], "stop") for r in requests]

    def close(self) -> None:
        pass


def scripted(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Script:
    script = Script(**arguments)
    monkeypatch.setattr(generate, "open_engine", script.open)
    return script


def test_the_policy_is_asked_with_its_own_chat_template_and_without_sampling(tmp_path: Path, policy: Path) -> None:
    answers = [["choose the king", "ask for the hedge"], ["save your coins", "you will do wonderfully"]]
    results = [ask_model(tmp_path / name, policy, answers, max_unparsed=1.0) for name in ("one", "two")]
    assert results[0].metrics == results[1].metrics
    assert results[0].metrics["questions"] == 4
    assert results[0].tokens > 0
    assert lines_in(tmp_path / "one") == lines_in(tmp_path / "two")
    assert all(isinstance(line["reply"], str) for line in lines_in(tmp_path / "one"))


def test_a_question_is_rendered_as_a_prompt_of_the_user(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripted(monkeypatch)
    ask_model(tmp_path, policy, [["choose the king", "ask for the hedge"]], max_unparsed=1.0)
    renderer = Renderer(load_tokenizer(policy), max_prompt_length=120, max_length=128)
    question = load_question(tmp_path / "question.jinja")
    prompt: list[Message] = [{"role": "user", "content": "q0"}]
    assert [request.prompt_ids for request in script.asked] == [
        renderer.prompt_ids([{"role": "user", "content": question(prompt, first, second)}])
        for first, second in (("choose the king", "ask for the hedge"), ("ask for the hedge", "choose the king"))
    ]


LONG = "choose the king " * 40
MIXED = [["king", "hedge"], [LONG, "hedge"], ["coins", "beds"], ["save", "spade"], ["choose", "the"]]


def test_a_question_that_is_too_long_is_not_cut_but_a_tie(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripted(monkeypatch)
    monkeypatch.setattr(verdicts, "parse_verdict", lambda text: "first")
    result = ask_model(tmp_path, policy, MIXED)
    assert [request.sample for request in script.asked] == [0, 1, 4, 5, 6, 7, 8, 9]
    decode = Renderer(load_tokenizer(policy), max_prompt_length=120, max_length=128).decode
    replies = [None if k in (2, 3) else decode([10 + k]) for k in range(10)]
    assert [line["reply"] for line in lines_in(tmp_path)] == replies
    assert [line["verdict"] for line in lines_in(tmp_path)][2:4] == ["unparsed"] * 2
    assert (result.metrics["too_long"], result.metrics["unparsed"]) == (2, 0.2)
    notices = (tmp_path / "stage" / "attempts" / "1" / "progress.jsonl").read_text()
    assert "2 of 10 questions do not fit judge.max_length (128, of which 8 are for the verdict)" in notices
    assert "see prompt p1" in notices


def test_too_many_long_questions_stop_before_anything_is_asked(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripted(monkeypatch)
    with pytest.raises(StageError, match=r"^prompt p1: 2 of 10 questions do not fit.*raise judge\.max_length"):
        ask_model(tmp_path, policy, MIXED, max_unparsed=0.1)
    assert script.asked == []


def test_an_interrupted_model_goes_on_with_the_next_shard(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "parse_verdict", lambda text: "first")
    scripted(monkeypatch, fail_at=6)
    with pytest.raises(KeyboardInterrupt):
        ask_model(tmp_path / "a", policy, MIXED)
    second = scripted(monkeypatch)
    ask_model(tmp_path / "a", policy, MIXED)
    assert [request.sample for request in second.asked] == [6, 7, 8, 9]
    ask_model(tmp_path / "b", policy, MIXED)
    assert lines_in(tmp_path / "a") == lines_in(tmp_path / "b")
