"""A policy a small update away from its reference, both stored in bfloat16, and pairs to judge."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_candidates
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.rounding import stochastic
from spa_recipes.recipe.schema import DatasetSource, Model
from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import preference_rows
from spa_recipes.stages.common import renderer_of


def half_inputs(folder: Path, *, pairs: int, update: float = 4e-4, whole: bool = False) -> None:
    """`policy`, `reference` and `pairs.jsonl` for `spa judge`.

    Args:
        update: standard deviation of what is added to each weight. The default gives margins of 0.01 to 1 nat, in
            weights of about 0.06, whose neighbours in bfloat16 are as far apart.
        whole: both are stored in float32 instead.
    """
    build_model(folder / "reference", seed=1)
    build_model(folder / "policy", seed=1)
    reference, policy = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("reference", "policy"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for (name, ours), theirs in zip(policy.named_parameters(), reference.parameters(), strict=True):
            if not whole:
                theirs.copy_(theirs.bfloat16())
            exact = theirs + update * torch.randn(theirs.shape, generator=generator)
            ours.copy_(exact if whole else stochastic(exact, torch.bfloat16, key="test", name=name))
    for name, model in (("reference", reference), ("policy", policy)):
        (model if whole else model.bfloat16()).save_pretrained(folder / name)
    write_jsonl(folder / "pairs.jsonl", preference_rows(pairs, seed=0))


def exact_margins(folder: Path) -> dict[str, tuple[str, float]]:
    """By prompt its first answer, and 0.1 times the margin of that over the second, in float64 on stored weights."""
    section = Model(model_name_or_path=str(folder / "policy"), max_length=128, max_prompt_length=48)
    renderer = renderer_of(section)
    rows = read_candidates(DatasetSource(source=str(folder / "pairs.jsonl"))).rows
    items = [
        Scored(renderer.prompt_ids(row["prompt"]), renderer.response_ids(row["prompt"], text))
        for row in rows
        for text in row["responses"]
    ]
    models = (AutoModelForCausalLM.from_pretrained(folder / name).double().eval() for name in ("policy", "reference"))
    ours, theirs = (sequence_logps(model, items, tokens_per_batch=2000) for model in models)
    ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        row["prompt_id"]: (row["responses"][0], 0.1 * (ratios[2 * k] - ratios[2 * k + 1])) for k, row in enumerate(rows)
    }


def adapter_over(base: Path, folder: Path, size: float = 0.003) -> None:
    """LoRA weights over a model, random and small."""
    import peft

    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
