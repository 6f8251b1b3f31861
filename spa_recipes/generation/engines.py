"""One way to ask for samples, whatever engine the recipe names."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from spa_recipes.generation.requests import Completion, Request, check_lengths
from spa_recipes.recipe.schema import Model, Sampling, TransformersBackend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
"""Called with the number of requests and of tokens that are finished so far."""

SeedOf = Callable[[Request], int]
"""Seed of a request, in [0, 2**63)."""


class Engine(Protocol):
    """A loaded model that samples."""

    def stream(
        self, groups: Iterable[Sequence[Request]], *, seed_of: SeedOf, on_progress: Progress | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Sample one answer per request, and give back a group as soon as all of its answers are there.

        Groups are what the caller commits, not batches: an engine that can works on several of them at a time, and
        asks for the next one when it has room.

        Yields:
            Number of the group and its completions in the order of its requests; groups in any order.

        Raises:
            DataError: a prompt does not fit; nothing of its group was sampled.
            StageError: the model gives NaN or infinite log-probabilities.
            TryAgainError: out of memory.
        """

    def close(self) -> None:
        """Release the model and its memory."""


def open_engine(
    model: Model,
    sampling: Sampling,
    stop_ids: Sequence[int],
    *,
    adapter: Path | None = None,
) -> Engine:
    """Load a model into the engine of `sampling.backend`.

    Args:
        model: with the place of its weights.
        sampling: how answers are sampled.
        stop_ids: token ids that end an answer; the answer keeps the one that ended it.
        adapter: LoRA weights on top of the model's; for vLLM only.

    Raises:
        RecipeError: the engine is not installed or cannot serve the model.
        DataError: the model cannot be loaded.
        TryAgainError: out of memory.
    """
    if isinstance(sampling.backend, TransformersBackend):
        from spa_recipes.models.loading import for_inference, load_causal_lm

        loaded = for_inference(load_causal_lm, model)
        return _Transformers(loaded, sampling, sampling.backend.batch_size, stop_ids, model.max_length)
    from spa_recipes.generation.vllm import open_vllm

    return open_vllm(model, sampling, sampling.backend, stop_ids, adapter=adapter)


class _Transformers:
    """Works group by group, and sorts requests by length inside a group, which its batches need."""

    def __init__(
        self, model: "PreTrainedModel", sampling: Sampling, batch_size: int, stop_ids: Sequence[int], max_length: int
    ) -> None:
        self._model: PreTrainedModel | None = model
        self._sampling, self._batch_size, self._stop_ids = sampling, batch_size, stop_ids
        self._max_length = max_length
        self._compared = False

    def stream(
        self, groups: Iterable[Sequence[Request]], *, seed_of: SeedOf, on_progress: Progress | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        from spa_recipes.generation.transformers import sample

        assert self._model is not None
        before, tokens = 0, 0
        for number, requests in enumerate(groups):
            check_lengths(requests, self._sampling.max_tokens, self._max_length, "model.max_length")
            completions = sample(
                self._model,
                requests,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                max_tokens=self._sampling.max_tokens,
                stop_ids=self._stop_ids,
                seed_of=seed_of,
                batch_size=self._batch_size,
                on_progress=_after(before, tokens, on_progress),
                compare=not self._compared,
            )
            self._compared = True
            before += len(completions)
            tokens += sum(len(completion.response_ids) for completion in completions)
            yield number, completions

    def close(self) -> None:
        self._model = None


def _after(requests: int, tokens: int, report: Progress | None) -> Progress | None:
    """A report that adds what earlier groups did."""
    return None if report is None else lambda done, made: report(requests + done, tokens + made)
