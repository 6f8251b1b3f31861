"""What a sampler is asked for, and what it returns."""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from spa_recipes.errors import DataError, StageError


class Request(NamedTuple):
    """One answer to sample.

    Attributes:
        prompt_id: name of the prompt.
        sample: number of this answer among the prompt's answers, from 0.
        prompt_ids: token ids of the rendered prompt, at least one.
    """

    prompt_id: str
    sample: int
    prompt_ids: list[int]


class Completion(NamedTuple):
    """One sampled answer.

    Attributes:
        prompt_id: name of the prompt.
        sample: number of this answer among the prompt's answers, from 0.
        response_ids: sampled token ids, including the end-of-turn token if it was sampled.
        logps: log-probability in nats of each of `response_ids` at temperature 1 under the whole vocabulary.
        finish_reason: `stop` after a stop token, `length` if the token budget ran out.
    """

    prompt_id: str
    sample: int
    response_ids: list[int]
    logps: list[float]
    finish_reason: Literal["stop", "length"]


def request_seed(run_seed: int, stage_id: str, prompt_id: str, sample: int) -> int:
    """Return the seed of one request, in [0, 2**63); it depends on nothing else, so a resumed run samples the same."""
    text = "\x1f".join((str(run_seed), stage_id, prompt_id, str(sample)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_logps(request: Request, logps: list[float]) -> None:
    """Raise `StageError` if a log-probability of a request's answer is NaN or infinite."""
    if not all(map(math.isfinite, logps)):
        raise StageError(
            f"the model gives NaN or infinite log-probabilities to an answer to prompt {request.prompt_id}",
            fix="look for a training stage that diverged, or set model.dtype to float32",
        )


def check_lengths(requests: Sequence[Request], max_tokens: int, limit: int, key: str) -> None:
    """Refuse prompts that leave no room for a whole answer, before any engine sees them.

    Args:
        requests: what the sampler is asked for.
        max_tokens: the most tokens of an answer.
        limit: the most tokens of prompt and answer together.
        key: the key of the recipe that sets the limit.

    Raises:
        DataError: a prompt leaves no room; the error names the longest one.
    """
    if not requests:
        return
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if len(longest.prompt_ids) + max_tokens > limit:
        raise DataError(
            f"a prompt of {len(longest.prompt_ids)} tokens and an answer of up to {max_tokens} do not fit {key} "
            f"({limit})",
            where=f"prompt {longest.prompt_id}",
            fix=f"shorten the prompt, or raise {key}",
        )
