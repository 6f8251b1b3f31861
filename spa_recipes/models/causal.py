"""Whether a model is causal: no token sees a later one."""

import torch
from transformers import PreTrainedModel

from spa_recipes.errors import DataError

_TEXT = 8
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Difference of logits that rounding explains, as a share of the largest one."""


@torch.no_grad()
def check_causal(model: PreTrainedModel, length: int = _TEXT) -> None:
    """Change the second half of a text, and look whether the model says something else in the first.

    Args:
        length: tokens of the text. Some attention chooses among all tokens of a long text, those to come among them.

    Raises:
        DataError: it does, so it has no log-prob of an answer, and cannot be sampled from.
    """
    words = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * i + 1) % words for i in range(length)]
    half = length // 2
    others = [*ids[:half], *((5 * token + 3) % words for token in ids[half:])]
    first, second = (
        model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[:, :half].float()
        for text in (ids, others)
    )
    tolerance = _TOLERANCE.get(model.dtype, 3e-2)
    if (first - second).abs().max() > tolerance * first.abs().max():  # NaN is told later, with its place
        raise DataError(
            f"{type(model).__name__} reads later tokens of a text of {length} before it says the next one: it is no "
            "causal language model",
            where=str(model.config.name_or_path),
            fix="give a model that generates text, or set model.max_length to the length up to which it is causal",
        )
