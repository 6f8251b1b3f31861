"""Whether the log-probs that sampling kept, token by token, are those of the model that reads an answer at once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.logps import at_least_fp32, target_logps
from spa_recipes.errors import StageError
from spa_recipes.generation.lm_head import logits_at
from spa_recipes.models.dtype import dtype_name, in_float64

FAR_IN_FLOAT32 = 1e-3
"""Nats per root of a token by which rounding in float32 never parts sampling and scoring. Measured with tiny models of
nine families: 2e-6. Models of many layers round more; here a hundred times as much counts as rounding, and ten times
that as another model."""

FAR_FROM_KEPT = 10.0
"""In half precision, they may differ from those of one pass by so many times its measured rounding."""


class Kept(NamedTuple):
    """An answer and the log-probs that sampling kept of its tokens; prompt and answer are token ids."""

    prompt_id: str
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    logps: Sequence[float]


def check_kept(answer: Kept, again: float, far: float = FAR_IN_FLOAT32) -> None:
    """Stop where the log-probs that were kept are not that of a pass over the whole answer.

    Args:
        again: log-prob of the answer, from one pass.
        far: by so many nats per root of a token they may differ.

    Raises:
        StageError: names the answer.
    """
    root = math.sqrt(len(answer.logps))
    off = abs(sum(answer.logps) - again)
    if off > far * root:
        raise _another_model(answer, f"{off:.3g} nats off", far * root)


def _another_model(answer: Kept, off: str, limit: float) -> StageError:
    return StageError(
        f"the log-probs that sampling kept are {off} those of one pass over the answer, and rounding explains "
        f"{limit / FAR_FROM_KEPT:.2g}: sampled token by token, the model is another one",
        where=f"prompt {answer.prompt_id}, answer {answer.sample}",
        fix="set model.max_length to the model's original context, or sampling.backend.type to the other engine; "
        "please report the architecture",
    )


@torch.inference_mode()
def stop_if_another_model(model: PreTrainedModel, answers: Sequence[Kept]) -> None:
    """Stop if a model, which was sampled token by token, is another one in one pass over some answers.

    In half precision, the rounding of these passes is measured against the same passes in float32. Where the model
    cannot be read so, which is said, the stage that labels by the log-probs measures and compares.

    Raises:
        StageError: names the answer.
    """
    once = [_token_logps(model, answer) for answer in answers]
    far = FAR_IN_FLOAT32
    if model.dtype.itemsize < torch.float32.itemsize:
        try:
            with in_float32(model):
                exact = [_token_logps(model, answer) for answer in answers]
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            print(f"sampling was not compared with one pass, as {dtype_name(model.dtype)} was not measured ({reason})")
            return
        far = FAR_FROM_KEPT * _error_per_root_token(once, exact)
    for answer, logps_N in zip(answers, once, strict=True):
        check_kept(answer, float(logps_N.sum()), far)
        apart = float((logps_N.new_tensor(answer.logps) - logps_N).square().mean().sqrt())
        if apart > far:  # though the sums are near each other, as those of few tokens may be
            raise _another_model(answer, f"{apart:.3g} nats per token (rms) off", far)


def _token_logps(model: PreTrainedModel, answer: Kept) -> torch.Tensor:
    """The log-prob of each token of an answer, (N,) in float64, from one pass."""
    first, ids = len(answer.prompt_ids), [*answer.prompt_ids, *answer.response_ids]
    ids_1T = torch.tensor([ids], device=model.device)
    at_N = torch.arange(first - 1, len(ids) - 1, device=model.device)
    logits_NV = at_least_fp32(logits_at(model, at_N, input_ids=ids_1T, use_cache=False).logits[0])
    return in_float64(target_logps(logits_NV, ids_1T[0, first:]))


def _error_per_root_token(rounded: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Standard error of a log-prob per root of a token: of single tokens, or of whole answers where that is larger.

    Few answers may agree by chance, and their tokens do not; the errors of tokens that have a common part add up.
    """
    errors = [one - other for one, other in zip(rounded, exact, strict=True)]
    of_tokens = torch.cat(errors).square().mean()
    of_answers = torch.stack([error.sum().square() / len(error) for error in errors]).mean()
    return math.sqrt(float(torch.maximum(of_tokens, of_answers)))


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute in float32: each module has a copy of its own weights while it works, one at a time."""
    attention = model.config._attn_implementation
    stored: dict[torch.nn.Module, dict[str, torch.nn.Parameter]] = {}
    hooks: list[Any] = []

    def enter(module: torch.nn.Module, _: Any) -> None:
        own = {name: weight for name, weight in module._parameters.items() if weight is not None}
        stored[module] = own
        for name, weight in own.items():
            module._parameters[name] = torch.nn.Parameter(weight.float(), requires_grad=False)

    def leave(module: torch.nn.Module, *_: Any) -> None:
        module._parameters.update(stored.pop(module))

    if str(attention).startswith("flash"):  # has half precision only
        model.set_attn_implementation("sdpa")
    for module in model.modules():
        if any(weight is not None for weight in module._parameters.values()):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(stored):  # an error left them
            leave(module)
        if str(attention).startswith("flash"):
            model.set_attn_implementation(attention)
