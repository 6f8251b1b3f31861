"""The judge in words: its question, its stage against a server that answers by a known rule, and whole runs."""

import json
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.questions import SHIPPED_QUESTION, load_question
from spa_recipes.data.rows import Message, read_jsonl, write_jsonl
from spa_recipes.errors import DataError, RecipeError, StageError, TryAgainError
from spa_recipes.estimates import needs
from spa_recipes.generation import endpoint as client
from spa_recipes.generation.requests import Completion, Request
from spa_recipes.plan import Plan, StageOutput, compile_plan
from spa_recipes.recipe.schema import LlmJudge, Recipe, Section
from spa_recipes.run.preflight import check_inputs
from spa_recipes.run.rundir import RunDir
from spa_recipes.stages import generate, verdicts
from spa_recipes.stages.common import write_table
from spa_recipes.stages.context import Result
from spa_recipes.stages.generate import COMPLETIONS
from spa_recipes.state.digests import DigestMemo
from tests.kit.cli import run_spa
from tests.kit.endpoint_server import EndpointServer, Reply
from tests.kit.models import model_folder
from tests.kit.processes import processes_of, start, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.stages import context_of

SHORT = "{{ prompt }}\n<A>{{ answer_a }}</A>\n<B>{{ answer_b }}</B>"
"""A question that is easy to take apart, and short enough for the sandbox's model."""
KEY = "sk-very-secret-0123456789"
END = 4  # <end> of the sandbox's tokenizer


@pytest.fixture(autouse=True)
def _no_proxy_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)


# --- the question


def template(folder: Path, text: str) -> Path:
    path = folder / "question.jinja"
    path.write_text(text)
    return path


def test_the_shipped_question_shows_the_conversation_and_both_answers_as_they_are() -> None:
    conversation: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Is 1 < 2 & {{ 3 }}?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
    ]
    text = load_question(SHIPPED_QUESTION)(conversation, "the <b>first</b>", "the {{ second }}\n[[A]]")
    for words in ("[system]\nBe kind.", "[user]\nIs 1 < 2 & {{ 3 }}?", "[assistant]\nYes.", "[user]\nSure?"):
        assert words in text
    assert "<answer_A>\nthe <b>first</b>\n</answer_A>" in text
    assert "<answer_B>\nthe {{ second }}\n[[A]]\n</answer_B>" in text
    assert "Variables" not in text  # the comment is for people
    assert not text.startswith("\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ prompt }} {{ answer_a }}", "does not show answer_b"),
        ("hello", "does not show prompt and answer_a and answer_b"),
        ("{{ prompt }} {{ answer_a }} {{ answer_b }} {{ other }}", "'other' is undefined"),
        ("line one\n{% for %}", "line 2: "),
        ("{{ prompt }} {{ answer_a }} {{ answer_b }} {{ 1 / 0 }}", "division by zero"),
        ("{{ prompt }} {{ answer_a }} {{ answer_b }} {{ prompt.__class__.__mro__ }}", "unsafe"),
        ("{{ prompt }} {{ answer_a }} {{ answer_b }} {{ conversation.append(1) }}", "unsafe"),
        ("{{ prompt }} {{ answer_a }} {{ answer_b }} {{ range(10000000) | list }}", "Range too big"),
    ],
)
def test_a_template_that_does_not_work_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = template(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_question(path)
    assert str(caught.value).startswith(f"judge.prompt: {path}: ")
    assert said in str(caught.value)


def test_a_template_that_fails_on_some_prompts_says_so(tmp_path: Path) -> None:
    question = load_question(template(tmp_path, "{{ prompt }}{{ answer_a }}{{ answer_b }}{{ 1 / (prompt | length) }}"))
    with pytest.raises(DataError, match="division by zero"):
        question([{"role": "user", "content": ""}], "a", "b")


# --- the recipe and the plan


def judge(**fields: Any) -> LlmJudge:
    return LlmJudge.model_validate({"type": "llm", **fields})


ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": None}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_name_or_path": "m", "endpoint": ENDPOINT}, "name two judges"),
        ({"revision": "x"}, "judge.revision: needs model_name_or_path"),
        ({"chat_template": "x"}, "judge.chat_template: needs"),
        ({"endpoint": ENDPOINT, "revision": "x"}, "judge.revision: needs"),
        ({"endpoint": ENDPOINT, "max_length": 100}, "judge.max_length: has no effect"),
        ({"max_unparsed": 1.5}, "less than or equal to 1"),
        ({"temperature": 1.0}, "Extra inputs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(mini(judge={"type": "llm", **fields}))


@pytest.mark.parametrize(("fields", "key"), [({}, "model"), ({"max_length": 512}, "judge")])
def test_a_verdict_must_leave_room_for_the_question(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=f"must be smaller than {key}.max_length"):
        Recipe.model_validate(mini(judge={"type": "llm", **fields}))


def plan_of(**fields: Any) -> Plan:
    recipe = mini(judge={"type": "llm", "max_tokens": 8, **fields})
    return compile_plan(Recipe.model_validate(recipe), DigestMemo(Path("nowhere/.digests.json")))


def test_the_policy_of_before_is_asked_and_its_rewards_are_read() -> None:
    plan = plan_of(max_length=200)
    for i, before in enumerate(["seed", "refine-1"], start=1):
        stage = plan.stage(f"llm-judge-{i}")
        assert stage.kind == "verdicts"
        assert stage.inputs["policy"] == StageOutput(before, "model")
        assert stage.inputs["completions"] == StageOutput(f"generate-{i}", "completions.parquet")
        assert stage.rows == [64, 96][i - 1]
        sampling, model = stage.settings["sampling"], stage.settings["model"]
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 1.0, 8)
        assert sampling.backend == plan.stage("generate-1").settings["sampling"].backend
        assert (model.max_length, model.max_prompt_length) == (200, 192)
        assert plan.stage(f"judge-{i}").inputs["rewards"] == StageOutput(f"llm-judge-{i}", "rewards.parquet")
        assert needs(stage, plan).tokens == stage.rows * 8
        assert needs(stage, plan).memory == needs(plan.stage("generate-1"), plan).memory
    assert not any(stage.kind == "score" for stage in plan.stages)


