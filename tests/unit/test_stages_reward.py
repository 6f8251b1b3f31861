"""Rewards by a reward model: of another run's, and of a foreign one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spa_recipes.algo.reward import READS_TURNS
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import Prompt, write_jsonl
from spa_recipes.data.tables import CompletionRow, write_completions
from spa_recipes.errors import DataError, SpaError, StageError
from spa_recipes.recipe.schema import Model
from spa_recipes.sandbox.rows import preference_rows
from spa_recipes.stages import reward
from tests.kit.stages import context_of
from tests.kit.training import plain_reward, spoil

PROMPTS: list[Prompt] = [
    {"prompt_id": f"p{i}", "prompt": row["chosen"][:1]} for i, row in enumerate(preference_rows(6, seed=1))
]
REPLIES = [[row[side][1]["content"] for side in ("chosen", "rejected")] for row in preference_rows(6, seed=1)]


def answered(folder: Path, policy: Path) -> dict[str, Path]:
    """Prompts and completions as the stages before leave them."""
    renderer = Renderer(load_tokenizer(policy), max_prompt_length=48, max_length=128)
    rows: list[CompletionRow] = [
        {
            "item": i,
            "prompt_id": f"p{i}",
            "sample": k,
            "prompt_ids": renderer.prompt_ids(PROMPTS[i]["prompt"]),
            "response_ids": renderer.response_ids(PROMPTS[i]["prompt"], text),
            "text": text,
            "logps": None,
            "finish_reason": "stop",
        }
        for i, texts in enumerate(REPLIES)
        for k, text in enumerate(texts)
    ]
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    write_completions(folder / "completions.parquet", rows)
    return {"prompts": folder / "prompts.jsonl", "completions": folder / "completions.parquet"}


def score(folder: Path, model: Path, inputs: dict[str, Path]) -> list[dict[str, Any]]:
    """Run the stage; `inputs` without prompts is a model of the same run."""
    section = {"dtype": "float32", "max_length": 128, "max_prompt_length": 48}
    context = context_of(folder, "reward", settings={"model": section}, inputs={"model": model, **inputs})
    result = reward.run(context)
    rows: list[dict[str, Any]] = pq.read_table(context.draft / "rewards.parquet").to_pylist()
    assert result.rows == len(rows)
    return rows


def test_a_model_from_another_run_reads_what_it_was_trained_on(policy: Path, trained: Path, tmp_path: Path) -> None:
    """Token ids and texts give the same rewards, also where the chat template writes something after a turn."""
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "<end><unk>")
    tokenizer.save_pretrained(model)
    inputs = answered(tmp_path, model)
    ours = score(tmp_path / "ours", model, {"completions": inputs["completions"]})
    theirs = score(tmp_path / "theirs", model, inputs)
    assert ours == theirs
    assert [(row["item"], row["sample"]) for row in ours] == [(i, k) for i in range(6) for k in range(2)]
    section = Model(model_name_or_path=str(model), max_length=128, max_prompt_length=48)
    completions = pq.read_table(inputs["completions"]).to_pylist()
    ids, cut = reward.render(section, PROMPTS, completions)
    assert ids == [row["prompt_ids"] + row["response_ids"] for row in completions]
    assert cut == 0


def test_a_foreign_model_reads_the_whole_conversation(policy: Path, trained: Path, tmp_path: Path) -> None:
    """Without our mark in its configuration the chat template writes everything, its tail included."""
    model = _foreign(trained, tmp_path / "model")
    inputs = answered(tmp_path, policy)
    completions = pq.read_table(inputs["completions"]).to_pylist()
    ids, cut = reward.render(Model(model_name_or_path=str(model)), PROMPTS, completions)
    tokenizer = AutoTokenizer.from_pretrained(model)
    row = completions[3]
    text = f"<user>{PROMPTS[1]['prompt'][0]['content']}<end><unk><assistant>{row['text']}<end><unk>"
    assert ids[3] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert cut == 0
    short, cut = reward.render(
        Model(model_name_or_path=str(model), max_length=5, max_prompt_length=2), PROMPTS, completions
    )
    assert short == [sequence[-5:] for sequence in ids]
    assert cut == len(ids)
    double = AutoModelForSequenceClassification.from_pretrained(model).double()
    assert score(tmp_path / "stage", model, inputs)[3]["reward"] == pytest.approx(
        plain_reward(double, ids[3]), abs=1e-5
    )


def _foreign(trained: Path, folder: Path) -> Path:
    """A reward model that is not marked as ours, with a chat template that writes something after a turn."""
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    del config[READS_TURNS]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "<end><unk>")
    tokenizer.save_pretrained(folder)
    return folder


def test_what_is_no_reward_model_is_refused(policy: Path, trained: Path, tmp_path: Path) -> None:
    inputs = answered(tmp_path, policy)
    error = refused(tmp_path / "a", policy, inputs)
    assert "one output (num_labels 1), not 2" in str(error)
    assert str(policy) in str(error)

    headless = tmp_path / "headless"
    shutil.copytree(policy, headless)
    shutil.copy(trained / "config.json", headless)
    assert "score.weight are missing" in str(refused(tmp_path / "b", headless, inputs))

    missing = tmp_path / "missing" / "model"
    assert str(missing) in str(refused(tmp_path / "c", missing, inputs))

    silent = _foreign(trained, tmp_path / "silent")
    tokenizer = AutoTokenizer.from_pretrained(silent)
    tokenizer.chat_template = None
    (silent / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(silent)
    error = refused(tmp_path / "d", silent, inputs)
    assert "no chat template" in str(error)
    assert "name a reward model whose tokenizer has a chat template" in error.fix

    picky = _foreign(trained, tmp_path / "picky")
    tokenizer = AutoTokenizer.from_pretrained(picky)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    tokenizer.save_pretrained(picky)
    assert "never" in str(refused(tmp_path / "e", picky, inputs))


def refused(folder: Path, model: Path, inputs: dict[str, Path]) -> SpaError:
    with pytest.raises(DataError) as caught:
        score(folder, model, inputs)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_reward_that_is_nan_names_the_prompt(policy: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    spoil(tmp_path / "model", "score.weight")
    inputs = answered(tmp_path, policy)
    with pytest.raises(StageError, match="prompt p0: the reward of answer 0 is nan"):
        score(tmp_path / "stage", tmp_path / "model", inputs)
