"""Trainings in processes of their own: another one that resumes, and two that train together."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from spa_recipes.estimates import training_memory
from tests.kit.cli import run_python
from tests.kit.plans import plan_of
from tests.kit.processes import run_script
from tests.kit.training import (
    KilledError,
    dying_at,
    make_model,
    same_weights,
    trace,
    train_pairs,
)

RESUME = """
import sys, pathlib, torch
torch.set_num_threads(1)
from tests.kit.training import train_pairs
train_pairs(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_another_process_resumes(policy: Path, tmp_path: Path) -> None:
    train_pairs(policy, tmp_path / "straight")
    with pytest.raises(KilledError):
        train_pairs(policy, tmp_path / "resumed", on_progress=dying_at(5))
    done = run_python(tmp_path, RESUME, policy, tmp_path / "resumed")
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "straight" / "out", tmp_path / "resumed" / "out")
    traces = [(tmp_path / name / "out" / "pairs_trace.jsonl").read_text() for name in ("straight", "resumed")]
    assert traces[0] == traces[1]


DDP = """
import sys, pathlib, torch
torch.set_num_threads(1)
from dataclasses import replace
from spa_recipes.training.run import train_preference
from tests.kit.training import *
policy, reference, folder = map(pathlib.Path, sys.argv[1:])
settings = preference(per_device_train_batch_size=2, num_train_epochs=2, save_steps=4)
for lam in (0.0, 0.5):
    env = make_env(policy, folder / str(lam))
    rows = make_pairs(21, reference=False)
    train_preference(policy, rows, settings, env, reference_path=reference, refinement=replace(REFINEMENT, lam=lam))
"""


@pytest.mark.slow
def test_two_processes_train_like_one(policy: Path, tmp_path: Path) -> None:
    reference = make_model(tmp_path / "reference", seed=1)
    script = tmp_path / "train.py"
    script.write_text(DDP)
    for processes, name in enumerate(("one", "two"), start=1):
        run_script(script, policy, reference, tmp_path / name, processes=processes)
    for lam in ("0.0", "0.5"):
        one, two = tmp_path / "one" / lam, tmp_path / "two" / lam
        assert same_weights(one / "out", two / "out", tolerance=1e-4)
        for ours, theirs in zip(trace(one), trace(two), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        logs = [(path / "out" / "training_log.jsonl").read_text().splitlines() for path in (one, two)]
        for ours, theirs in zip(*logs, strict=True):
            assert json.loads(ours) == pytest.approx(json.loads(theirs), rel=1e-3, abs=1e-5)
        assert (two / "checkpoints" / "checkpoint-4" / "spa_checkpoint.json").is_file()


MEMORY = """
import os, sys, pathlib, torch
torch.set_num_threads(1)
from spa_recipes.training import common
from spa_recipes.training.run import train_preference
from tests.kit.peak_memory import TensorMemory
from tests.kit.training import *
policy, folder, fit = *map(pathlib.Path, sys.argv[1:]), common.fit
half = [5 + i % 300 for i in range(8)]
row = {"prompt_ids": half, "chosen_ids": half, "rejected_ids": half}
row |= {"ref_chosen_logps": -9.0, "ref_rejected_logps": -9.0}
def counted_fit(trainer, *rest):
    with TensorMemory() as memory:
        step = fit(trainer, *rest)
    assert trainer.model_wrapped.gradient_as_bucket_view
    pathlib.Path(f"{os.environ['RANK']}-{each}").write_text(str(memory.peak))
    return step
common.fit = counted_fit
for each in (4, 2):
    settings = preference(global_batch_size=8, per_device_train_batch_size=each)
    env = make_env(policy, folder / str(each))
    train_preference(policy, [row] * 16, settings, env, reference_path=None, refinement=None)
"""


@pytest.mark.slow
def test_two_processes_take_the_memory_that_was_estimated(tmp_path: Path) -> None:
    """Gradients are there once where a step is one micro-batch, and twice where it is two."""
    policy = make_model(tmp_path / "model")
    config = LlamaConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=3, intermediate_size=352)
    config.num_attention_heads, config.num_key_value_heads, config.tie_word_embeddings = 4, 2, False
    LlamaForCausalLM(config).save_pretrained(policy)
    script = tmp_path / "train.py"
    script.write_text(MEMORY)
    run_script(script, policy, tmp_path / "out", processes=2)
    model = {"model_name_or_path": str(policy), "dtype": "float32", "max_length": 16, "max_prompt_length": 8}
    copies = []
    for each in (4, 2):
        training = {"global_batch_size": 8, "per_device_train_batch_size": each}
        plan = plan_of(model=model, sft=None, seed_training=training, sampling={"max_tokens": 8})
        estimate = training_memory(plan.stage("seed"), plan.recipe, processes=2)
        assert estimate is not None
        copies.append(estimate.copies / estimate.gradients)
        for rank in (0, 1):
            assert int((tmp_path / f"{rank}-{each}").read_text()) == pytest.approx(estimate.total, rel=0.1)
    assert copies == [0, 1]
