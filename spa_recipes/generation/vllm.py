"""Sampling with vLLM's offline engine (extra `vllm`)."""

from collections.abc import Callable, Sequence
from typing import Any

from spa_recipes.errors import RecipeError
from spa_recipes.generation.engines import Engine, Progress
from spa_recipes.generation.requests import Completion, Request, check_logps
from spa_recipes.recipe.schema import Model, Sampling, VllmBackend


def open_vllm(model: Model, sampling: Sampling, backend: VllmBackend, stop_ids: Sequence[int]) -> Engine:
    """Start a vLLM engine for a model; it is asked in token ids and knows no tokenizer.

    Raises:
        RecipeError: vLLM is not installed, or cannot serve the model with these settings.
    """
    try:
        import vllm
    except ImportError as error:
        raise RecipeError(
            f"sampling.backend.type is vllm, and vLLM cannot be imported: {error}",
            fix="install the extra `vllm`, or set sampling.backend.type to transformers",
        ) from error
    try:
        llm = vllm.LLM(
            model=model.model_name_or_path,
            revision=model.revision,
            dtype=_dtype(model.dtype),
            trust_remote_code=model.trust_remote_code,
            load_format="safetensors",  # a pickle can run code when it is loaded
            max_model_len=backend.max_model_len or model.max_length,
            tensor_parallel_size=backend.tensor_parallel_size,
            gpu_memory_utilization=backend.gpu_memory_utilization,
            enforce_eager=backend.enforce_eager,
            skip_tokenizer_init=True,
            # The model's generation_config would add stop tokens and penalties of its own.
            generation_config="vllm",
            # Log-probs before temperature and nucleus, which is what is judged.
            logprobs_mode="raw_logprobs",
        )
    except ValueError as error:
        raise RecipeError(
            f"vLLM cannot serve {model.model_name_or_path}: {error}",
            fix="change model or sampling.backend, or set sampling.backend.type to transformers",
        ) from error

    def engine(
        requests: Sequence[Request],
        *,
        seed_of: Callable[[Request], int],
        on_progress: Progress | None = None,
    ) -> list[Completion]:
        outputs = llm.generate(
            [{"prompt_token_ids": request.prompt_ids} for request in requests],
            [_params(sampling, stop_ids, seed_of(request)) for request in requests],
            use_tqdm=False,
        )
        completions = [_completion(request, output) for request, output in zip(requests, outputs, strict=True)]
        if on_progress is not None:
            on_progress(len(completions), sum(len(completion.response_ids) for completion in completions))
        return completions

    return engine


def _dtype(name: str) -> str:
    """`auto` as the recipe means it: bfloat16 on a GPU that has it, else float32."""
    if name != "auto":
        return name
    from vllm.platforms import current_platform

    return "bfloat16" if current_platform.has_device_capability(80) else "float32"


def _params(sampling: Sampling, stop_ids: Sequence[int], seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=seed,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,  # only `stop_ids` end an answer, whatever the model's config calls its end
        logprobs=0,  # of the sampled token only
        detokenize=False,
    )


def _completion(request: Request, output: Any) -> Completion:
    answer = output.outputs[0]
    response_ids = list(answer.token_ids)
    logps = [step[token].logprob for step, token in zip(answer.logprobs, response_ids, strict=True)]
    check_logps(request, logps)
    return Completion(
        request.prompt_id, request.sample, response_ids, logps, "stop" if answer.finish_reason == "stop" else "length"
    )
