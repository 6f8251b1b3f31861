"""Output that nothing can be learned from: counted, shown, refused above a stated share, and never labelled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spa_recipes.data.rows import write_jsonl
from spa_recipes.errors import DataError, StageError
from spa_recipes.generation.requests import Completion, Request
from spa_recipes.plan import compile_plan
from spa_recipes.plan.keys import stage_key
from spa_recipes.recipe.schema import Recipe
from spa_recipes.stages import generate
from spa_recipes.state.digests import DigestMemo
from tests.kit.recipes import mini
from tests.kit.stages import context_of, judged

MODEL = {"model_name_or_path": "m", "max_length": 128, "max_prompt_length": 48}


class FakeRenderer:
    """Token ids are characters; 0 ends a turn."""

    stop_ids = (0,)

    def prompt_ids(self, messages: Any) -> list[int]:
        return [1]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids if token)


@pytest.fixture
def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the generate stage with given texts; one that ends with `...` was cut at max_tokens."""
    asked: list[int] = []

    def call(texts: list[list[str]], **sampling: Any) -> dict[str, Any]:
        def open_engine(*_: Any, **__: Any) -> Any:
            def stream(groups: Iterable[Sequence[Request]], **_: Any) -> Iterator[tuple[int, list[Completion]]]:
                (requests,) = groups
                asked.append(len(requests))
                answers = [text for group in texts for text in group]
                completions = [
                    Completion(
                        request.prompt_id,
                        request.sample,
                        [ord(c) for c in text] + ([] if text.endswith("...") else [0]),
                        [-1.0] * (len(text) + (not text.endswith("..."))),
                        "length" if text.endswith("...") else "stop",
                    )
                    for request, text in zip(requests, answers, strict=True)
                ]
                yield 0, completions

            return SimpleNamespace(stream=stream, close=lambda: None)

        monkeypatch.setattr(generate, "open_engine", open_engine)
        monkeypatch.setattr(generate, "renderer_of", lambda model: FakeRenderer())
        write_jsonl(tmp_path / "prompts.jsonl", [{"prompt_id": f"p{i}", "prompt": []} for i in range(len(texts))])
        settings = {
            "model": MODEL,
            "sampling": {"n": len(texts[0]), "check_logps": 0, **sampling},
            "seed": 1,
            "iteration": 1,
        }
        inputs = {"policy": tmp_path / "m", "prompts": tmp_path / "prompts.jsonl"}
        result = generate.run(context_of(tmp_path / "stage", "generate", settings=settings, inputs=inputs))
        return {**result.metrics, "asked": sum(asked)}

    return call


OFF = {"max_empty": 1.0, "max_identical": 1.0}


def test_degenerate_answers_are_counted(sampled: Callable[..., Any]) -> None:
    metrics = sampled([["a", "b"], ["", " \n"], ["same", "same"], ["long...", "c"]], **OFF)
    assert (metrics["empty"], metrics["identical"], metrics["length_cut"]) == (2 / 8, 1 / 4, 1 / 8)


@pytest.mark.parametrize(
    ("texts", "sampling", "line"),
    [
        (
            [["a", ""], ["a", "b"], ["", "\t"], ["a", "b"]],
            {},
            "37.5% of the answers are empty, more than sampling.max_empty (10.0%) allows; see prompts p0 and p2; look "
            "at model.chat_template and at the training before this stage, or raise sampling.max_empty",
        ),
        (
            [["a", "a"], ["b", "b"], ["c", "d"]],
            {},
            "66.7% of the prompts got one answer every time, more than sampling.max_identical (50.0%) allows; see "
            "prompts p0 and p1; raise sampling.temperature, or raise sampling.max_identical",
        ),
        (
            [["a", "b"], ["c...", "d"]],
            {"max_cut": 0.2},
            "25.0% of the answers were cut at max_tokens, more than sampling.max_cut (20.0%) allows; see prompt p1; "
            "raise sampling.max_tokens, or raise sampling.max_cut",
        ),
    ],
)
def test_above_the_limit_the_stage_stops(
    sampled: Callable[..., Any], tmp_path: Path, texts: list[list[str]], sampling: dict[str, float], line: str
) -> None:
    with pytest.raises(StageError) as caught:
        sampled(texts, **sampling)
    assert str(caught.value) == line
    assert not (tmp_path / "stage" / "output").exists()
    # A raised limit takes the shards that are there: nothing is sampled again.
    metrics = sampled(texts, **OFF, max_cut=1.0)
    assert metrics["asked"] == sum(map(len, texts))


