"""How errors say that memory ran out. Imports nothing heavy."""

WORDS = ("out of memory", "OutOfMemoryError", "can't allocate memory", "Cannot allocate memory", "not enough memory")
"""What torch says on a GPU and on a CPU, the system, and vLLM."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, torch's on any device, or the system's."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__} {error}"
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in WORDS)
