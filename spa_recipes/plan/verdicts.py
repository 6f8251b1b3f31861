"""The stages of a judge that compares answers, or scores them, in words."""

from pathlib import Path
from typing import Any

from spa_recipes.plan.stages import Builder, Input
from spa_recipes.recipe.schema import LlmJudge, Model, Sampling


def add_verdicts(
    judge: LlmJudge,
    stage_id: str,
    build: Builder,
    *,
    key: str,
    model: dict[str, Any],
    sampling: Sampling,
    seed: int,
    answers: dict[str, Input],
    policy: tuple[str, dict[str, Input]] | None = None,
    rows: int | None = None,
) -> str:
    """The stage in which a language model judges the answers in words, leaving their rewards and its verdicts.

    Args:
        key: the judge's section, for messages.
        model, sampling, seed: of the models that answer; a judge on this machine is loaded and asked in the same way.
        answers: completions and prompts.
        policy: name and inputs of the model that judges where the recipe names none.
    """
    from spa_recipes.data.questions import FORMS, load_question

    question = Path(judge.prompt).expanduser() if judge.prompt is not None else FORMS[judge.mode].shipped
    load_question(question, judge.mode)
    # The model and the question are inputs; what else they need stands beside.
    elsewhere = ("model_name_or_path", "revision", "chat_template", "max_length", "endpoint", "prompt")
    without: dict[str, Any] = {**dict.fromkeys(elsewhere), "chat_template_kwargs": {}}
    settings: dict[str, Any] = {"judge": judge.model_copy(update=without)}
    inputs: dict[str, Input] = {**answers, "question": build.file(str(question), f"{key}.prompt")}
    if judge.endpoint is not None:
        kind, name = "endpoint_verdicts", f"{judge.endpoint.model} at {judge.endpoint.base_url}"
        settings["endpoint"] = judge.endpoint
    elif judge.model_name_or_path is not None:
        kind, name = "verdicts", judge.model_name_or_path
        # The recipe's chat template is that of the models that answer.
        section: Model = model["model"]
        rendering = {"chat_template": judge.chat_template, "chat_template_kwargs": judge.chat_template_kwargs}
        own = build.model_settings(section.model_copy(update=rendering), key)
        settings |= {**_asking(judge, own, sampling), "seed": seed}
        inputs["model"] = build.model(name, judge.revision, f"{key}.model_name_or_path")
    else:
        assert policy is not None
        kind, name = "verdicts", policy[0]
        settings |= {**_asking(judge, model, sampling), "seed": seed}
        inputs |= policy[1]
    role = (
        f"{name} compares the answers in words, each pair in both orders"
        if judge.mode == "pairs"
        else f"{name} gives each answer a score in words"
    )
    return build.add(stage_id, kind, role, settings=settings, inputs=inputs, rows=rows)


def _asking(judge: LlmJudge, model: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """How a judge on this machine is asked: with the recipe's engine and its own lengths; only scores are sampled."""
    section: Model = model["model"]
    limit, backend = judge.max_length or section.max_length, sampling.backend
    if backend.type == "vllm":
        backend = backend.model_copy(update={"max_model_len": None})  # which is for the answers
    temperature = 0.0 if judge.samples == 1 else 1.0
    asking = {"n": 2, "temperature": temperature, "top_p": 1.0, "max_tokens": judge.max_tokens, "backend": backend}
    return {
        **model,
        "model": section.model_copy(update={"max_length": limit, "max_prompt_length": limit - judge.max_tokens}),
        "sampling": sampling.model_copy(update=asking),
    }
