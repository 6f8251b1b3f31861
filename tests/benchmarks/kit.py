"""What the benchmarks share: random models and texts, and sides that take turns."""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spa_recipes.generation.scoring import Scored
from spa_recipes.models.products import fast_products

PAD = 0
PROMPT, RESPONSE = (20, 120), (20, 200)
"""Shortest and longest, in tokens."""


def llama(
    hidden: int,
    layers: int,
    vocab: int,
    *,
    seed: int = 0,
    heads: int = 4,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> PreTrainedModel:
    """A random Llama, made where it will be: a large one takes minutes on a CPU, and moments on a GPU."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=3 * hidden,
        tie_word_embeddings=True,
        initializer_range=0.06,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        **changes,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device or torch.device("cpu"):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)


def work_device() -> torch.device:
    """The GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def said(what: str) -> Iterator[None]:
    """Say what is done while it is done, and how long it took: a benchmark that is silent may as well hang."""
    print(f"  {what} ...", end="", flush=True)
    begin = time.perf_counter()
    yield
    print(f" {time.perf_counter() - begin:.1f} s", flush=True)


def pairs(count: int, vocab: int) -> list[Scored]:
    """Two random responses to each of `count` random prompts, the responses of a prompt side by side."""
    rng = random.Random(0)

    def text(lengths: tuple[int, int]) -> list[int]:
        return [rng.randrange(1, vocab) for _ in range(rng.randint(*lengths))]

    return [Scored(prompt, text(RESPONSE)) for _ in range(count) for prompt in [text(PROMPT)] for _ in range(2)]


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    limit: float = float("inf"),
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:
    """Shortest time of each side in seconds; one after the other, so that a slow moment meets them all.

    Args:
        limit: seconds of all sides together after which no other turn begins; the first turn is always whole.
        say: told of each side what it is and how long it took.
    """
    best = dict.fromkeys(sides, float("inf"))
    start = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - start > limit:
            break
        for name, work in sides.items():
            begin = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = clock() - begin
            best[name] = min(best[name], seconds)
            say(f"  turn {turn + 1}, {name}: {seconds:.2f} s")
    return best


class Tokens(NamedTuple):
    """Tokens of some texts, and those of their responses alone."""

    all: int
    response: int


def tokens_of(items: list[Scored]) -> Tokens:
    """Count them, every response with a prompt of its own."""
    response = sum(len(item.response_ids) for item in items)
    return Tokens(sum(len(item.prompt_ids) for item in items) + response, response)


def linear_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """Weights of the linear layers below the output layer."""
    return [layer.weight for layer in model.base_model.modules() if isinstance(layer, torch.nn.Linear)]


def product_flops(model: PreTrainedModel, items: list[Scored]) -> float:
    """Operations of the matrix products that one pass over the items takes: those of the linear layers at every token,
    and of the output layer at response tokens. Attention comes on top of them, and is left out."""
    tokens = tokens_of(items)
    body = sum(weight.numel() for weight in linear_weights(model))
    head: int = model.get_output_embeddings().weight.numel()
    return 2.0 * (body * tokens.all + head * tokens.response)


@torch.inference_mode()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large product, which is as fast as this machine gets."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with fast_products(device):
        seconds = take_turns({"product": lambda: linear(a, b)}, 10)
    return 2.0 * size**3 / seconds["product"]


def where(threads: int) -> str:
    """Machine and day, for the figures to be kept with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {threads} threads"
    return f"{device}, torch {torch.__version__}, {date.today()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return f"{name or platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
