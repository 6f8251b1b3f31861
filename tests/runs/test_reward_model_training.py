"""The reward model as a judge: its training, its rewards, and a run that labels with it."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from spa_recipes.algo.reward import READS_TURNS
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.generation.rewards import sequence_rewards
from spa_recipes.models.loading import for_inference, load_reward_model
from spa_recipes.recipe.schema import Lora, Model, SandboxSource
from spa_recipes.sandbox.model import build_model
from spa_recipes.stages.common import token_pair
from spa_recipes.training.reward import train_reward_model
from tests.kit.training import (
    END,
    KilledError,
    make_env,
    make_pairs,
    plain_reward,
    preference,
    same_weights,
    spoil,
    train_rewards,
    untrained,
    weights,
)


def sandbox_pairs(policy: Path, count: int) -> list[dict[str, Any]]:
    """Labelled pairs of the sandbox, tokenised as the stages do it."""
    renderer = Renderer(load_tokenizer(policy), max_prompt_length=48, max_length=128)
    return [
        dict(token_pair(renderer, pair)) for pair in read_pairs(SandboxSource(type="sandbox", rows=count, seed=3)).rows
    ]


# --- training ---


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_the_loss_is_bradley_terry_in_plain_floats(policy: Path, tmp_path: Path, micro_batch: int) -> None:
    rows = make_pairs(8, reference=False)
    env = make_env(policy, tmp_path)
    result = train_rewards(policy, rows, env, per_device_train_batch_size=micro_batch, logging_steps=1)
    model = untrained(policy, env.seed).double()
    losses = []
    for row in rows:
        chosen, rejected = (
            plain_reward(model, row["prompt_ids"] + row[side]) for side in ("chosen_ids", "rejected_ids")
        )
        losses.append(math.log1p(math.exp(rejected - chosen)))
    assert result.steps == 1
    assert result.history[0]["loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)


def test_a_step_is_that_of_trl(policy: Path, tmp_path: Path) -> None:
    """The same loss and the same new weights as TRL's own RewardTrainer."""
    rows = make_pairs(8, reference=False)
    env = make_env(policy, tmp_path)
    ours = train_rewards(policy, rows, env, logging_steps=1, lr_scheduler_type="constant", warmup_ratio=0.0)
    args = RewardConfig(
        output_dir=str(tmp_path / "theirs"), per_device_train_batch_size=8, learning_rate=1e-2, num_train_epochs=1,
        lr_scheduler_type="constant", logging_steps=1, seed=env.seed, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    whole = [{side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")} for row in rows]
    model = untrained(policy, env.seed)
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(whole),
        processing_class=env.tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=0),
    )
    trainer.train()
    assert ours.history[0]["loss"] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    assert ours.history[0]["rewards/margins"] == pytest.approx(trainer.state.log_history[0]["margin"], abs=1e-5)
    for name, value in weights(env.output_dir).items():
        # The first step of Adam is about the learning rate wherever there is a gradient, however small.
        assert (value - model.state_dict()[name]).abs().max() < 1e-3


@pytest.mark.long  # test_a_step_is_that_of_trl, and with LoRA the loss falls
def test_it_learns_the_labels_of_the_sandbox(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    build_model(policy)
    rows = sandbox_pairs(policy, 300)
    result = train_rewards(
        policy, rows, make_env(policy, tmp_path), learning_rate=2e-3, num_train_epochs=3, global_batch_size=20,
        per_device_train_batch_size=20, logging_steps=15,
    )  # fmt: skip
    assert result.history[0]["loss"] > 0.6
    assert result.history[-1]["loss"] < 0.5
    assert result.metrics["rewards/accuracies"] > 0.7
    model = for_inference(load_reward_model, Model(model_name_or_path=str(tmp_path / "out")))
    sequences = [row["prompt_ids"] + row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]
    rewards = sequence_rewards(model, sequences, tokens_per_batch=4096)
    right = [chosen > rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    assert sum(right) / len(right) > 0.7


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_resumed_training_is_the_same_bit_by_bit(policy: Path, tmp_path: Path, lora: bool) -> None:
    fields: dict[str, Any] = {"lora": Lora(lora_r=4, lora_alpha=8, lora_dropout=0.2)} if lora else {}
    settings: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 2}
    rows = make_pairs(20, reference=False)

    def die(done: int, total: int, logs: dict[str, Any]) -> None:
        if done == 5:
            raise KilledError

    straight = train_rewards(policy, rows, make_env(policy, tmp_path / "straight", **fields), **settings)
    with pytest.raises(KilledError):
        train_rewards(policy, rows, make_env(policy, tmp_path / "resumed", die, **fields), **settings)
    resumed = train_rewards(policy, rows, make_env(policy, tmp_path / "resumed", **fields), **settings)
    assert (straight.metrics.pop("resumed_from_step"), resumed.metrics.pop("resumed_from_step")) == (0, 4)
    assert straight == resumed
    first, second = tmp_path / "straight" / "out", tmp_path / "resumed" / "out"
    assert same_weights(first, second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_lora_trains_adapters_and_score_and_is_merged(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path, lora=Lora(lora_r=4, lora_alpha=8))
    result = train_rewards(policy, make_pairs(24, reference=False), env, num_train_epochs=8)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    before, after = untrained(policy, env.seed).state_dict(), weights(env.output_dir)
    assert before.keys() == after.keys()
    assert not torch.equal(before["score.weight"], after["score.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_the_saved_model_is_deterministic_and_says_what_it_is(policy: Path, trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the caller's random state has no say
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, tmp_path))
    assert same_weights(tmp_path / "out", trained)
    config = json.loads((trained / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (len(config["id2label"]), config["pad_token_id"], config[READS_TURNS]) == (1, 0, True)
    assert {"model.safetensors", "tokenizer.json", "training_log.jsonl"} <= {path.name for path in trained.iterdir()}


def test_padding_is_never_what_ends_a_response(policy: Path, tmp_path: Path) -> None:
    """A tokenizer whose pad token is its end of turn: rewards are still read at the end of the turn."""
    env = make_env(policy, tmp_path)
    env.tokenizer.pad_token = env.tokenizer.eos_token
    rows = [
        {**row, "chosen_ids": [*row["chosen_ids"], END], "rejected_ids": [*row["rejected_ids"], END]}
        for row in make_pairs(8, reference=False)
    ]
    result = train_rewards(policy, rows, env, logging_steps=1)
    before = untrained(policy, env.seed).double()
    rewards = [
        plain_reward(before, row["prompt_ids"] + row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")
    ]
    margins = [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    assert result.history[0]["rewards/margins"] == pytest.approx(sum(margins) / 8, rel=1e-4)
    saved = AutoTokenizer.from_pretrained(env.output_dir)
    assert saved.pad_token_id == json.loads((env.output_dir / "config.json").read_text())["pad_token_id"] != END


def test_what_cannot_be_trained_is_refused(policy: Path, tmp_path: Path) -> None:
    rows = make_pairs(8, reference=False)
    with pytest.raises(RecipeError, match="4 bits"):
        train_rewards(policy, rows, make_env(policy, tmp_path, lora=Lora(load_in_4bit=True)))
    with pytest.raises(DataError, match="no such model folder"):
        train_rewards(tmp_path / "none", rows, make_env(policy, tmp_path))
    with pytest.raises(DataError, match="lack chosen_ids"):
        train_rewards(policy, [{"prompt_ids": [1], "rejected_ids": [1]}], make_env(policy, tmp_path))
    with pytest.raises(DataError, match="no special token to pad with"):
        train_reward_model(policy, rows, preference(), make_env(policy, tmp_path), end_ids=list(range(5)))


def test_a_training_stops_at_nan(policy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    spoil(broken, "model.norm.weight")
    with pytest.raises(StageError, match="step 1 is not finite"):
        train_rewards(broken, make_pairs(8, reference=False), make_env(broken, tmp_path))


# --- rewards ---


def test_rewards_do_not_depend_on_the_batch(trained: Path) -> None:
    model = for_inference(load_reward_model, Model(model_name_or_path=str(trained)))
    draw = random.Random(5)
    sequences = [[draw.randrange(5, 400) for _ in range(draw.randint(3, 40))] for _ in range(60)]
    together = sequence_rewards(model, sequences, tokens_per_batch=100_000)
    assert together == pytest.approx(sequence_rewards(model, sequences, tokens_per_batch=1), abs=1e-5)
    assert together == pytest.approx(sequence_rewards(model, sequences[::-1], tokens_per_batch=300)[::-1], abs=1e-5)
    double = AutoModelForSequenceClassification.from_pretrained(trained).double()
    assert together == pytest.approx([plain_reward(double, sequence) for sequence in sequences], abs=1e-5)


def test_a_model_without_pad_token_is_read_at_the_last_token(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    model = for_inference(load_reward_model, Model(model_name_or_path=str(tmp_path / "model")))
    sequences = [[7, 8, 0], [7, 1], [9, 9, 9, 9, 2]]  # the smallest ids are taken as last tokens
    double = AutoModelForSequenceClassification.from_pretrained(trained).double()
    expected = [plain_reward(double, sequence) for sequence in sequences]
    assert sequence_rewards(model, sequences, tokens_per_batch=1000) == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id is None


def test_half_precision_does_not_tie_rewards(trained: Path) -> None:
    model = for_inference(load_reward_model, Model(model_name_or_path=str(trained), dtype="bfloat16"))
    rewards = sequence_rewards(model, [[7, 8, token] for token in range(5, 400)], tokens_per_batch=4096)
    assert len(set(rewards)) == 395
