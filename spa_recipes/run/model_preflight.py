"""What a model's small files say that would end a run later, or make it wrong without an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spa_recipes.data.controls import GIVE_EMBEDDINGS
from spa_recipes.data.model_files import embeddings_of, inner
from spa_recipes.data.places import is_path
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.plan.powers import is_kernel

if TYPE_CHECKING:
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.recipe.schema import Lora, Recipe

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
"""What architectures call the most tokens that they have positions for."""

_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embedding", "embeddings")
"""What architectures call their input embeddings."""

_ROLES = ("user", "assistant", "system", "im_start", "im_end")
"""A template may put a control token together from `<|` and a role."""


def positions(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The most tokens that a model has positions for, and the setting that says so; None where there is no limit."""
    settings = inner(config)
    name = next((name for name in _POSITIONS if isinstance(settings.get(name), int) and settings[name] > 0), None)
    return None if name is None else (name, max(settings[name], _stretched(settings, settings[name])))


def _stretched(settings: Mapping[str, Any], positions: int) -> int:
    """Positions with RoPE scaling, which a configuration may count in or not."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling")
    if not isinstance(rope, dict) or not isinstance(rope.get("factor"), int | float):
        return positions
    original = rope.get("original_max_position_embeddings", positions)
    return int(original * rope["factor"]) if isinstance(original, int) else positions


def check_lengths(files: ModelFiles, config: Mapping[str, Any], recipe: Recipe) -> None:
    """Whether a model has positions for a recipe's texts; if not, all lengths that fit are named at once.

    Raises:
        RecipeError: it has not.
    """
    found = positions(config)
    if found is None or recipe.model.max_length <= found[1]:
        return
    name, limit = found
    prompt, answer = recipe.model.max_prompt_length, recipe.sampling.max_tokens
    others = ""
    if prompt + answer > limit:
        answer = min(answer, limit // 2)
        prompt = min(prompt, limit - answer)
        others = f", model.max_prompt_length to {prompt} and sampling.max_tokens to {answer}"
    raise RecipeError(
        f"model.max_length ({recipe.model.max_length}) is more than the model's {name} ({limit})",
        where=files.location,
        fix=f"set model.max_length to {limit}{others}, or less",
    )


def context_of(files: ModelFiles) -> int | None:
    """The most tokens that a model has positions for; None where there is no limit, or no such folder."""
    if is_path(files.location) and not files.local:
        return None  # the look at all inputs says so
    found = positions(files.read("config.json"))
    return None if found is None else found[1]


def refuse_quantised(files: ModelFiles, config: Mapping[str, Any]) -> None:
    """Refuse weights that are stored quantised (bitsandbytes, GPTQ, AWQ): they can be neither trained nor compared."""
    quantised = inner(config).get("quantization_config") or inner(config).get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise DataError(
            f"its weights are stored quantised ({method or 'quantization_config in config.json'})",
            where=files.location,
            fix="give the model that it was made from; model.lora.load_in_4bit quantises that while it is loaded",
        )


def refuse_kernels(files: ModelFiles, config: Mapping[str, Any], otherwise: str = "") -> None:
    """Refuse a model whose configuration names compiled code on the Hub, where nobody says which code to take.

    Args:
        otherwise: what else the user can do, behind "take the line out".
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            refuse_kernels(files, value, otherwise)
        elif name.endswith(("attn_implementation", "experts_implementation")) and is_kernel(value):
            raise RecipeError(
                f"its config.json names compiled code on the Hub ({name}: {value})",
                where=files.location,
                fix=f"take the line out of config.json{otherwise}",
            )


def refuse_bidirectional(files: ModelFiles, config: Mapping[str, Any]) -> None:
    """Refuse a model whose tokens see later ones: it has no log-prob of an answer."""
    if inner(config).get("use_bidirectional_attention") in (True, "all"):
        raise DataError(
            "its attention is bidirectional (use_bidirectional_attention in config.json), so it is no causal language "
            "model",
            where=files.location,
            fix="give a model that generates text",
        )


def refuse_growing_positions(files: ModelFiles, config: Mapping[str, Any], key: str, wanted: int) -> None:
    """Refuse texts so long that a model's positions depend on how long the longest text beside them is.

    Sampled token by token, and in batches, such a model is another one than that which reads a text at once.
    """
    settings = inner(config)
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    for one in (rope, *rope.values()) if isinstance(rope, dict) else ():
        kind = str(one.get("rope_type") or one.get("type")) if isinstance(one, dict) else ""
        if kind not in ("longrope", "su") and "dynamic" not in kind:
            continue
        found = one.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
        limit = found or settings.get("max_position_embeddings")
        if isinstance(limit, int) and wanted > limit:
            raise RecipeError(
                f"{key} ({wanted}) is more than {limit}, from where on this model's positions ({kind}) change with the "
                "length of a text: what it samples would not be what it is trained on",
                where=files.location,
                fix=f"set {key} to {limit} or less",
            )


def refuse_unknown_tokens(
    files: ModelFiles, config: Mapping[str, Any], vocabulary: Mapping[str, int], template: str
) -> None:
    """Refuse a tokenizer whose template or ends need tokens that the model has no embedding for.

    A pad token may lie beyond: nothing looks at it.
    """
    rows = embeddings_of(config)
    if rows is None:
        return
    settings = files.read("tokenizer_config.json")
    named = {name: _word_of(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    beyond = {
        word: index
        for word, index in vocabulary.items()
        if index >= rows
        and (word in (named["bos"], named["eos"]) or word in template or any(role in word for role in _ROLES))
        and (word != named["pad"] or word == named["eos"])
    }
    if beyond:
        word, index = min(beyond.items(), key=lambda item: item[1])
        raise DataError(
            f"the tokenizer has tokens that the model has no embedding for: {word} is {index}, and there are {rows}",
            where=files.location,
            fix=GIVE_EMBEDDINGS,
        )


def _word_of(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def refuse_tied_adapter(files: ModelFiles, config: Mapping[str, Any], lora: Lora | None) -> None:
    """Refuse an adapter on input embeddings that are the output layer, too, as one on lm_head is refused."""
    modules = lora.lora_target_modules if lora is not None else []
    named = [name for name in modules if name.rpartition(".")[2] in _EMBEDDINGS] if isinstance(modules, list) else []
    if named and inner(config).get("tie_word_embeddings") is True:
        raise RecipeError(
            f"{named[0]} is the output layer, too (tie_word_embeddings): merged, its adapter would change both",
            where="model.lora.lora_target_modules",
            fix=f"remove {named[0]}, or give a model whose embeddings are not tied",
        )