def test_at_the_limit_it_does_not(sampled: Callable[..., Any]) -> None:
    assert sampled([["a", ""], ["b", "b"]], max_empty=0.25, max_identical=0.5)["empty"] == 0.25


def test_every_answer_may_be_cut_by_default(sampled: Callable[..., Any]) -> None:
    """The paper's 300 tokens cut many answers."""
    assert sampled([["a...", "b..."]])["length_cut"] == 1.0


def test_the_limits_change_no_key() -> None:
    def keys(**sampling: float) -> list[str]:
        recipe = Recipe.model_validate(mini(sampling=sampling))
        plan = compile_plan(recipe, DigestMemo(Path("nowhere/memo")))
        assert all(stage.key == stage_key(stage.material) for stage in plan.stages)
        return [stage.key for stage in plan.stages]

    assert keys() == keys(max_empty=0.5, max_identical=0.9, max_cut=0.3)


def test_an_empty_answer_is_never_part_of_a_pair(tmp_path: Path) -> None:
    """Whatever its reward; the others are judged without it where two different ones are left."""
    texts = [["a", "", "b"], ["a", "", "a"], ["a", " ", "\n"], ["a", "b", "c"]]
    policy, reference = [[-5.0, -1.0, -9.0]] * 4, [[-7.0, -90.0, -7.0]] * 4
    judgments, pairs, metrics = judged(tmp_path, texts, policy, reference)
    assert [j["item"] for j in judgments] == [0, 3]
    assert [(j["chosen"], j["rejected"]) for j in judgments] == [(0, 2), (1, 2)]
    assert len(judgments[0]["rewards"]) == 3  # indices are those of the answers
    assert judgments[0]["margin"] == pytest.approx(0.4)
    assert pairs[0]["chosen"][0]["content"] == "a"
    assert pairs[0]["chosen_score"] == pytest.approx(0.2)
    assert metrics["dropped_empty"] == 2
    assert metrics["dropped_identical"] == 0


def test_empty_answers_have_no_say_in_the_length_penalty(tmp_path: Path) -> None:
    judge = {"type": "implicit_reward", "beta": 0.1, "length_penalty": "balanced"}
    policy, reference = [[-5.0, -1.0, -9.0], [-5.0, -2.0, -9.0]], [[-7.0, -3.0, -2.0], [-7.0, -6.0, -2.0]]
    _, _, with_empty = judged(tmp_path / "1", [["a", "b", ""], ["c", "d", ""]], policy, reference, judge=judge)
    _, _, without = judged(
        tmp_path / "2", [["a", "b"], ["c", "d"]], [p[:2] for p in policy], [r[:2] for r in reference], judge=judge
    )
    assert with_empty["length_penalty"] == without["length_penalty"]


def test_nothing_but_empty_answers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every prompt has empty answers \(0 prompts with the same answers, 2 with"):
        judged(tmp_path, [["", ""], ["a", ""]], [[-1.0, -1.0]] * 2, [[-1.0, -1.0]] * 2)


def test_ties_are_shown(tmp_path: Path) -> None:
    from spa_recipes.report.figures import line
    from spa_recipes.state.stagedir import Manifest
    from tests.kit.state import FIELDS

    _, _, metrics = judged(tmp_path, [["a", "b"]] * 3, [[-1.0, -1.0]] * 3, [[-1.0, -1.0]] * 3)
    judge, generate = ({**FIELDS, "files": {}, "kind": kind} for kind in ("judge", "generate"))
    shown = line(Manifest(**{**judge, "metrics": {**metrics, "dropped_empty": 4}}))
    for expected in ("ties 3", "dropped as empty 4"):
        assert expected in shown
    assert line(Manifest(**{**generate, "metrics": {"empty": 0.25}})) == "empty 25.0%"
