"""No training compares log-probs of a model that drops something at random: in whatever way its family does that."""

import json
import math
from pathlib import Path

import pytest
import torch

from spa_recipes.errors import DataError
from spa_recipes.training.dropout import check_no_dropout, switch_off_dropout
from spa_recipes.training.run import train_preference, train_sft
from tests.kit.families import WITH_DROPOUT, chances, tiny
from tests.kit.training import make_env, make_model, make_pairs, make_texts, preference, supervised


@pytest.mark.parametrize("family", WITH_DROPOUT)
def test_a_family_without_its_dropout_computes_the_same_in_training(family: str) -> None:
    model = tiny(family, 40, **chances(family))
    ids = list(range(2, 26))
    with pytest.raises(DataError, match="computes something else while it is trained"):
        check_no_dropout(model, ids, 1e-5)
    switch_off_dropout(model)
    check_no_dropout(model, ids, 0.0)
    assert not model.training


def test_what_is_random_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    model = tiny("llama", 40)
    model.model.norm.register_forward_hook(lambda layer, _, out: out + torch.randn_like(out) if layer.training else out)
    switch_off_dropout(model)
    with pytest.raises(DataError, match="LlamaForCausalLM computes something else while it is trained"):
        check_no_dropout(model, [1, 2, 3], 1e-5)


def saved(folder: Path, family: str) -> Path:
    """A model of a family beside the sandbox's tokenizer."""
    make_model(folder)
    tiny(family, json.loads((folder / "config.json").read_text())["vocab_size"], **chances(family)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("family", ["opt", "llama", "granite", "gpt2"])
def test_the_first_loss_of_a_training_is_ln_2(family: str, tmp_path: Path) -> None:
    from spa_recipes.generation.scoring import Scored, sequence_logps
    from spa_recipes.models.loading import load_causal_lm

    policy = saved(tmp_path / "model", family)
    env = make_env(policy, tmp_path, max_length=64, max_prompt_length=32)
    rows = make_pairs(8, reference=False)
    items = [Scored(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    logps = sequence_logps(load_causal_lm(policy, env.model, torch.float32), items, tokens_per_batch=512)
    for row, chosen, rejected in zip(rows, logps[::2], logps[1::2], strict=True):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected
    result = train_preference(policy, rows, preference(logging_steps=1), env, reference_path=None, refinement=None)
    assert result.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.history[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_sft_has_dropout_if_the_recipe_asks(tmp_path: Path) -> None:
    policy = saved(tmp_path / "model", "llama")
    first = []
    for name, dropout in (("without", False), ("with", True)):
        env = make_env(policy, tmp_path / name, max_length=64, max_prompt_length=32)
        first.append(train_sft(policy, make_texts(8), supervised(logging_steps=1, dropout=dropout), env).history[0])
    assert first[0]["loss"] != pytest.approx(first[1]["loss"], abs=1e-4)
