"""How errors say that memory ran out, and how what is not used is given back. Imports nothing heavy."""

import gc
import sys

WORDS = ("out of memory", "OutOfMemoryError", "can't allocate memory", "Cannot allocate memory", "not enough memory")
"""What torch says on a GPU and on a CPU, the system, and vLLM."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, torch's on any device, or the system's."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__} {error}"
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in WORDS)


def give_back_gpu_memory() -> None:
    """Let another process have the memory of the GPU that no tensor uses: torch keeps what it has freed."""
    gc.collect()  # a model that a function was done with may still hang in a cycle
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
