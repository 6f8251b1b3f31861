"""One rendering for every stage, on tokenizers of several makes."""

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from spa_recipes.data import chat as rendering
from spa_recipes.data import templating
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import Message
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import SandboxSource
from spa_recipes.sandbox.model import build_model

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No special token ends a turn; the space behind the colon merges with a response's first word.
SPACED = (
    "{% for m in messages %}{{ '### ' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
)
PLAIN = SPACED.replace("': ' +", "':\n' +").replace("assistant: ", "assistant:\n")
TEMPLATES = {"chatml": CHATML, "zephyr": ZEPHYR, "with_bos": WITH_BOS, "plain": PLAIN, "spaced": SPACED}
LINES = [
    "The cat sat on the mat.",
    "the quick brown fox jumps over the lazy dog",
    "user assistant system ### :",
    "Be kind.",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose post-processor adds BOS, as Llama's does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(LINES * 4, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrap(core, template)


def word_level(template: str | None) -> PreTrainedTokenizerFast:
    words = sorted(set(" ".join(LINES).split()) | set(".:#?|"))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(core, template)


def wrap(core: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents: str, system: str | None = None) -> list[Message]:
    head: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def renderer(
    template: str = "chatml", make: Any = byte_level, max_prompt_length: int = 500, max_length: int = 1000
) -> Renderer:
    return Renderer(make(TEMPLATES[template]), max_prompt_length=max_prompt_length, max_length=max_length)


CASES = [(make, template) for make in (byte_level, word_level) for template in TEMPLATES if template != "spaced"]
ENDS = {"chatml": "<|im_end|>", "zephyr": "</s>", "with_bos": "<|im_end|>", "plain": "</s>"}


@pytest.mark.parametrize(("make", "template"), CASES)
def test_end_of_turn_is_found(make: Any, template: str) -> None:
    r = renderer(template, make)
    assert r.tokenizer.convert_ids_to_tokens(r.end_of_turn_id) == ENDS[template]
    assert r.stop_ids[0] == r.end_of_turn_id
    assert r.tokenizer.eos_token_id in r.stop_ids
    assert len(set(r.stop_ids)) == len(r.stop_ids)


@pytest.mark.parametrize(("make", "template"), CASES)
@pytest.mark.parametrize("turns", [("the cat",), ("the cat", "sat on", "the mat")])
def test_prompt_and_response_are_the_template_text(make: Any, template: str, turns: tuple[str, ...]) -> None:
    r = renderer(template, make)
    messages = chat(*turns)
    prompt, response = r.prompt_ids(messages), r.response_ids(messages, "the dog")
    text = r.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == r.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt == r.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt + response[:-1] == r.tokenizer(text + "the dog", add_special_tokens=False)["input_ids"]
    assert response[-1] == r.end_of_turn_id
    assert r.decode(response) == "the dog"


def test_bos_stands_once_where_the_template_writes_it_and_never_elsewhere() -> None:
    bos = byte_level(None).bos_token_id
    with_bos = renderer("with_bos")
    prompt = with_bos.prompt_ids(chat("the cat"))
    assert prompt[0] == bos
    assert (prompt + with_bos.response_ids(chat("the cat"), "hi")).count(bos) == 1
    assert with_bos.conversation(chat("a", "b", "c", "d")).input_ids.count(bos) == 1
    without = renderer("zephyr")
    assert bos not in without.conversation(chat("a", "b")).input_ids


def test_system_and_earlier_turns_are_in_the_prompt() -> None:
    r = renderer()
    text = r.tokenizer.decode(r.prompt_ids(chat("one", "two", "three", system="Talk like a pirate.")))
    assert text == (
        "<|im_start|>system\nTalk like a pirate.<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
        "two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_long_prompt_keeps_its_last_tokens() -> None:
    messages = chat("the cat sat on the mat " * 10)
    whole = renderer().render_prompt(messages)
    cut = renderer(max_prompt_length=20).render_prompt(messages)
    assert not whole.cut
    assert cut.cut
    assert cut.ids == whole.ids[-20:]
    exact = renderer(max_prompt_length=len(whole.ids)).render_prompt(messages)
    assert exact == whole


def test_a_long_response_loses_its_end_and_its_end_of_turn() -> None:
    messages, text = chat("the cat"), "the quick brown fox jumps over the lazy dog"
    whole = renderer().render_response(messages, text)
    used = len(renderer().prompt_ids(messages))
    exact = renderer(max_length=used + len(whole.ids), max_prompt_length=used).render_response(messages, text)
    assert exact == whole
    assert whole.ids[-1] == renderer().end_of_turn_id
    cut = renderer(max_length=used + len(whole.ids) - 1, max_prompt_length=used).render_response(messages, text)
    assert cut.cut
    assert cut.ids == whole.ids[:-1]


def test_the_response_is_the_same_behind_a_cut_prompt() -> None:
    messages = chat("the cat sat on the mat " * 10)
    assert renderer(max_prompt_length=20).response_ids(messages, "ok") == renderer().response_ids(messages, "ok")
    # What a cut prompt frees is free for the response.
    text = "the mat " * 40
    assert len(renderer(max_prompt_length=20, max_length=60).response_ids(messages, text)) == 40


def test_a_prompt_is_rendered_once_for_its_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    one = renderer()
    rendered = []
    apply = templating.apply

    def counted(tokenizer: Any, messages: Any, generation_prompt: bool = True, variables: Any = None) -> str:
        rendered.append(messages[-1]["content"])
        return apply(tokenizer, messages, generation_prompt, variables)

    monkeypatch.setattr(rendering, "apply", counted)
    prompt = chat("The cat")
    first = one.prompt_ids(prompt), one.response_ids(prompt, "sat"), one.response_ids(prompt, "jumps")
    assert rendered == ["The cat", "sat", "jumps"]
    prompt[0]["content"] = "the lazy dog"  # another prompt in the same list
    second = one.prompt_ids(prompt), one.response_ids(prompt, "sat")
    assert rendered == ["The cat", "sat", "jumps", "the lazy dog", "sat"]
    assert first[0] != second[0]
    assert first[1] == second[1]
    one.prompt_ids(prompt)[0] = 0  # what a caller does to the ids is its own affair
    assert one.prompt_ids(prompt) == second[0]


def test_a_response_begins_where_its_conversation_parts_from_the_prompt() -> None:
    # The template ends with a space: " the" is one token, and takes the space from the prompt.
    r = renderer("spaced")
    messages = chat("a")
    prompt = r.prompt_ids(messages)
    together = r.tokenizer(r.tokenizer.decode(prompt) + "the cat", add_special_tokens=False)["input_ids"]
    assert together[: len(prompt)] != prompt, "the tokenizer no longer merges here: the test needs another text"
    given, (answer,) = r.render_given(messages, ["the cat"])
    assert given.ids == prompt[:-1]
    assert given.ids + answer.ids == [*together, r.end_of_turn_id]
    ids, mask = r.conversation(chat("a", "the cat", "b", "the dog"))
    learned = [token for token, one in zip(ids, mask, strict=True) if one]
    assert r.tokenizer.decode(learned) == " the cat the dog</s>"


@pytest.mark.parametrize("text", ["the cat", " leading", "trailing ", "a\n\nb\t", "naïve 猫 🦊", "", "x" * 50])
@pytest.mark.parametrize("template", ["chatml", "zephyr", "with_bos"])
def test_sampled_decoded_and_rendered_again_is_the_same(text: str, template: str) -> None:
    r = renderer(template)
    text = text.strip() if template == "with_bos" else text  # which trims every message
    ids = r.response_ids(chat("hello"), text)
    assert r.decode(ids) == text
    assert r.response_ids(chat("hello"), r.decode(ids)) == ids


def test_decoding_stops_at_the_end_of_the_turn() -> None:
    r = renderer()
    ids = r.response_ids(chat("a"), "the cat")
    assert r.decode([*ids, *ids]) == "the cat"
    assert r.decode([*ids[:-1], r.tokenizer.eos_token_id, *ids]) == "the cat"
    assert r.decode([]) == ""


@pytest.mark.parametrize(("make", "template"), CASES)
def test_a_conversation_is_made_of_its_turns(make: Any, template: str) -> None:
    r = renderer(template, make)
    messages = chat("the cat", "sat on", "the mat", "the lazy dog")
    ids, mask = r.conversation(messages)
    prompt, response = r.prompt_ids(messages[:3]), r.response_ids(messages[:3], "the lazy dog")
    assert ids == prompt + response
    first_prompt, first_response = r.prompt_ids(messages[:1]), r.response_ids(messages[:1], "sat on")
    assert ids[: len(first_prompt)] == first_prompt
    # Where the template writes no end-of-turn token behind an earlier turn, there is none to learn.
    learned = first_response[:-1] if template == "plain" else first_response
    expected = [0] * len(prompt) + [1] * len(response)
    start = len(first_prompt)
    if ids[start : start + len(learned)] == learned:
        expected[start : start + len(learned)] = [1] * len(learned)
    assert mask == expected
    if template != "plain":
        assert sum(mask) == len(first_response) + len(response)


def test_a_turn_that_the_template_rewrites_is_context_only() -> None:
    r = renderer()
    r.tokenizer.chat_template = CHATML.replace("m['content']", "(m['content'] if loop.last else m['content'] | upper)")
    messages = chat("A", "the cat", "B", "the dog")
    ids, mask = r.conversation(messages)
    assert r.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "the dog<|im_end|>"


def test_a_long_conversation_loses_its_end() -> None:
    messages = chat("the cat", "sat on", "the mat", "the lazy dog")
    whole = renderer().conversation(messages)
    cut = renderer(max_prompt_length=10, max_length=20).conversation(messages)
    assert (cut.input_ids, cut.response_mask) == (whole.input_ids[:20], whole.response_mask[:20])


def test_a_conversation_must_end_with_the_assistant() -> None:
    with pytest.raises(DataError, match="must end with the assistant"):
        renderer().conversation(chat("a", "b", "c"))


def test_a_template_that_refuses_is_a_data_error() -> None:
    with pytest.raises(DataError, match="fails on a conversation of system, user: no system role"):
        renderer("with_bos").prompt_ids(chat("a", system="b"))
    tokenizer = byte_level("{% for m in messages %}{{ m['content'] ")
    with pytest.raises(DataError, match="the chat template fails"):
        Renderer(tokenizer, max_prompt_length=5, max_length=10)


def test_no_end_of_turn_is_a_data_error() -> None:
    tokenizer = byte_level(PLAIN)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="nothing ends a turn"):
        Renderer(tokenizer, max_prompt_length=5, max_length=10)
    with pytest.raises(DataError, match="does not show the assistant's words"):
        Renderer(byte_level("{{ bos_token }}"), max_prompt_length=5, max_length=10)


class TestLoadTokenizer:
    def test_a_folder(self, tmp_path: Path) -> None:
        byte_level(CHATML).save_pretrained(tmp_path / "model")
        tokenizer = load_tokenizer(tmp_path / "model")
        assert tokenizer.pad_token == "</s>"
        r = Renderer(tokenizer, max_prompt_length=50, max_length=100)
        assert r.prompt_ids(chat("the cat")) == renderer().prompt_ids(chat("the cat"))

    def test_a_template_from_a_file(self, tmp_path: Path) -> None:
        byte_level(None).save_pretrained(tmp_path / "model")
        with pytest.raises(DataError, match=r"no chat template; name a file with one in model\.chat_template"):
            load_tokenizer(tmp_path / "model")
        (tmp_path / "zephyr.jinja").write_text(ZEPHYR)
        tokenizer = load_tokenizer(tmp_path / "model", chat_template=str(tmp_path / "zephyr.jinja"))
        assert Renderer(tokenizer, max_prompt_length=5, max_length=10).end_of_turn_id == tokenizer.eos_token_id
        with pytest.raises(DataError, match="the chat template cannot be read"):
            load_tokenizer(tmp_path / "model", chat_template=str(tmp_path / "none.jinja"))

    def test_a_missing_or_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such model folder"):
            load_tokenizer(tmp_path / "none")
        with pytest.raises(DataError, match="no such model folder"):
            load_tokenizer("./none")
        with pytest.raises(DataError, match="no usable tokenizer in this folder") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    folder = os.environ.get("SPA_SMOLLM2")
    if not folder:
        pytest.skip("set SPA_SMOLLM2 to a folder with SmolLM2-135M-Instruct to test with its tokenizer")
    return load_tokenizer(folder)


def test_smollm2(smollm2: Any) -> None:
    r = Renderer(smollm2, max_prompt_length=1024, max_length=2048)
    assert smollm2.convert_ids_to_tokens(r.end_of_turn_id) == "<|im_end|>"
    messages = chat("Why is the sky blue?", "Rayleigh scattering.", "And red at dusk?", "A longer way.")
    ids, mask = r.conversation(messages)
    assert ids == r.prompt_ids(messages[:3]) + r.response_ids(messages[:3], "A longer way.")
    learned = smollm2.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == "Rayleigh scattering.<|im_end|>A longer way.<|im_end|>"
    for text in ("Hello", " two  spaces ", "1. a\n2. b\n", "```py\nx = 1\n```", "naïve 猫 🦊"):
        assert r.decode(r.response_ids(messages[:1], text)) == text


def test_the_sandbox_tokenizer(tmp_path: Path) -> None:
    build_model(tmp_path / "model", hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8)
    r = Renderer(load_tokenizer(tmp_path / "model"), max_prompt_length=48, max_length=128)
    for row in read_pairs(SandboxSource(type="sandbox", rows=50)).rows:
        for side in (row["chosen"], row["rejected"]):
            rendered = r.render_response(row["prompt"], side[0]["content"])
            assert not rendered.cut
            assert r.decode(rendered.ids) == side[0]["content"]
            prompt = r.prompt_ids(row["prompt"])
            ids, mask = r.conversation([*row["prompt"], *side])
            assert (ids, mask) == (prompt + rendered.ids, [0] * len(prompt) + [1] * len(rendered.ids))
            assert r.tokenizer.unk_token_id not in ids
