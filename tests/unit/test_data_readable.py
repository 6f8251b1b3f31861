"""A row of which a model can make no tokens is malformed, whoever reads it, and is told while the data are read."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.model_files import ModelFiles
from spa_recipes.data.readable import Readable
from spa_recipes.data.rows import Message
from spa_recipes.data.sources import read_candidates, read_conversations, read_pairs, read_prompts
from spa_recipes.errors import DataError
from tests.kit.chat_templates import FAMILIES, tokenizer_of
from tests.kit.data import source
from tests.kit.data_forms import assistant, system, user, write_jsonl


def model(folder: Path, family: str = "gemma2", missing: int = 0, plain: Sequence[str] = ()) -> Path:
    """A tokenizer, and the configuration of a model that has an embedding for all but the last `missing` tokens."""
    tokenizer: PreTrainedTokenizerFast = tokenizer_of(FAMILIES[family])
    tokenizer.add_tokens(list(plain))
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(tokenizer) - missing}))
    return folder


class Loads:
    """Makes the check of a model, and counts how often its renderer is made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    @property
    def check(self) -> Readable:
        return Readable(ModelFiles(str(self.folder), None), self._renderer)

    def _renderer(self) -> Renderer:
        self.made += 1
        return renderer_of(self.folder)


@cache
def renderer_of(folder: Path) -> Renderer:
    return Renderer(load_tokenizer(folder), max_prompt_length=500, max_length=1000, notice=lambda text: None)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("models") / "gemma")


def rows_for(read: Any, prompts: Sequence[list[Message]]) -> list[dict[str, Any]]:
    if read is read_conversations:
        return [{"messages": [*prompt, assistant("a")]} for prompt in prompts]
    if read is read_prompts:
        return [{"prompt": prompt} for prompt in prompts]
    return [{"prompt": prompt, "chosen": [assistant("a b")], "rejected": [assistant("c")]} for prompt in prompts]


@pytest.mark.parametrize("read", [read_pairs, read_prompts, read_conversations, read_candidates])
def test_a_row_that_the_template_refuses_is_skipped_and_counted(read: Any, gemma: Path, tmp_path: Path) -> None:
    prompts = [[*([system("Be kind.")] * (i in (7, 9))), user(f"the cat {i}?")] for i in range(24)]
    path = write_jsonl(tmp_path, rows_for(read, prompts))
    loaded = read(source(path, on_bad_row="skip"), check=Loads(gemma).check)
    assert len(loaded.stored) == 22
    assert [number for number, _ in loaded.skipped] == [8, 10]
    assert {why for _, why in loaded.skipped} == {loaded.skipped[0][1]}
    assert "no system role" in loaded.skipped[0][1]
    with pytest.raises(DataError, match=r"jsonl:8: .*no system role.*set on_bad_row: skip") as caught:
        read(source(path), check=Loads(gemma).check)
    assert "\n" not in str(caught.value)


def test_alternation_is_tried_by_the_roles(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('must alternate') }}{% endif %}"
        "<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    fine, bad = [user("a"), assistant("b"), user("c")], [user("a"), user("b")]
    path = write_jsonl(tmp_path, rows_for(read_pairs, [fine, bad, fine, bad]))
    loads = Loads(folder)
    loaded = read_pairs(source(path, on_bad_row="skip"), check=loads.check)
    assert [number for number, _ in loaded.skipped] == [2, 4]
    assert "must alternate" in loaded.skipped[0][1]
    assert loads.made == 1


def test_questions_and_answers_load_no_tokenizer(gemma: Path, tmp_path: Path) -> None:
    loads = Loads(gemma)
    path = write_jsonl(tmp_path, rows_for(read_pairs, [[user("1 < 2?")], [user("the cat?")]]))
    assert len(read_pairs(source(path), check=loads.check).stored) == 2
    assert loads.made == 0


@pytest.mark.parametrize("where", ["prompt", "chosen", "rejected"])
def test_a_token_without_an_embedding_is_told_with_its_row(where: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", missing=1, plain=["[EXTRA]"])
    rows = [{"prompt": "the cat?", "chosen": "sat", "rejected": "ran"} for _ in range(3)]
    rows[1][where] += " [EXTRA]"
    path = write_jsonl(tmp_path, rows)
    check = Loads(folder).check
    loaded = read_pairs(source(path, on_bad_row="skip"), check=check)
    ((number, why),) = loaded.skipped
    assert number == 2
    last = len(load_tokenizer(folder)) - 1
    assert f"`[EXTRA]` is token {last} of the tokenizer, and the model has {last} embeddings" in why
    with pytest.raises(DataError, match=r"resize_token_embeddings"):
        renderer_of(folder).prompt_ids([user("an [EXTRA] cat")])


def test_control_words_in_a_text_are_tried(gemma: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, rows_for(read_pairs, [[user("what is <end_of_turn>?")]]))
    loads = Loads(gemma)
    assert len(read_pairs(source(path), check=loads.check).stored) == 1
    assert loads.made == 1
