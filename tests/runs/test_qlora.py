"""QLoRA: adapters of several trainings stack on one model in 4 bits, and everything reads them on it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from spa_recipes.data.rows import read_rows
from spa_recipes.data.stage_rows import TraceRow
from spa_recipes.data.tables import COMPLETIONS, CompletionRow, read_log_ratios, read_table, write_completions
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.adapters import lay_under
from spa_recipes.models.loading import load_causal_lm, load_four_bit_values
from spa_recipes.models.lora_files import is_on_4bit, read_lora, stack_up
from spa_recipes.recipe.schema import Lora, Model
from spa_recipes.stages import log_ratios as stage
from spa_recipes.training.env import TrainResult
from spa_recipes.training.run import train_preference
from tests.kit.half import adapter_over
from tests.kit.stages import context_of
from tests.kit.training import (
    REFINEMENT,
    KilledError,
    dying_at,
    make_env,
    make_model,
    make_pairs,
    preference,
    weights,
)

pytest.importorskip("bitsandbytes", reason="weights in 4 bits need bitsandbytes (extra qlora)")

LORA = Lora(lora_r=4, lora_alpha=12, load_in_4bit=True)
PAIRS = make_pairs(20, reference=False)
ITEMS = [Scored(pair["prompt_ids"], pair[side]) for pair in PAIRS for side in ("chosen_ids", "rejected_ids")]


def refine(base: Path, before: Path | None, folder: Path, *, dtype: Any = "float32", **options: Any) -> TrainResult:
    """Refine the policy in `before` (None: the base itself): 20 pairs in batches of 8, six steps."""
    policy = base if before is None else before / "out"
    env = replace(
        make_env(policy, folder, dtype=dtype, lora=LORA, **options),
        adapter_dir=folder / "adapter",
        base=Model(model_name_or_path=str(base), dtype=dtype),
        stack=None if before is None else before / "adapter",
    )
    settings = preference(num_train_epochs=2, per_device_train_batch_size=4, save_steps=2)
    return train_preference(policy, PAIRS, settings, env, reference_path=None, refinement=REFINEMENT)


class World:
    """A base model, and two refinements one after the other in float32."""

    def __init__(self, home: Path) -> None:
        self.base, self.first, self.second = make_model(home / "base"), home / "first", home / "second"
        self.section = Model(model_name_or_path=str(self.base), dtype="float32", lora=LORA)
        refine(self.base, None, self.first)
        refine(self.base, self.first, self.second)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("qlora"))


def separately(world: World, *, parts: int) -> PreTrainedModel:
    """The values of the 4 bits in float64, with each of the first adapters added by itself."""
    model = load_four_bit_values(world.base, world.section, torch.float64, trained_in=torch.float32)
    state = model.state_dict()
    tensors = load_file(world.second / "adapter" / "adapter_model.safetensors")
    for name, down in tensors.items():
        if "lora_A" in name:
            up = tensors[name.replace("lora_A", "lora_B")]
            for rows in (slice(0, 4), slice(4, 8))[:parts]:
                target = state[name.removeprefix("base_model.model.").replace(".lora_A", "")]
                target += 12 / 4 * up[:, rows].double() @ down[rows].double()
    return model


def plain_logps(model: PreTrainedModel, items: Sequence[Scored]) -> list[float]:
    """One sequence after the other, token by token."""
    found = []
    for item in items:
        ids = [*item.prompt_ids, *item.response_ids]
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(float(logps[t - 1, ids[t]]) for t in range(len(item.prompt_ids), len(ids))))
    return found


def trained_form(world: World, adapter: Path | None) -> PreTrainedModel:
    """The model as a training computes it."""
    model = load_causal_lm(world.base, world.section, torch.float32, in_4bit=True)
    if adapter is not None:
        lay_under(model, adapter, torch.float32)
    return model


def test_adapters_that_are_joined_give_the_log_probs_of_each_added_by_itself(world: World) -> None:
    for parts, adapter in enumerate((None, world.first / "adapter", world.second / "adapter")):
        ours = sequence_logps(trained_form(world, adapter), ITEMS, tokens_per_batch=200)
        assert ours == pytest.approx(plain_logps(separately(world, parts=parts), ITEMS), abs=2e-4)
    first, second = (read_lora(folder / "adapter") for folder in (world.first, world.second))
    assert (second.config["r"], second.config["lora_alpha"], second.scale) == (8, 24, first.scale)
    for module, (down, up) in first.factors.items():
        assert torch.equal(second.factors[module][0][:4], down)
        assert torch.equal(second.factors[module][1][:, :4], up)
        assert second.factors[module][1][:, 4:].any()


def test_a_refinement_starts_at_the_stack_before_it(world: World) -> None:
    """The first margins are exactly 0; the policy that they belong to is not the base."""
    for folder in (world.first, world.second):
        trace = read_rows(folder / "out" / "pairs_trace.jsonl", TraceRow)
        assert all(row["margin"] == 0.0 for row in trace if row["step"] == 1)
        assert any(abs(row["margin"]) > 1e-3 for row in trace if row["step"] == 3)
    stacks = (None, world.first / "adapter")
    base, first = (sequence_logps(trained_form(world, stack), ITEMS, tokens_per_batch=200) for stack in stacks)
    assert max(abs(a - b) for a, b in zip(base, first, strict=True)) > 1e-2


def test_the_saved_model_is_the_base_that_was_never_in_4_bits_with_the_whole_stack(world: World) -> None:
    stack, start, saved = read_lora(world.second / "adapter"), weights(world.base), weights(world.second / "out")
    for name, tensor in saved.items():
        down, up = stack.factors.get(name.removesuffix(".weight"), (None, None))
        wanted = start[name] if down is None or up is None else start[name] + stack.scale * up @ down
        assert torch.allclose(tensor, wanted, atol=1e-6)


def test_killed_and_resumed_it_saves_the_same_bytes(world: World, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        refine(world.base, world.first, tmp_path, on_progress=dying_at(5))
    assert refine(world.base, world.first, tmp_path).metrics["resumed_from_step"] == 4
    for name in ("out/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (world.second / name).read_bytes()


def test_in_half_precision_the_saved_model_keeps_the_update(world: World, tmp_path: Path) -> None:
    refine(world.base, None, tmp_path / "first", dtype="bfloat16")
    metrics = refine(world.base, tmp_path / "first", tmp_path / "second", dtype="bfloat16").metrics
    assert metrics["update_kept"] == pytest.approx(1.0, abs=0.1)


def log_ratios_of(world: World, adapter: Path, folder: Path, kept: Sequence[float], **model: Any) -> Any:
    """Values and metrics of the stage that reads both models, for answers whose log-probs sampling kept."""
    rows: list[CompletionRow] = [
        {
            "item": i // 2,
            "prompt_id": f"p{i // 2}",
            "sample": i % 2,
            "prompt_ids": item.prompt_ids,
            "response_ids": item.response_ids,
            "text": "",
            "logps": [kept[i] / len(item.response_ids)] * len(item.response_ids),
            "finish_reason": "stop",
        }
        for i, item in enumerate(ITEMS)
    ]
    write_completions(folder / "completions.parquet", rows)
    inputs = {
        "policy": world.base,
        "reference": world.base,
        "adapter": adapter,
        "completions": folder / "completions.parquet",
    }
    settings = {"model": world.section.model_copy(update=model).model_dump(mode="json"), "method": "auto"}
    here = context_of(folder / "stage", "log_ratios", settings=settings, inputs=inputs)
    metrics = stage.run(here).metrics
    table = read_log_ratios(here.draft / "log_ratios.parquet", read_table(inputs["completions"], COMPLETIONS))
    return table.values, metrics


def test_policy_and_reference_are_scored_on_the_same_4_bits(world: World, tmp_path: Path) -> None:
    """Sampling kept log-probs of the merged model: they differ by the quantization, which is measured and no fault."""
    merged = load_causal_lm(world.second / "out", world.section, torch.float32)
    kept = sequence_logps(merged, ITEMS, tokens_per_batch=200)
    values, metrics = log_ratios_of(world, world.second / "adapter", tmp_path, kept)
    policy, reference = (plain_logps(separately(world, parts=parts), ITEMS) for parts in (2, 0))
    assert values == pytest.approx([a - b for a, b in zip(policy, reference, strict=True)], abs=2e-4)
    off = [abs(a - b) for a, b in zip(kept, policy, strict=True)]
    assert 1e-3 < min(off) < metrics["quantization_mismatch"] < max(off)
    assert "kept_mismatch" not in metrics


def test_the_judge_differentiates_along_the_adapter_in_half_precision(world: World, tmp_path: Path) -> None:
    adapter_over(world.base, tmp_path / "small")
    stack_up(tmp_path / "small", None)
    section = world.section.model_copy(update={"dtype": "bfloat16"})
    reference, policy = (
        load_four_bit_values(world.base, section, torch.float64, trained_in=torch.bfloat16) for _ in range(2)
    )
    lora, state = read_lora(tmp_path / "small"), policy.state_dict()
    for module, (down, up) in lora.factors.items():
        state[f"{module}.weight"] += lora.scale * up.double() @ down.double()
    ours, theirs = (plain_logps(model, ITEMS) for model in (policy, reference))
    values, metrics = log_ratios_of(world, tmp_path / "small", tmp_path, ours, dtype="bfloat16")
    assert metrics["method"] == "tangent in bfloat16"
    exact = [a - b for a, b in zip(ours, theirs, strict=True)]
    errors = [abs(a - b) for a, b in zip(values, exact, strict=True)]
    assert sum(errors) < 0.05 * sum(map(abs, exact))


def test_adapters_of_two_scales_are_joined_as_their_sum(world: World, tmp_path: Path) -> None:
    for name, size in (("below", 0.01), ("above", 0.02)):
        adapter_over(world.base, tmp_path / name, size)
    config = tmp_path / "below" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 5'))
    below, above = (read_lora(tmp_path / name) for name in ("below", "above"))
    assert not is_on_4bit(tmp_path / "above")
    stack_up(tmp_path / "above", tmp_path / "below")
    assert is_on_4bit(tmp_path / "above")
    both = read_lora(tmp_path / "above")
    assert (below.scale, above.scale, both.config["r"]) == (5 / 4, 2.0, 8)
    for module, (down, up) in both.factors.items():
        parts = [one.scale * one.factors[module][1] @ one.factors[module][0] for one in (below, above)]
        assert torch.allclose(both.scale * up @ down, parts[0] + parts[1], atol=1e-7)
