"""The estimate of memory is what trainings and passes take: tensor by tensor here, and as it was measured on GPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from spa_recipes.estimates import Sharding, needs, training_memory
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.training import common
from spa_recipes.training.run import train_preference
from tests.kit.peak_memory import TensorMemory
from tests.kit.plans import plan_of
from tests.kit.training import REFINEMENT, make_env, make_model, preference

WIDTH, LAYERS, INNER, HEADS, KEYS, WORDS, LENGTH = 128, 3, 352, 4, 2, 2000, 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that its states outweigh what is not counted."""
    folder = make_model(tmp_path_factory.mktemp("estimated") / "model")
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, Any]]:
    """Pairs as long as they may be."""
    half = [5 + i % 300 for i in range(LENGTH // 2)]
    logps = {"ref_chosen_logps": -400.0, "ref_rejected_logps": -400.0}
    return [{"prompt_ids": half, "chosen_ids": half, "rejected_ids": half[::-1], **logps} for _ in range(count)]


CASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32 with checkpointing": {"dtype": "float32", "checkpointing": True},
    "bfloat16 with checkpointing": {"dtype": "bfloat16", "checkpointing": True},
    "adapters in float32": {"dtype": "float32", "lora": {}},
    "adapters in bfloat16 with checkpointing": {"dtype": "bfloat16", "lora": {}, "checkpointing": True},
    "a live reference": {"dtype": "float32", "live": True},
}


@pytest.mark.parametrize("case", CASES)
def test_of_a_training_within_a_tenth(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    fields = dict(CASES[case])
    checkpointing, live = fields.pop("checkpointing", False), fields.pop("live", False)
    batch = {"global_batch_size": 8, "per_device_train_batch_size": 4, "gradient_checkpointing": checkpointing}
    lengths = {"max_length": LENGTH, "max_prompt_length": LENGTH // 2}
    plan = plan_of(
        model={**lengths, **fields, "model_name_or_path": str(model)}, sft=None, seed_training=batch, refine=batch
    )
    stage = plan.stage("refine-1" if live else "seed")
    estimate = training_memory(stage, plan.recipe)
    assert estimate is not None

    counted = TensorMemory()
    fit = common.fit

    def counted_fit(*arguments: Any) -> int:
        with counted:
            return fit(*arguments)

    monkeypatch.setattr(common, "fit", counted_fit)
    train_preference(
        model,
        rows(16),
        preference(**batch),
        make_env(model, tmp_path, **fields),
        reference_path=model if live else None,
        refinement=replace(REFINEMENT, lam=0.5) if live else None,
    )
    assert counted.peak == pytest.approx(estimate.total, rel=0.1)


def test_of_scoring(model: Path) -> None:
    plan = plan_of(model={"model_name_or_path": str(model), "dtype": "float32"}, sft=None)
    stage = plan.stage("score-1-reference")
    estimate = needs(stage, plan).memory
    assert estimate is not None
    loaded = for_inference(load_causal_lm, Model(model_name_or_path=str(model), dtype="float32"))
    items = [Scored([5, 6, 7], [8 + i % 90 for i in range(100)]) for _ in range(30)]
    with TensorMemory() as counted:
        sequence_logps(loaded, items, tokens_per_batch=1024)
    assert counted.peak <= estimate.total  # on a CPU a pass has fewer tokens
    assert counted.peak >= estimate.held


CUDA_CONTEXT = 0.5e9
"""What nvidia-smi counts besides."""
SEVEN_B = {"model_name_or_path": "seven-b", "dtype": "bfloat16", "max_prompt_length": 512}


def test_of_a_seed_stage_with_adapters_on_a_gpu() -> None:
    """Measured: 7.38 billion parameters, batches of 2 real pairs, none longer than 1,024 tokens; by nvidia-smi."""
    model = {**SEVEN_B, "num_parameters": 7.38e9, "max_length": 1024, "lora": {}}
    training = {"per_device_train_batch_size": 2, "gradient_checkpointing": True}
    plan = plan_of(model=model, sft=None, seed_training=training)
    estimate = training_memory(plan.stage("seed"), plan.recipe)
    assert estimate is not None
    assert estimate.total + CUDA_CONTEXT == pytest.approx(18.0e9, rel=0.2)


def test_of_scoring_on_a_gpu() -> None:
    """Measured: one pass of 7.38 billion parameters over real pairs."""
    model = {**SEVEN_B, "num_parameters": 7.38e9, "max_length": 2048}
    plan = plan_of(model=model, sft=None)
    scoring = replace(plan.stage("log-ratios-1"), kind="score", settings={"model": plan.recipe.model}, inputs={})
    need = needs(scoring, plan)
    assert need.memory is not None
    assert need.memory.total + CUDA_CONTEXT == pytest.approx(15.8e9, rel=0.2)


@pytest.mark.parametrize(
    ("sharding", "counted"),
    [("none", 130e9), ("fsdp2", 62e9), ("zero2", 54e9), ("zero3", 33e9)],
)
def test_of_a_refinement_on_four_gpus(sharding: Sharding, counted: float) -> None:
    """Counted by hand for four processes, without activations, copies and derivatives."""
    plan = plan_of(model={**SEVEN_B, "num_parameters": 7.24e9, "max_length": 2048}, sft=None)
    estimate = training_memory(plan.stage("refine-1"), plan.recipe, sharding=sharding, processes=4)
    assert estimate is not None
    if sharding == "fsdp2":  # the reference was gathered as a whole then, and twice for a while
        counted -= 2 * 2 * 7.24e9
    # Each device has the update, and a reference where the live one is shared out.
    counted += {"none": 1, "fsdp2": 2, "zero2": 1, "zero3": 2}[sharding] * 2 * 7.24e9
    assert estimate.held == pytest.approx(counted, rel=0.2)


def test_of_a_seed_stage_on_four_gpus_without_sharding() -> None:
    plan = plan_of(model={**SEVEN_B, "num_parameters": 7.24e9, "max_length": 2048}, sft=None)
    estimate = training_memory(plan.stage("seed"), plan.recipe, sharding="none", processes=4)
    assert estimate is not None
    assert estimate.held == pytest.approx(116e9, rel=0.01)


def test_gradients_exist_twice_only_where_a_step_has_several_micro_batches() -> None:
    """Of data parallelism: see `training.sharding.settle`."""
    copies = []
    model = {**SEVEN_B, "dtype": "float32", "num_parameters": 1e9, "max_length": 1024}
    for processes, at_once in ((2, 4), (2, 2), (1, 2)):
        training = {"global_batch_size": 8, "per_device_train_batch_size": at_once}
        plan = plan_of(model=model, sft=None, seed_training=training)
        estimate = training_memory(plan.stage("seed"), plan.recipe, processes=processes)
        assert estimate is not None
        copies.append(estimate.copies)
    assert copies == [0, 4e9, 0]


def test_sharding_shares_out_what_is_held() -> None:
    plan = plan_of(model={**SEVEN_B, "num_parameters": 7.24e9, "max_length": 2048}, sft=None)
    for sharding in ("fsdp2", "zero3"):
        four, eight = (
            training_memory(plan.stage("refine-1"), plan.recipe, sharding=sharding, processes=n) for n in (4, 8)
        )
        assert four is not None
        assert eight is not None
        derivatives = 2 * 2 * 7.24e9  # whole on every device
        assert eight.held - derivatives == pytest.approx((four.held - derivatives) / 2, rel=1e-6)
