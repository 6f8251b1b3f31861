"""One way to ask for samples, whatever engine the recipe names."""

from collections.abc import Callable, Sequence
from typing import Protocol

from spa_recipes.generation.requests import Completion, Request
from spa_recipes.recipe.schema import Model, Sampling, TransformersBackend

Progress = Callable[[int, int], None]
"""Called with the number of requests and of tokens that are finished so far."""


class Engine(Protocol):
    """A loaded model that samples."""

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        seed_of: Callable[[Request], int],
        on_progress: Progress | None = None,
    ) -> list[Completion]:
        """Sample one answer per request, in the order of the requests."""


def open_engine(model: Model, sampling: Sampling, stop_ids: Sequence[int]) -> Engine:
    """Load a model into the engine of `sampling.backend`.

    Raises:
        RecipeError: the engine is not installed or cannot serve the model.
        DataError: the model cannot be loaded.
        TryAgainError: out of memory.
    """
    if isinstance(sampling.backend, TransformersBackend):
        return _open_transformers(model, sampling, sampling.backend, stop_ids)
    from spa_recipes.generation.vllm import open_vllm

    return open_vllm(model, sampling, sampling.backend, stop_ids)


def _open_transformers(
    model: Model, sampling: Sampling, backend: TransformersBackend, stop_ids: Sequence[int]
) -> Engine:
    from spa_recipes.generation.transformers import load_model, sample

    loaded = load_model(model.model_name_or_path, model=model, revision=model.revision)

    def engine(
        requests: Sequence[Request],
        *,
        seed_of: Callable[[Request], int],
        on_progress: Progress | None = None,
    ) -> list[Completion]:
        return sample(
            loaded,
            requests,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop_ids=stop_ids,
            seed_of=seed_of,
            batch_size=backend.batch_size,
            on_progress=on_progress,
        )

    return engine
