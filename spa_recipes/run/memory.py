"""Which settings make a stage need less memory."""

from typing import Any

from spa_recipes.plan import KINDS, Kind


def smaller(kind: str, settings: dict[str, Any]) -> str:
    """The keys of the recipe that lower the memory of a kind of stage.

    Args:
        settings: the stage's settings in JSON form.
    """
    facts = KINDS[kind]
    if "train" in facts.work:
        batch, checkpointing = f"{facts.section}.per_device_train_batch_size", f"{facts.section}.gradient_checkpointing"
        return f"set {batch} lower, {checkpointing}: true, or model.lora"
    lower = [*(_sampling_keys(facts, settings) if "sample" in facts.work else ())]
    if facts.module == "lm_eval":
        lower.append("the benchmark's batch_size")
    elif "score" in facts.work:
        lower.append("compute.score_tokens_per_batch")
    if not lower:
        return "use fewer rows, or a machine with more memory"
    alone = "; judge.method: difference has one model in memory at a time" if "method" in settings else ""
    return f"set {' or '.join(lower)} lower{alone}"


def _sampling_keys(kind: Kind, settings: dict[str, Any]) -> list[str]:
    vllm = settings["sampling"]["backend"]["type"] == "vllm"
    batch = "sampling.backend.gpu_memory_utilization" if vllm else "sampling.backend.batch_size"
    if kind.tokens == "verdict":
        return [batch, "judge.max_length"]
    return [batch, *(["sampling.backend.max_model_len"] if vllm else []), "sampling.max_tokens"]
