"""What a stage will need, before it runs: upper bounds for tokens, memory and disk, from sizes alone."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from spa_recipes.models.dtype import weight_bytes
from spa_recipes.plan import KINDS, MODEL, Plan, Stage
from spa_recipes.recipe.schema import AnyRecipe

ADAMW_BYTES = 16
"""Per trained parameter: float32 weight, gradient and two moments."""
BYTES_PER_SAMPLED_TOKEN = 8
"""On the disk: its id, and its log-prob."""
CHECKPOINT_BYTES = 12
"""Per trained parameter: float32 weight and two moments."""
SANDBOX_PARAMETERS = 284_544


class Need(NamedTuple):
    """Upper bounds; None where the recipe does not tell.

    Attributes:
        tokens: tokens generated, scored or trained on.
        memory: bytes for weights, gradients and optimizer on all devices together, without activations.
        disk: bytes that the stage leaves.
        scratch: bytes that it needs besides while it runs.
    """

    tokens: int | None = None
    memory: int | None = None
    disk: int | None = None
    scratch: int | None = None


def parameters_of(recipe: AnyRecipe) -> int | None:
    """Number of parameters: from the recipe, the sandbox, or the model's config.json on this disk."""
    model = recipe.model
    if model.num_parameters is not None:
        return int(model.num_parameters)
    if model.is_sandbox:
        return SANDBOX_PARAMETERS
    try:
        config = json.loads((Path(model.model_name_or_path).expanduser() / "config.json").read_text())
        return _llama_like_parameters(config)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _llama_like_parameters(config: dict[str, int]) -> int:
    """Weights of a Llama-like decoder: attention with grouped heads, gated feed-forward, norms, embeddings."""
    width, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    kv = config.get("num_key_value_heads") or heads
    attention = width * head * (2 * heads + 2 * kv)
    embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + 3 * width * inner + 2 * width) + embeddings + width


def needs(stage: Stage, plan: Plan) -> Need:
    """Upper bounds for one stage of a plan."""
    recipe = plan.recipe
    size, each = parameters_of(recipe), weight_bytes(recipe.model.dtype)
    weights = None if size is None else size * each
    kind, tokens = KINDS[stage.kind], _tokens(stage, recipe)
    if "train" in kind.work:
        return Need(
            tokens,
            memory=_train_memory(stage, recipe, size, weights),
            disk=weights,
            scratch=_checkpoint_bytes(stage, recipe, size),
        )
    if MODEL in kind.writes:
        # An extrapolation holds both models in float32, and what it stores.
        both = None if size is None or weights is None or "factor" not in stage.settings else 8 * size + weights
        return Need(memory=both, disk=weights)
    # A judge that the recipe names has a size of its own.
    memory = weights if kind.loads_model and "judge" not in map(kind.content, stage.inputs) else None
    if memory is not None and "method" in stage.settings and not _is_thin(stage):
        memory *= 2  # a log-ratio may be read from the policy and its update at once
    sampled = tokens if "sample" in kind.work else None
    return Need(tokens, memory, disk=None if sampled is None else sampled * BYTES_PER_SAMPLED_TOKEN)


def _is_thin(stage: Stage) -> bool:
    """Whether the update that log-ratios are read along is an adapter."""
    roles = ("adapter",) if stage.kind == "log_ratios" else ("stack", "reward_stack")
    return any(role in stage.inputs for role in roles)


def _tokens(stage: Stage, recipe: AnyRecipe) -> int | None:
    """Tokens of all rows, each as long as the settings allow; of training in all epochs."""
    if stage.rows is None:
        return None
    match KINDS[stage.kind].tokens:
        case "text":
            each = recipe.model.max_length
        case "pair":
            each = 2 * recipe.model.max_length
        case "answer":
            each = stage.settings["sampling"].max_tokens
        case "verdict":
            each = stage.settings["judge"].max_tokens
        case None:
            return None
    training = stage.settings.get("training")
    return stage.rows * each * (1 if training is None else training.num_train_epochs)


def _checkpoint_bytes(stage: Stage, recipe: AnyRecipe, size: int | None) -> int | None:
    """Checkpoints that are on the disk at the same time; None for adapters, which are small."""
    if size is None or recipe.model.lora is not None:
        return None
    most = recipe.storage.checkpoints_while_training + 1  # the next one is written before the oldest one goes
    training = stage.settings["training"]
    if stage.rows is not None:
        rows = stage.rows / (1.0 - getattr(training, "seed_replay", 0.0))
        steps = math.ceil(rows / training.global_batch_size) * training.num_train_epochs
        most = min(most, (steps - 1) // training.save_steps)  # none after the last step: the model itself is saved
    return int(most) * size * CHECKPOINT_BYTES


def _train_memory(stage: Stage, recipe: AnyRecipe, size: int | None, weights: int | None) -> int | None:
    if size is None or weights is None:
        return None
    if recipe.model.lora is not None:  # the reference is the policy without its adapter
        return size // 2 if recipe.model.in_4bit else weights
    if "p_detect" in stage.settings:  # in half precision the detector differentiates the reference along the update
        return size * ADAMW_BYTES + 2 * weights
    return size * ADAMW_BYTES + (weights if stage.settings.get("lambda", 0) else 0)
