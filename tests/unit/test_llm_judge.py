"""The judge in words: its question, its stage against a server that answers by a known rule, and whole runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.data.questions import FORMS, load_question
from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.estimates import needs
from spa_recipes.plan import Plan, StageOutput, compile_plan
from spa_recipes.recipe.schema import LlmJudge, Recipe
from spa_recipes.run.preflight import check_inputs
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo
from tests.kit.llm_judge import KEY, SHORT, template
from tests.kit.models import model_folder
from tests.kit.plans import plan_of
from tests.kit.recipes import mini

# --- the question


def test_the_shipped_question_shows_the_conversation_and_both_answers_as_they_are() -> None:
    conversation: list[Message] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Is 1 < 2 & {{ 3 }}?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
    ]
    text = load_question(FORMS["pairs"].shipped)(conversation, "the <b>first</b>", "the {{ second }}\n[[A]]")
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
        ({"chat_template_kwargs": {"x": 1}}, "judge.chat_template_kwargs: needs"),
        ({"model_name_or_path": "m", "chat_template_kwargs": {"messages": 1}}, "must not name messages"),
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


def judged_plan(**fields: Any) -> Plan:
    """The plan of the miniature recipe with a judge in words."""
    return plan_of(judge={"type": "llm", "max_tokens": 8, **fields})


def test_the_policy_of_before_is_asked_and_its_rewards_are_read() -> None:
    plan = judged_plan(max_length=200)
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
        asked, sampled = needs(stage, plan).memory, needs(plan.stage("generate-1"), plan).memory
        assert asked is not None
        assert sampled is not None
        assert asked.weights == sampled.weights
    assert not any(stage.kind == "score" for stage in plan.stages)


def test_with_an_endpoint_no_model_is_read() -> None:
    stage = judged_plan(endpoint=ENDPOINT).stage("llm-judge-1")
    assert stage.kind == "endpoint_verdicts"
    assert set(stage.inputs) == {"completions", "prompts", "question"}
    assert not {"model", "sampling"} & set(stage.settings)


def test_four_answers_are_compared_in_all_pairs() -> None:
    recipe = Recipe.model_validate(mini(judge={"type": "llm", "max_tokens": 8}, sampling={"n": 4}))
    assert compile_plan(recipe, DigestMemo(Path("nowhere/x"))).stage("llm-judge-1").rows == 32 * 12


def key(stage: str = "llm-judge-1", **fields: Any) -> str:
    return judged_plan(**fields).stage(stage).key


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
    recipe["model"]["chat_template_kwargs"] = {"enable_thinking": True}
    recipe["judge"]["chat_template_kwargs"] = {"enable_thinking": False}
    recipe["sampling"]["backend"] = {"type": "vllm", "max_model_len": 100}
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo.json"))
    stage = plan.stage("llm-judge-1")
    assert "chat_template_sha256" in plan.stage("generate-1").settings
    assert "chat_template_sha256" not in stage.settings
    assert stage.settings["model"].chat_template is None
    assert stage.settings["model"].chat_template_kwargs == {"enable_thinking": False}
    assert plan.stage("generate-1").settings["model"].chat_template_kwargs == {"enable_thinking": True}
    assert stage.settings["sampling"].backend.max_model_len is None
    assert str(stage.inputs["model"]) == "org/judge"
    assert "policy" not in stage.inputs
    with pytest.raises(RecipeError, match=r"^judge\.chat_template: no file nowhere"):
        judged_plan(model_name_or_path="org/judge", chat_template="nowhere")


def test_a_missing_prompt_file_is_told_when_the_plan_is_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"judge\.prompt: .*nowhere\.jinja: the file cannot be read"):
        judged_plan(prompt=str(tmp_path / "nowhere.jinja"))


# --- before the first stage


POSITIONS = {"max_position_embeddings": 256}


def test_a_judge_from_outside_is_looked_at_before_the_first_stage(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mini")
    check_inputs(judged_plan(model_name_or_path=str(model_folder(tmp_path / "good", POSITIONS))), run)
    with pytest.raises(DataError, match=r"^judge\.model_name_or_path: .*/none: no such model folder"):
        check_inputs(judged_plan(model_name_or_path=str(tmp_path / "none")), run)
    small = str(model_folder(tmp_path / "small", {"max_position_embeddings": 100}))
    with pytest.raises(RecipeError, match=r"judge\.max_length \(128\) is more than .*set judge\.max_length to 100"):
        check_inputs(judged_plan(model_name_or_path=small), run)
    check_inputs(judged_plan(model_name_or_path=small, max_length=100), run)
    bare = str(model_folder(tmp_path / "bare", POSITIONS, tokenizer_config__json="{}"))
    with pytest.raises(DataError, match=r"no chat template; name a file with one in judge\.chat_template"):
        check_inputs(judged_plan(model_name_or_path=bare), run)
    check_inputs(judged_plan(model_name_or_path=bare, chat_template=str(template(tmp_path, "{{ messages }}"))), run)


def test_a_policy_that_has_no_room_for_the_questions_is_found_before_the_first_stage(tmp_path: Path) -> None:
    folder = str(model_folder(tmp_path / "policy", POSITIONS))
    recipe = mini(sft=None, evaluation={"reward": "none"}, judge={"type": "llm", "max_tokens": 8, "max_length": 257})
    recipe["model"]["model_name_or_path"] = folder
    plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo.json"))
    with pytest.raises(RecipeError, match=r"judge\.max_length \(257\) is more than"):
        check_inputs(plan, RunDir(tmp_path / "runs" / "mini"))


def test_a_missing_key_is_told_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, run = judged_plan(endpoint={**ENDPOINT, "api_key_env": "SPA_TEST_KEY"}), RunDir(tmp_path / "runs" / "mini")
    monkeypatch.delenv("SPA_TEST_KEY", raising=False)
    with pytest.raises(RecipeError, match="SPA_TEST_KEY is not set"):
        check_inputs(plan, run)
    monkeypatch.setenv("SPA_TEST_KEY", KEY)
    check_inputs(plan, run)
