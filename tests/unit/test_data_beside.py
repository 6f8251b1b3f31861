"""What stands beside the text of messages: tools and thoughts go to the chat template, weights to the mask."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import Message, prompt_id
from spa_recipes.data.sources import read_conversations, read_pairs, read_prompts
from spa_recipes.errors import DataError
from tests.kit.chat_templates import FAMILIES, tokenizer_of
from tests.kit.data import GOOD, source
from tests.kit.data_forms import assistant, system, user, write_jsonl, write_parquet

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WITH_TOOLS = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t.function.name }} {% endfor %}<|im_end|>\n{% endif %}"
)
WITH_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content is defined and loop.last %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def renderer(template: str | None = None, family: str = "qwen2.5") -> Renderer:
    tokenizer = tokenizer_of(FAMILIES[family])
    tokenizer.chat_template = template or tokenizer.chat_template
    return Renderer(tokenizer, max_prompt_length=500, max_length=1000, notice=lambda text: None)


def learned(r: Renderer, messages: list[Message]) -> str:
    ids, mask = r.conversation(messages)
    return str(r.tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one]))


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], '[{"name": "weather"}]', ['{"name": "weather"}']])
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_tools_go_to_the_template(tools: Any, write: Any, tmp_path: Path) -> None:
    path = write(tmp_path, [{**GOOD, "tools": tools, "system": "Be brief."}])
    loaded = read_pairs(source(path))
    assert "tools" in loaded.columns
    (pair,) = loaded.rows
    assert pair["prompt"][0]["tools"][0]["function"]["name"] == "weather"
    r = renderer(WITH_TOOLS + renderer().tokenizer.chat_template)
    text = r.tokenizer.decode(r.prompt_ids(pair["prompt"]))
    assert text.startswith("<|im_start|>tools\nweather <|im_end|>\n<|im_start|>system\nBe brief.")
    assert pair["prompt_id"] != prompt_id([system("Be brief."), user("What?")])


def test_tools_and_thoughts_that_the_template_does_not_read_are_refused() -> None:
    r = renderer()
    with pytest.raises(DataError, match=r"does not read `tools`; leave them out by columns: \{ignore: \[tools\]\}"):
        r.prompt_ids([{**user("q"), "tools": [TOOL]}])
    for key in ("reasoning_content", "reasoning", "thinking", "tool_calls"):
        message: Any = {**assistant("a"), key: "hm" if key != "tool_calls" else [TOOL]}
        with pytest.raises(DataError, match=f"does not read `{key}` of a message; write it into the text"):
            r.prompt_ids([user("q"), message, user("r")])
    # `enable_thinking` is another variable.
    switched = "{% if enable_thinking %}{% endif %}" + renderer().tokenizer.chat_template
    with pytest.raises(DataError, match="does not read `thinking`"):
        renderer(switched).prompt_ids([user("q"), {**assistant("a"), "thinking": "hm"}, user("r")])


def test_thoughts_are_learned_as_the_template_writes_them(tmp_path: Path) -> None:
    talk = [user("q"), {**assistant("a"), "reasoning_content": "hm"}]
    (row,) = read_conversations(source(write_jsonl(tmp_path, [{"messages": talk}]))).rows
    assert learned(renderer(WITH_THOUGHTS), row["messages"]) == "<think>\nhm\n</think>\n\na<|im_end|>"
    given = {"prompt": [user("q")], "completion": [talk[1]]}
    (again,) = read_conversations(source(write_jsonl(tmp_path, [given]))).rows
    assert again["messages"] == row["messages"]


MARKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [None, MARKING])
def test_answers_of_weight_0_are_not_learned(template: str | None, tmp_path: Path) -> None:
    talk: list[Any] = [user("q"), {**assistant("one"), "weight": 0}, user("r"), {**assistant("two"), "weight": 1}]
    (row,) = read_conversations(source(write_jsonl(tmp_path, [{"messages": talk}]))).rows
    assert learned(renderer(template), row["messages"]) == "two<|im_end|>"
    talk[1]["weight"], talk[3]["weight"] = None, 0
    (row,) = read_conversations(source(write_jsonl(tmp_path, [{"messages": talk}]))).rows
    assert learned(renderer(template), row["messages"]) == "one<|im_end|>"
    (prompt,) = read_prompts(source(write_jsonl(tmp_path, [{"messages": talk}]))).rows
    assert prompt["prompt"] == [user("q"), assistant("one"), user("r")]
