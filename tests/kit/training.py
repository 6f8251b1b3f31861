"""A tiny model, rows and settings for the tests of training."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig

from spa_recipes.recipe.schema import Model, PercentileThreshold, PreferenceTraining, SupervisedTraining
from spa_recipes.sandbox.model import build_model
from spa_recipes.training.env import PairLoss, Refinement, TrainEnv, TrainResult, ignore_progress
from spa_recipes.training.pair_rows import PairCollator
from spa_recipes.training.preference import SpaTrainer
from spa_recipes.training.reward import train_reward_model
from spa_recipes.training.run import train_preference

torch.set_num_threads(1)  # these models are too small for more, and tests share the machine

REFINEMENT = Refinement(
    alpha=0.3, lam=0.0, threshold=PercentileThreshold(k=30.0, window=24, min_pairs=8), warmup_ratio=0.2
)


def make_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of some thousand parameters over the sandbox's vocabulary."""
    build_model(
        folder, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, initializer_range=0.5, seed=seed
    )
    return folder


def make_half_model(folder: Path) -> Path:
    """The same with weights that are stored in bfloat16."""
    state = {name: tensor.bfloat16() for name, tensor in weights(make_model(folder)).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_env(model: Path, folder: Path, on_progress: Callable[..., None] = ignore_progress, **fields: Any) -> TrainEnv:
    """Output in `folder/out`, checkpoints in `folder/checkpoints`; `fields` are those of `Model`."""
    return TrainEnv(
        model=Model(model_name_or_path=str(model), **fields),
        key="of-a-stage",
        seed=11,
        output_dir=folder / "out",
        checkpoint_dir=folder / "checkpoints",
        tokenizer=AutoTokenizer.from_pretrained(model),
        on_progress=on_progress,
    )


def preference(**fields: Any) -> PreferenceTraining:
    """Quick settings: global batches of 8."""
    defaults = {"learning_rate": 1e-2, "global_batch_size": 8, "per_device_train_batch_size": 8, "logging_steps": 2}
    return PreferenceTraining(**{**defaults, **fields})


def supervised(**fields: Any) -> SupervisedTraining:
    """Quick settings: global batches of 8."""
    defaults = {"learning_rate": 1e-2, "global_batch_size": 8, "per_device_train_batch_size": 8, "logging_steps": 2}
    return SupervisedTraining(**{**defaults, **fields})


def make_pairs(count: int, seed: int = 0, *, reference: bool = True) -> list[dict[str, Any]]:
    """Random pairs, with invented reference log-probs."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(5, 400) for _ in range(draw.randint(least, most))]

    rows: list[dict[str, Any]] = []
    for _ in range(count):
        rows.append({"prompt_ids": tokens(2, 5), "chosen_ids": tokens(1, 9), "rejected_ids": tokens(1, 9)})
        if reference:
            rows[-1] |= {"ref_chosen_logps": -draw.uniform(5, 60), "ref_rejected_logps": -draw.uniform(5, 60)}
    return rows


def trainer_of(
    policy: Path, folder: Path, rows: list[dict[str, Any]], loss: PairLoss, *, beta: float, **more: Any
) -> SpaTrainer:
    """The trainer of pairs in float32, for a single step over all rows; `more` are arguments of it."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    return SpaTrainer(
        AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        DPOConfig(
            output_dir=str(folder),
            beta=beta,
            bf16=False,
            use_cpu=True,
            report_to="none",
            max_length=None,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            precompute_ref_log_probs="ref_model" not in more,
        ),
        Dataset.from_list(rows),
        global_batch_size=len(rows),
        loss=loss,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer.pad_token_id),
        **{"detector": None, **more},
    )


def loss_of(trainer: SpaTrainer, rows: list[dict[str, Any]], cut: int) -> float:
    """The trainer's loss of a step over these rows, which is computed `cut` rows at a time."""
    parts = [{"row": n, **row} for n, row in enumerate(rows)]
    batches = [trainer.data_collator(parts[start : start + cut]) for start in range(0, len(parts), cut)]
    return float(sum(trainer.compute_loss(trainer.model, batch).item() for batch in batches))


def make_texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random prompts and responses."""
    return [
        {
            "input_ids": pair["prompt_ids"] + pair["chosen_ids"],
            "response_mask": [0] * len(pair["prompt_ids"]) + [1] * len(pair["chosen_ids"]),
        }
        for pair in make_pairs(count, seed)
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The saved weights."""
    return load_file(folder / "model.safetensors")


def same_weights(first: Path, second: Path, tolerance: float = 0.0) -> bool:
    """Whether two saved models are equal: bit by bit, or to a share of each tensor's largest weight."""
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(
        bool((ours[name] - theirs[name]).abs().max() <= tolerance * theirs[name].abs().max()) for name in ours
    )


class KilledError(Exception):
    """The end of a process, in the tests."""


def dying_at(step: int) -> Any:
    def on_progress(done: int, total: int, logs: dict[str, Any]) -> None:
        if done == step:
            raise KilledError

    return on_progress


def train_pairs(policy: Path, folder: Path, on_progress: Any = None, lam: float = 0.0, **fields: Any) -> Any:
    """20 pairs in batches of 8, two epochs: six steps, the third and the sixth with 4 pairs."""
    env = make_env(policy, folder, **({"on_progress": on_progress} if on_progress else {}), **fields)
    settings = preference(num_train_epochs=2, per_device_train_batch_size=4, save_steps=2)
    refinement = replace(REFINEMENT, lam=lam)
    return train_preference(policy, make_pairs(20), settings, env, reference_path=policy, refinement=refinement)


END = 4  # <end> of the sandbox's tokenizer


def train_rewards(policy: Path, rows: list[dict[str, Any]], env: TrainEnv, **fields: Any) -> TrainResult:
    return train_reward_model(policy, rows, preference(**fields), env, end_ids=[END])


def trace(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "pairs_trace.jsonl").read_text().splitlines()]


def untrained(policy: Path, seed: int) -> Any:
    """The policy's body with the `score` that this seed draws."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)


def plain_reward(model: Any, ids: list[int]) -> float:
    """The score at the last token of a sequence, in float64 and without padding."""
    with torch.no_grad():
        hidden_TD = model.model(torch.tensor([ids])).last_hidden_state[0]
        return float(hidden_TD[-1] @ model.score.weight[0])


def spoil(folder: Path, name: str) -> None:
    state = weights(folder)
    state[name] = torch.full_like(state[name], math.nan)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
