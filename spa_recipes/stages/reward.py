"""Rewards of completions by a reward model: what the reward_model judge labels by."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel

from spa_recipes.algo.reward import READS_TURNS
from spa_recipes.data.arrow import rows_of
from spa_recipes.data.chat import Renderer, load_tokenizer, special_ids
from spa_recipes.data.controls import Controls
from spa_recipes.data.rows import Message, Prompt, RowsInOrder
from spa_recipes.data.tables import COMPLETIONS, REWARDS, CompletionRow, read_table, write_values
from spa_recipes.data.templating import conversation_ids
from spa_recipes.errors import DataError, StageError, setting
from spa_recipes.generation.rewards import sequence_rewards
from spa_recipes.models.loading import for_inference, load_reward_model, reward_config
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import mean, model_section, sharded_values, use_local_device
from spa_recipes.stages.context import NO_RESULT, Context, Result


def run(context: Context) -> Result:
    """Write `rewards.parquet`, aligned with the rows of the completions.

    A reward model trained in this run reads the token ids of the completions. Any other one comes with the input
    `prompts`, and reads the texts as its own tokenizer and chat template write them.
    """
    table = read_table(context.input("completions"), COMPLETIONS)
    model = model_section(context, "model")
    cut = 0
    with setting(context.spec.keys.get("model", "")):
        if "prompts" in context.spec.inputs:
            texts: Iterator[Any] = rows_of(table.select(["item", "text"]))
            sequences, cut = render(model, RowsInOrder(context.input("prompts"), Prompt), texts)
        else:
            ids = rows_of(table.select(["prompt_ids", "response_ids"]))
            sequences = [row["prompt_ids"] + row["response_ids"] for row in ids]
        rewards = _rewards(context, model, table, sequences)
    if rewards is None:
        return NO_RESULT
    write_values(context.draft / "rewards.parquet", table, rewards, REWARDS)
    return Result(len(rewards), sum(map(len, sequences)), {"mean_reward": mean(rewards), "cut": cut})


def render(
    model: Model, prompts: Sequence[Prompt] | RowsInOrder[Prompt], completions: Iterable[CompletionRow]
) -> tuple[list[list[int]], int]:
    """Token ids of the conversations as a reward model from outside the run reads them.

    A model that this package trained, in any run, reads conversations as it did in training. As the texts do not tell
    which answers were cut off, each gets the end of its turn. For other models the chat template writes the whole
    conversation; one that is longer than `max_length`, or than the tokenizer's own limit, loses its beginning, as the
    reward is read at the end.

    Returns:
        The token ids, and how many conversations lost their beginning.

    Raises:
        DataError: no such model or not a reward model; no tokenizer, no chat template, or one that fails.
    """
    config = reward_config(model.model_name_or_path, model)
    tokenizer = _tokenizer(model)
    conversations = ((prompts[row["item"]]["prompt"], row["text"]) for row in completions)
    if getattr(config, READS_TURNS, False):
        renderer = Renderer(
            tokenizer,
            max_prompt_length=model.max_prompt_length,
            max_length=model.max_length,
            template_kwargs=model.chat_template_kwargs,
        )
        given = (renderer.render_given(prompt, [text]) for prompt, text in conversations)
        return [prompt.ids + answer.ids for prompt, (answer,) in given], 0
    room = min(model.max_length, tokenizer.model_max_length)
    controls = Controls(tokenizer, special_ids(tokenizer))
    whole = [
        _conversation_ids(controls, [*prompt, {"role": "assistant", "content": text}]) for prompt, text in conversations
    ]
    return [ids[-room:] for ids in whole], sum(len(ids) > room for ids in whole)


def _tokenizer(model: Model) -> Any:
    """The reward model's own tokenizer; the recipe's chat template is the policy's and is not used here."""
    try:
        return load_tokenizer(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except DataError as error:
        raise DataError(
            error.what, where=error.where, fix="name a reward model whose tokenizer has a chat template"
        ) from error


def _conversation_ids(controls: Controls, messages: list[Message]) -> list[int]:
    try:
        return conversation_ids(controls, messages)
    except DataError as error:
        fix = "change the data, or name another reward model"
        raise DataError(f"the reward model: {error.what}", where=error.where, fix=fix) from error


def _rewards(context: Context, model: Model, completions: pa.Table, sequences: list[list[int]]) -> list[float] | None:
    """Rewards shard by shard; the model is loaded only if a shard is missing. None in every process but the first."""
    settings = context.spec.runtime["compute"]

    @cache
    def loaded() -> PreTrainedModel:
        use_local_device()
        return for_inference(load_reward_model, model)

    def compute(start: int, end: int) -> list[float]:
        rewards = sequence_rewards(
            loaded(),
            sequences[start:end],
            tokens_per_batch=settings["score_tokens_per_batch"],
            onednn_products=settings["onednn_products"],
            on_progress=lambda done, tokens: context.progress(start + done, len(sequences), "responses", "rewards"),
        )
        for place, reward in enumerate(rewards, start=start):
            if not math.isfinite(reward):
                row = completions.slice(place, 1).to_pylist()[0]
                raise StageError(
                    f"the reward of answer {row['sample']} is {reward}",
                    where=f"prompt {row['prompt_id']}",
                    fix="look at the training of the reward model, or set model.dtype to float32",
                )
        return rewards

    return sharded_values(context, "rewards", "reward", len(sequences), compute)