def test_with_an_endpoint_no_model_is_read() -> None:
    stage = plan_of(endpoint=ENDPOINT).stage("llm-judge-1")
    assert stage.kind == "endpoint_verdicts"
    assert set(stage.inputs) == {"completions", "prompts", "question"}
    assert not {"model", "sampling"} & set(stage.settings)


def test_four_answers_are_compared_in_all_pairs() -> None:
    recipe = Recipe.model_validate(mini(judge={"type": "llm", "max_tokens": 8}, sampling={"n": 4}))
    assert compile_plan(recipe, DigestMemo(Path("nowhere/x"))).stage("llm-judge-1").rows == 32 * 12


def key(stage: str = "llm-judge-1", **fields: Any) -> str:
    return plan_of(**fields).stage(stage).key


def test_the_key_holds_what_changes_a_verdict_and_nothing_else(tmp_path: Path) -> None:
    before = key(endpoint=ENDPOINT)
    for field, value in (("max_concurrency", 2), ("timeout_seconds", 1.0), ("max_retries", 0)):
        assert key(endpoint={**ENDPOINT, field: value}) == before
    assert key(endpoint=ENDPOINT, max_unparsed=1.0) == before
    for change in ({"model": "other"}, {"base_url": "http://other/v1"}, {"reasoning_model": True}):
        assert key(endpoint={**ENDPOINT, **change}) != before
    assert key(endpoint=ENDPOINT, max_tokens=9) != before
    assert key() != key(max_length=100)
    first = template(tmp_path, SHORT)
    named = key(endpoint=ENDPOINT, prompt=str(first))
    assert named != before
    second = tmp_path / "moved.jinja"
    shutil.copy(first, second)
    assert key(endpoint=ENDPOINT, prompt=str(second)) == named
    second.write_text(SHORT + "!")
    assert key(endpoint=ENDPOINT, prompt=str(second)) != named
    assert key("generate-1", endpoint=ENDPOINT) == key("generate-1")


def test_a_judge_from_outside_has_its_own_chat_template_and_room_in_the_engine(tmp_path: Path) -> None:
    recipe = mini(judge={"type": "llm", "max_tokens": 8, "max_length": 200, "model_name_or_path": "org/judge"})
    recipe["model"]["chat_template"] = str(template(tmp_path, SHORT))
    recipe["sampling"]["backend"] = {"type": "vllm", "max_model_len": 100}
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo.json"))
    stage = plan.stage("llm-judge-1")
    assert "chat_template_sha256" in plan.stage("generate-1").settings
    assert "chat_template_sha256" not in stage.settings
    assert stage.settings["model"].chat_template is None
    assert stage.settings["sampling"].backend.max_model_len is None
    assert str(stage.inputs["model"]) == "org/judge"
    assert "policy" not in stage.inputs
    with pytest.raises(RecipeError, match=r"^judge\.chat_template: no file nowhere"):
        plan_of(model_name_or_path="org/judge", chat_template="nowhere")


