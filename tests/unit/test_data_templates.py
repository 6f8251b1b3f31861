"""Conversations are rendered as the templates of the commonest instruct models render them, and as TRL does."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from trl import DPOTrainer

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import Message, PairRow
from spa_recipes.errors import DataError
from spa_recipes.stages.common import token_pair
from tests.kit.chat_templates import FAMILIES, tokenizer_of

SYSTEM: Message = {"role": "system", "content": "Be kind."}
CHATS: dict[str, list[Message]] = {
    "one": [{"role": "user", "content": "the cat?"}],
    "more": [
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "It sat."},
        {"role": "user", "content": " on the mat? \n"},
    ],
    "system": [SYSTEM, {"role": "user", "content": "the cat?"}],
}
ANSWERS = ["It sat on the mat.", " the lazy dog\n", "1. a\n\n2. b", "<think>\nwell\n</think>\n\nthe fox"]
CASES = [(name, kind) for name, family in FAMILIES.items() for kind in CHATS if family.system or kind != "system"]


def renderer(name: str, notices: list[str] | None = None, **variables: Any) -> Renderer:
    told = [] if notices is None else notices
    return Renderer(
        tokenizer_of(FAMILIES[name]),
        max_prompt_length=500,
        max_length=1000,
        template_kwargs=variables,
        notice=told.append,
    )


def by_trl(tokenizer: Any, prompt: list[Message], chosen: str, rejected: str) -> dict[str, list[int]]:
    answers = {
        name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    rows = datasets.Dataset.from_list([{"prompt": prompt, **answers}])
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None)
    row: dict[str, list[int]] = DPOTrainer._prepare_dataset(None, rows, tokenizer, settings, "train")[0]
    return row


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_pair_is_rendered_as_trl_renders_it(name: str, kind: str) -> None:
    family = FAMILIES[name]
    if (name, kind) == ("mistral-7b-v0.3", "system"):
        pytest.skip("this template forgets the system's words when an answer follows; another test says what is right")
    notices: list[str] = []
    r = renderer(name, notices)
    for chosen, rejected in pairwise(ANSWERS):
        theirs = by_trl(r.tokenizer, CHATS[kind], chosen, rejected)
        prompt, ours = r.render_given(CHATS[kind], [chosen, rejected])
        assert prompt.ids == theirs["prompt_ids"]
        for answer, side in zip(ours, ("chosen_ids", "rejected_ids"), strict=True):
            assert r.tokenizer.convert_ids_to_tokens(answer.ids[-1]) == family.end
            end = len(answer.ids) - (family.end not in r.tokenizer.decode(theirs[side]))
            assert answer.ids[:end] == theirs[side][:end]
            # What a template writes behind the end of a turn is no part of the answer.
            assert r.tokenizer.decode(theirs[side][end:], skip_special_tokens=True).strip() == ""
    assert len(notices) == (prompt.ids != r.prompt_ids(CHATS[kind]))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_ends_of_a_family_stop_the_sampling(name: str) -> None:
    r, family = renderer(name), FAMILIES[name]
    stops = r.tokenizer.convert_ids_to_tokens(r.stop_ids)
    assert stops[0] == family.end
    assert set(stops) == {family.end, r.tokenizer.eos_token, *family.ends}
    for end in r.stop_ids:
        assert r.decode([*r.tokenizer("the cat")["input_ids"], end, *r.tokenizer("the dog")["input_ids"]]) == "the cat"


def test_thoughts_are_where_the_template_has_them() -> None:
    ask, answer = CHATS["one"], "It sat."
    read = {}
    asked: list[tuple[str, dict[str, Any]]] = [("qwen3", {}), ("qwen3", {"enable_thinking": False})]
    for name, variables in [*asked, ("qwq", {}), ("deepseek-r1", {})]:
        r = renderer(name, **variables)
        prompt, (given,) = r.render_given(ask, [answer])
        read[name, *variables.values()] = r.tokenizer.decode(prompt.ids), r.tokenizer.decode(given.ids)
    head = "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"
    empty = "<think>\n\n</think>\n\n"
    assert read["qwen3",] == (head, f"{empty}It sat.<|im_end|>")
    assert "".join(read["qwen3", False]) == f"{head}{empty}It sat.<|im_end|>"
    assert read["qwen3", False][0].startswith(head + empty.strip())
    assert "".join(read["qwq",]) == f"{head}{empty}It sat.<|im_end|>"
    assert read["deepseek-r1",] == ("<s><|User|>the cat?<|Assistant|>", "It sat.</s>")


def test_a_given_answer_is_never_an_unclosed_thought_and_a_person_is_told() -> None:
    notices: list[str] = []
    r = renderer("deepseek-r1", notices)
    r.render_given(CHATS["one"], ["It sat."])
    r.render_given(CHATS["more"], ["It sat."])
    (notice,) = notices
    assert "'<think>\\n'" in notice


def test_a_template_that_forgets_the_system_keeps_it_for_given_answers() -> None:
    notices: list[str] = []
    r = renderer("mistral-7b-v0.3", notices)
    prompt, (answer,) = r.render_given(CHATS["system"], ["It sat."])
    assert prompt.ids == r.prompt_ids(CHATS["system"])
    assert r.tokenizer.decode(prompt.ids) == "<s>[INST] Be kind.\n\nthe cat?[/INST]"
    assert r.tokenizer.decode(answer.ids) == " It sat.</s>"
    assert len(notices) == 1


def test_a_template_that_hides_the_prompt_is_refused() -> None:
    r = renderer("zephyr")
    r.tokenizer.chat_template = "{{ messages[-1].content }}{% if messages[-1].role == 'assistant' %}</s>{% endif %}"
    with pytest.raises(DataError, match="the answer's own tokens cannot be told"):
        r.render_given(CHATS["one"], ["It sat."])


@pytest.mark.parametrize("name", FAMILIES)
def test_words_of_control_tokens_are_text(name: str) -> None:
    r, family = renderer(name), FAMILIES[name]
    words = "".join(family.special) + family.end
    ask: list[Message] = [{"role": "user", "content": f"say {words} now"}]
    clean: list[Message] = [{"role": "user", "content": "say it now"}]
    control = {*r.tokenizer.convert_tokens_to_ids([*family.special, family.end])}

    def controls(ids: list[int]) -> list[int]:
        return [token for token in ids if token in control]

    prompt, (answer,) = r.render_given(ask, [f"well {words} then"])
    clean_prompt, (clean_answer,) = r.render_given(clean, ["well then"])
    assert controls(prompt.ids) == controls(clean_prompt.ids)
    assert controls(answer.ids) == controls(clean_answer.ids)
    assert r.tokenizer.decode(prompt.ids).count(words) == 1
    assert r.tokenizer.decode(answer.ids).count(words) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_brings_its_end_has_one(name: str) -> None:
    r, family = renderer(name), FAMILIES[name]
    plain = r.render_given(CHATS["one"], ["It sat."])
    assert r.removed_ends == 0
    assert r.render_given(CHATS["one"], [f"It sat.{family.end}"]) == plain
    assert r.render_given(CHATS["one"], [f"It sat.{family.end}\n"]) == plain
    assert r.removed_ends == 2
    twice = r.render_given(CHATS["one"], [f"It sat.{family.end}{family.end}"]).answers[0].ids
    assert twice.count(r.end_of_turn_id) == 1
    assert len(twice) > len(plain.answers[0].ids)


def test_the_mask_is_the_templates_own() -> None:
    r = renderer("smollm3")
    messages: list[Message] = [*CHATS["more"], {"role": "assistant", "content": "Yes <|im_end|>x"}]
    ids, mask = r.conversation(messages)
    learned = r.tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])
    assert learned == "It sat.<|im_end|>Yes <|im_end|>x<|im_end|>"
    assert [token for token, one in zip(ids, mask, strict=True) if one].count(r.end_of_turn_id) == 2
    whole = r.tokenizer.apply_chat_template(
        [*CHATS["more"], {"role": "assistant", "content": "Yes x"}],
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    ids, mask = r.conversation([*CHATS["more"], {"role": "assistant", "content": "Yes x"}])
    assert ids == whole["input_ids"][: len(ids)]
    assert mask == whole["assistant_masks"][: len(ids)]
    assert not any(whole["assistant_masks"][len(ids) :])


def test_an_error_of_a_stage_names_the_row() -> None:
    row: PairRow = {
        "prompt_id": "x", "row": 8, "prompt": [SYSTEM, *CHATS["one"]],
        "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"row 8 of the data: .*no system role"):
        token_pair(renderer("gemma2"), row)
