"""Whether a model is causal: no token sees a later one, nor how many there are."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from spa_recipes.errors import DataError

_TEXT = 8
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Difference of logits or hidden states that rounding explains, as a share of the largest one."""


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
    tolerance = TOLERANCE.get(model.dtype, 3e-2)
    if (first - second).abs().max() > tolerance * first.abs().max():  # NaN is told later, with its place
        raise DataError(
            f"{type(model).__name__} reads later tokens of a text of {length} before it says the next one: it is no "
            "causal language model",
            where=str(model.config.name_or_path),
            fix="give a model that generates text, or set model.max_length to the length up to which it is causal",
        )


@torch.no_grad()
def reads_lengths(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    shortest: int,
    *,
    dtype: torch.dtype | None = None,
    masked: bool = False,
) -> bool:
    """Whether a model reads a text otherwise where more tokens stand behind it, as padding does in a batch.

    An attention that chooses among all tokens of a row does, and so do positions that depend on the longest text.

    Args:
        token_ids: the longest text that is read.
        shortest: tokens of the shortest one; the half of the longest is tried, too.
        dtype: precision of the computation; None for that of the weights.
        masked: whether padding is masked, as for a reward model, which may be one that reads in both directions.
    """
    body = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft calls its own layers so
    limit = TOLERANCE.get(dtype or model.dtype, 3e-2)
    whole_TD = None if masked else _states(body, token_ids)
    for length in sorted({shortest, len(token_ids) // 2} - {0, len(token_ids)}):
        alone_TD = _states(body, token_ids[:length])
        padded_TD = _states(body, token_ids, length)[:length] if whole_TD is None else whole_TD[:length]
        if (padded_TD - alone_TD).abs().max() > limit * alone_TD.abs().max():  # NaN is told later, with its place
            return True
    return False


def _states(model: PreTrainedModel, token_ids: Sequence[int], seen: int | None = None) -> torch.Tensor:
    """Last hidden states (T, D) of a text, with a mask for all but its first `seen` tokens where that is given."""
    ids_1T = torch.tensor([list(token_ids)], device=model.device)
    mask = {}
    if seen is not None:
        mask["attention_mask"] = torch.tensor([[1] * seen + [0] * (len(token_ids) - seen)], device=model.device)
    states_1TD: torch.Tensor = model.base_model(input_ids=ids_1T, **mask)[0]
    return states_1TD[0].float()
