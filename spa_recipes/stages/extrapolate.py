"""The last policy, moved further away from pi_init in its weights: a control that trains nothing."""

from dataclasses import replace

import torch

from spa_recipes.models.extrapolation import extrapolated
from spa_recipes.models.loading import load_causal_lm, stored_dtype
from spa_recipes.models.saving import save_model
from spa_recipes.plan import MODEL
from spa_recipes.stages.common import model_section, renderer_of
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `model/`, in the precision of the policy that it starts from."""
    policy = model_section(context, "policy")
    trained, init = (
        load_causal_lm(section.model_name_or_path, section, torch.float32)
        for section in (policy, model_section(context, "init"))
    )
    dtype = stored_dtype(policy) or torch.float32
    weights = extrapolated(trained, init, context.spec.settings["factor"])
    kept = save_model(
        trained,
        weights if dtype == torch.float32 else replace(weights, start=weights.tensors),
        renderer_of(policy, context.notice).tokenizer,
        context.draft / MODEL,
        source=policy.model_name_or_path,
        settings=policy,
        dtype=dtype,
        key=context.spec.key,
    )
    return Result(rows=0, tokens=0, metrics=dict(kept))