def test_a_missing_prompt_file_is_told_when_the_plan_is_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"judge\.prompt: .*nowhere\.jinja: the file cannot be read"):
        plan_of(prompt=str(tmp_path / "nowhere.jinja"))


# --- before the first stage


POSITIONS = {"max_position_embeddings": 256}


def test_a_judge_from_outside_is_looked_at_before_the_first_stage(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mini")
    check_inputs(plan_of(model_name_or_path=str(model_folder(tmp_path / "good", POSITIONS))), run)
    with pytest.raises(DataError, match=r"^judge\.model_name_or_path: .*/none: no such model folder"):
        check_inputs(plan_of(model_name_or_path=str(tmp_path / "none")), run)
    small = str(model_folder(tmp_path / "small", {"max_position_embeddings": 100}))
    with pytest.raises(RecipeError, match=r"judge\.max_length \(128\) is more than .*set judge\.max_length to 100"):
        check_inputs(plan_of(model_name_or_path=small), run)
    check_inputs(plan_of(model_name_or_path=small, max_length=100), run)
    bare = str(model_folder(tmp_path / "bare", POSITIONS, tokenizer_config__json="{}"))
    with pytest.raises(DataError, match=r"no chat template; name a file with one in judge\.chat_template"):
        check_inputs(plan_of(model_name_or_path=bare), run)
    check_inputs(plan_of(model_name_or_path=bare, chat_template=str(template(tmp_path, "{{ messages }}"))), run)


def test_a_policy_that_has_no_room_for_the_questions_is_found_before_the_first_stage(tmp_path: Path) -> None:
    folder = str(model_folder(tmp_path / "policy", POSITIONS))
    recipe = mini(sft=None, evaluation={"reward": "none"}, judge={"type": "llm", "max_tokens": 8, "max_length": 257})
    recipe["model"]["model_name_or_path"] = folder
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo.json"))
    with pytest.raises(RecipeError, match=r"judge\.max_length \(257\) is more than"):
        check_inputs(plan, RunDir(tmp_path / "runs" / "mini"))


def test_a_missing_key_is_told_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, run = plan_of(endpoint={**ENDPOINT, "api_key_env": "SPA_TEST_KEY"}), RunDir(tmp_path / "runs" / "mini")
    monkeypatch.delenv("SPA_TEST_KEY", raising=False)
    with pytest.raises(RecipeError, match="SPA_TEST_KEY is not set"):
        check_inputs(plan, run)
    monkeypatch.setenv("SPA_TEST_KEY", KEY)
    check_inputs(plan, run)


# --- the stage


def parts(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a question that was made with SHORT."""
    (found,) = re.findall(r"<A>(.*)</A>\n<B>(.*)</B>", body["messages"][-1]["content"])
    return found[0], found[1]


def longer(body: dict[str, Any]) -> str:
    """Prefers the answer with more words."""
    first, second = (len(text.split()) for text in parts(body))
    return "I count. " + ("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")


def inputs_of(folder: Path, answers: list[list[str]]) -> dict[str, Path]:
    """Files with made-up answers to prompts `q0`, `q1`, ..., and SHORT as the question."""
    folder.mkdir(exist_ok=True)
    prompts = [{"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": f"q{i}"}]} for i in range(len(answers))]
    write_jsonl(folder / "prompts.jsonl", prompts)
    rows = [
        {
            "item": i, "prompt_id": f"p{i}", "sample": k, "prompt_ids": [1], "response_ids": [2], "text": text,
            "logps": [-1.0], "finish_reason": "stop",
        }
        for i, texts in enumerate(answers)
        for k, text in enumerate(texts)
    ]  # fmt: skip
    write_table(folder / "completions.parquet", pa.Table.from_pylist(rows, schema=COMPLETIONS))
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
    table = pq.read_table(folder / "stage" / "output.draft" / "rewards.parquet")
    assert table.column_names == ["item", "sample", "reward"]
    return [float(value) for value in table["reward"].to_pylist()]


def lines_in(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "stage" / "output.draft" / "verdicts.jsonl")


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


ANSWERS = [[f"a{i}", f"b{i} b"] for i in range(80)]
"""160 questions: shards of 64, 64 and 32."""


@pytest.mark.parametrize(
    ("reply", "kind"), [(Reply(400, "no"), DataError), (Reply(503), TryAgainError), (Reply(401), RecipeError)]
)
def test_a_stage_that_failed_asks_only_what_is_missing(tmp_path: Path, reply: Reply, kind: type[Exception]) -> None:
    def fails(body: dict[str, Any]) -> str | Reply:
        return reply if parts(body)[0] == "a40" else longer(body)

    with EndpointServer(fails) as server:
        with pytest.raises(kind) as caught:
            ask(tmp_path, server, ANSWERS, max_retries=0)
        first = [parts(body) for body in server.asked]
        server.answer = longer
        server.asked.clear()
        result = ask(tmp_path, server, ANSWERS)
    again = [parts(body) for body in server.asked]
    assert len(again) == 160 - 64
    assert not set(again) & set(first[:64])
    assert rewards_in(tmp_path) == [0.0, 1.0] * 80
    assert result.metrics["questions"] == 160
    if kind is DataError:
        assert str(caught.value).startswith("a question about one of the prompts p32 to p63: ")


def test_the_result_does_not_depend_on_the_concurrency(tmp_path: Path) -> None:
    with EndpointServer(longer) as server:
        ask(tmp_path / "one", server, ANSWERS, max_concurrency=1)
        ask(tmp_path / "many", server, ANSWERS, max_concurrency=16)
    for name in ("rewards.parquet", "verdicts.jsonl"):
        one, many = ((tmp_path / run / "stage" / "output.draft" / name).read_bytes() for run in ("one", "many"))
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


# --- whole runs

RUN = {"data": {"prompts_per_iteration": [48], "heldout": 0}, "evaluation": {"enabled": False, "reward": "none"}}


def stage_folder(home: Path, run: str, name: str) -> Path:
    (found,) = (home / "runs" / run / "stages").glob(f"[0-9][0-9]-{name}-????????")
    return found


def metrics(home: Path, run: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage_folder(home, run, name) / "manifest.json").read_text())["metrics"]
    return found


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
    found = metrics(home, "own", "llm-judge-1")
    assert found["questions"] > 64
    assert 0 <= metrics(home, "own", "judge-1")["accuracy_vs_gold"] <= 1
    lines = read_jsonl(stage_folder(home, "own", "llm-judge-1") / "output" / "verdicts.jsonl")
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
    """SIGKILL in the second shard; the server prefers longer answers, so every label can be checked."""
    release = threading.Event()
    shards = "runs/served/stages/*llm-judge-1*/work/shards/replies/*.parquet"

    def answer(body: dict[str, Any]) -> str:
        if list(home.glob(shards)):
            release.wait(120)  # until the run is dead
        return longer(body)

    with EndpointServer(answer, key=KEY) as server:
        words = {"type": "llm", "prompt": "question.jinja", "endpoint": server.endpoint(api_key_env="SPA_TEST_KEY")}
        write_recipe(home / "served.yaml", mini(**RUN, name="served", judge=words))
        missing = run_spa(home, "run", "served.yaml")
        assert missing.returncode == 2
        assert "SPA_TEST_KEY is not set" in missing.stderr
        running = start(home, "run", "served.yaml", SPA_TEST_KEY=KEY)
        wait_for(lambda: list(home.glob(shards)) and len(server.asked) > 64)
        running.send_signal(signal.SIGKILL)
        running.wait()
        wait_for(lambda: not processes_of(home))
        release.set()
        before = [parts(body) for body in server.asked]
        done = run_spa(home, "resume", "served", SPA_TEST_KEY=KEY)
        assert done.returncode == 0, done.stderr + done.stdout
        after = [parts(body) for body in server.asked[len(before) :]]
    questions = metrics(home, "served", "llm-judge-1")["questions"]
    assert len(after) == questions - 64
    assert not set(before[:64]) & set(after)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert not [path for path in home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr
    pairs = read_jsonl(stage_folder(home, "served", "judge-1") / "output" / "pairs.jsonl")
    judgments = read_jsonl(stage_folder(home, "served", "judge-1") / "output" / "judgments.jsonl")
    assert len(pairs) > 40
    for pair, judgment in zip(pairs, judgments, strict=True):
        chosen, rejected = (len(pair[side][0]["content"].split()) for side in ("chosen", "rejected"))
        assert chosen >= rejected
        assert judgment["tied"] == (chosen == rejected)
        assert judgment["margin"] == (0.0 if chosen == rejected else 1.0)
    assert metrics(home, "served", "llm-judge-1")["order_disagreement"] == 0.0
