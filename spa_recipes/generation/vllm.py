"""Sampling with vLLM's offline engine (extra `vllm`)."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spa_recipes.errors import RecipeError, SpaError, StageError, TryAgainError
from spa_recipes.generation.engines import Engine, Progress, SeedOf
from spa_recipes.generation.requests import Completion, Request, check_lengths, check_logps
from spa_recipes.models import memory
from spa_recipes.models.dtype import resolved_dtype
from spa_recipes.models.memory import give_back_gpu_memory
from spa_recipes.recipe.schema import Model, Sampling, VllmBackend

WAITING = 4
"""Requests in the engine, as a multiple of those it runs at once: enough that it never waits for the next group."""

PATIENCE_SECONDS = 20.0
"""An engine's process has so long to end by itself before it is killed."""

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; an adapter needs the next larger one."""


def open_vllm(
    model: Model, sampling: Sampling, backend: VllmBackend, stop_ids: Sequence[int], *, adapter: Path | None = None
) -> Engine:
    """Start a vLLM engine for a model; it is asked in token ids and knows no tokenizer.

    Raises:
        RecipeError: vLLM is not installed, or cannot serve the model with these settings.
        TryAgainError: there is not enough memory for it.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing is sent anywhere that the user did not ask for
    try:
        import vllm
    except ImportError as error:
        raise RecipeError(
            f"sampling.backend.type is vllm, and vLLM cannot be imported: {error}",
            fix="pip install 'spa-recipes[vllm]', or name the Python that has it in compute.vllm_python, or set "
            "sampling.backend.type to transformers",
        ) from error
    log = _Log()
    max_model_len = backend.max_model_len or model.max_length
    give_back_gpu_memory()  # what a stage has scored with before it samples
    try:
        llm = vllm.LLM(
            model=model.model_name_or_path,
            revision=model.revision,
            dtype=_dtype(model.dtype),
            trust_remote_code=model.trust_remote_code,
            load_format="safetensors",  # a pickle can run code when it is loaded
            max_model_len=max_model_len,
            tensor_parallel_size=backend.tensor_parallel_size,
            gpu_memory_utilization=backend.gpu_memory_utilization,
            enforce_eager=backend.enforce_eager,
            skip_tokenizer_init=True,
            # The model's generation_config would add stop tokens and penalties of its own.
            generation_config="vllm",
            # Log-probs before temperature and nucleus, which is what is judged.
            logprobs_mode="raw_logprobs",
            **_adapter_settings(adapter),
            **_cpu_settings(),
        )
    except Exception as error:  # vLLM's parts and its engine's process raise all kinds
        raise _start_error(error, model, log.written_since()) from error
    return _Vllm(llm, model, sampling, stop_ids, max_model_len, adapter, log)


