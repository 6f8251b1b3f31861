"""Memory that ran out: how that is recognised, and which settings make a stage smaller."""

from typing import Any

_WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
_SECTIONS = {"sft": "sft", "dpo": "seed_training", "reward_model": "judge.training", "refine": "refine"}
_SCORING = "set compute.score_tokens_per_batch lower"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: Python's own, torch's on any device, or the system's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _WORDS)
    )


def smaller(kind: str, settings: dict[str, Any]) -> str:
    """The keys of the recipe that lower the memory of a kind of stage.

    Args:
        settings: the stage's settings in JSON form.
    """
    if kind in _SECTIONS:
        section = _SECTIONS[kind]
        return f"set {section}.per_device_train_batch_size lower, {section}.gradient_checkpointing: true, or model.lora"
    if kind in ("score", "reward"):
        return _SCORING
    if kind in ("generate", "verdicts", "evaluate", "answers"):
        vllm = settings["sampling"]["backend"]["type"] == "vllm"
        if kind == "verdicts":
            sampling = "gpu_memory_utilization" if vllm else "batch_size"
            return f"set sampling.backend.{sampling} or judge.max_length lower"
        sampling = "gpu_memory_utilization or max_model_len" if vllm else "batch_size"
        fix = f"set sampling.backend.{sampling} or sampling.max_tokens lower"
        return f"{fix}, or {_SCORING.removeprefix('set ')}" if kind == "evaluate" else fix
    return "use fewer rows, or a machine with more memory"