class _Vllm:
    """An engine that is fed group after group, so that it always has as many answers to work on as it can hold."""

    def __init__(
        self,
        llm: Any,
        model: Model,
        sampling: Sampling,
        stop_ids: Sequence[int],
        max_model_len: int,
        adapter: Path | None,
        log: "_Log",
    ) -> None:
        self._llm, self._model, self._sampling, self._stop_ids = llm, model, sampling, list(stop_ids)
        self._max_model_len, self._log = max_model_len, log
        self._adapter = _adapter_request(adapter)

    def stream(
        self, groups: Iterable[Sequence[Request]], *, seed_of: SeedOf, on_progress: Progress | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        engine = self._llm.llm_engine
        room = WAITING * engine.vllm_config.scheduler_config.max_num_seqs
        source = enumerate(groups)
        open_groups: dict[int, _Group] = {}
        finished, tokens = 0, 0
        exhausted = False
        while open_groups or not exhausted:
            while not exhausted and engine.get_num_unfinished_requests() < room:
                number, requests = next(source, (None, ()))
                if number is None:
                    exhausted = True
                    continue
                check_lengths(
                    requests, self._sampling.max_tokens, self._max_model_len, "sampling.backend.max_model_len"
                )
                open_groups[number] = _Group(requests)
                self._add(number, requests, seed_of)
            for output in self._step():
                number, place = map(int, output.request_id.split("/"))
                completion = _completion(open_groups[number].requests[place], output)
                open_groups[number].put(place, completion)
                finished, tokens = finished + 1, tokens + len(completion.response_ids)
                if on_progress is not None:
                    on_progress(finished, tokens)
            for number in [number for number, group in open_groups.items() if group.missing == 0]:
                yield number, open_groups.pop(number).completions()

    def _add(self, number: int, requests: Sequence[Request], seed_of: SeedOf) -> None:
        from vllm.inputs.engine import tokens_input

        for place, request in enumerate(requests):
            prompt, params = tokens_input(request.prompt_ids), self._params(seed_of(request))
            with self._telling_why():
                self._llm.llm_engine.add_request(f"{number}/{place}", prompt, params, lora_request=self._adapter)

    def _step(self) -> list[Any]:
        """One step of the engine; the answers that it finished."""
        engine = self._llm.llm_engine
        if not engine.has_unfinished_requests():
            return []
        with self._telling_why():
            return [output for output in engine.step() if output.finished]

    @contextmanager
    def _telling_why(self) -> Iterator[None]:
        """Say why the engine stopped, whichever call finds it so: only the log tells what happened in its process."""
        try:
            yield
        except Exception as error:
            raise _engine_error(error, self._model, self._log.written_since()) from error

    def _params(self, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_tokens,
            seed=seed,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,  # only `stop_ids` end an answer, whatever the model's config calls its end
            logprobs=0,  # of the sampled token only
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def close(self) -> None:
        """End the engine's process, and wait until it is gone: only then is its memory free."""
        if self._llm is not None:
            core = self._llm.llm_engine.engine_core
            processes = core.resources.engine_manager.processes
            core.shutdown(timeout=PATIENCE_SECONDS)
            for process in processes:
                process.join(PATIENCE_SECONDS)
            self._llm = None


class _Group:
    """Requests of a group and those of their completions that are there."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.missing = len(requests)
        self._completions: dict[int, Completion] = {}

    def put(self, place: int, completion: Completion) -> None:
        self._completions[place] = completion
        self.missing -= 1

    def completions(self) -> list[Completion]:
        return [self._completions[place] for place in range(len(self.requests))]


def _completion(request: Request, output: Any) -> Completion:
    answer = output.outputs[0]
    response_ids = list(answer.token_ids)
    logps = [step[token].logprob for step, token in zip(answer.logprobs, response_ids, strict=True)]
    check_logps(request, logps)
    return Completion(
        request.prompt_id, request.sample, response_ids, logps, "stop" if answer.finish_reason == "stop" else "length"
    )


def _dtype(name: str) -> str:
    """`auto` as the recipe means it; vLLM's own `auto` is the precision of the saved weights."""
    from vllm.platforms import current_platform

    return resolved_dtype(name, has_bfloat16=current_platform.has_device_capability(80))


def _cpu_settings() -> dict[str, Any]:
    """vLLM 0.32 turns a request's generator back after a chunk of its prompt, which torch's on the CPU cannot do."""
    from vllm.platforms import current_platform

    return {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}


# --- adapters


def _adapter_settings(adapter: Path | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    from spa_recipes.models.lora_files import read_lora

    rank = int(read_lora(adapter).config["r"])  # a stack of adapters has the sum of their ranks
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next((size for size in ADAPTER_RANKS if size >= rank), rank),
    }


def _adapter_request(adapter: Path | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("policy", 1, str(adapter))


# --- what goes wrong


_OUTPUT = Path("/proc/self/fd/2")


class _Log:
    """This process's own output, as far as it goes to a file: the engine's process writes its errors nowhere else."""

    def __init__(self) -> None:
        self._begin = _OUTPUT.stat().st_size if _OUTPUT.is_file() else 0

    def written_since(self) -> str:
        """What was written after this object was made; empty where the output is a terminal or a pipe."""
        if not _OUTPUT.is_file():
            return ""
        with _OUTPUT.open("rb") as handle:
            handle.seek(self._begin)
            return handle.read().decode(errors="replace")


_ERROR_LINE = re.compile(r"(?:^|[\s\]])(?:[\w.]*\.)?(\w+(?:Error|Exception)): +(\S.*)$")
_SEE_ABOVE = ("root cause",)
_NO_MEMORY = (
    "Free memory on device",
    "Available memory on node",
    "No available memory for the cache blocks",
    "to serve even a single token",
    "is larger than the available KV cache memory",
    *memory.WORDS,
)
_PYDANTIC = ("Value error", "Assertion failed")


def _start_error(error: Exception, model: Model, log: str) -> SpaError:
    """Why the engine did not start, in one line."""
    reason = _reason(error, log)
    return _memory_error(reason, model) or RecipeError(
        f"vLLM cannot serve this model: {reason}",
        where=model.model_name_or_path,
        fix="change model or sampling.backend, or set sampling.backend.type to transformers",
    )


def _engine_error(error: Exception, model: Model, log: str) -> SpaError:
    """Why a started engine stopped, in one line."""
    reason = _reason(error, log)
    return _memory_error(reason, model) or StageError(
        f"vLLM stopped: {reason}",
        where=model.model_name_or_path,
        fix="the answers that are there stay; if it stops again, set sampling.backend.type to transformers",
    )


def _memory_error(reason: str, model: Model) -> TryAgainError | None:
    """Which keys to change, where a reason is a lack of memory."""
    if not any(words in reason for words in _NO_MEMORY):
        return None
    if "on startup" in reason:  # others hold it
        fix = "end what else holds the memory, or set sampling.backend.gpu_memory_utilization lower"
    elif "max seq len" in reason:
        fix = (
            "set sampling.backend.max_model_len (or model.max_length) lower, or gpu_memory_utilization or "
            "tensor_parallel_size higher"
        )
    else:
        fix = (
            "set sampling.backend.gpu_memory_utilization or tensor_parallel_size higher, max_model_len lower, or "
            "enforce_eager: true"
        )
    return TryAgainError(f"not enough memory for vLLM: {reason}", where=model.model_name_or_path, fix=fix)


def _reason(error: Exception, log: str) -> str:
    """The first sentence that names the cause: the error's own, or where it only points there, the log's last."""
    own = _first_sentence(str(error)) or type(error).__name__
    if not any(words in str(error) for words in _SEE_ABOVE):
        return own
    found = [match[2] for line in log.splitlines() if (match := _ERROR_LINE.search(line))]
    causes = [text for text in found if not any(words in text for words in _SEE_ABOVE)]
    return _first_sentence(causes[-1]) if causes else own


def _first_sentence(text: str) -> str:
    """The line that says what is wrong; pydantic puts a heading and the field's name above it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [after for line in lines for before, _, after in [line.partition(", ")] if before in _PYDANTIC]
    sentence = (said or lines or [""])[0]
    return re.split(r" \[type=|(?<=\.) (?=See |Try |For |Please |Reduce |To resolve|Decrease )", sentence)[0].rstrip(
        "."
    )
