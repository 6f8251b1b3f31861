"""DPO and refinement as a training: equal to TRL where it must be, and to itself however a batch is cut."""

import json
import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from spa_recipes.algo.logps import sequence_logps
from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import FixedThreshold, Lora, PercentileThreshold
from spa_recipes.training import run
from spa_recipes.training.env import Refinement
from spa_recipes.training.pair_rows import PairCollator
from spa_recipes.training.preference import NoiseDetector, SpaTrainer
from spa_recipes.training.run import train_preference
from tests.kit.training import REFINEMENT, make_env, make_model, make_pairs, preference, same_weights, trace, weights


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reference"), seed=1)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a training opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def logps_of(model: Path, rows: list[dict[str, Any]], side: str) -> list[float]:
    """Reference log-probs, row by row."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    values = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        mask = torch.tensor([[0] * len(row["prompt_ids"]) + [1] * len(row[side])])
        with torch.no_grad():
            values.append(sequence_logps(loaded(ids).logits, ids, mask).item())
    return values


class _Trl(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer, with rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@pytest.mark.parametrize("lam", [0.0, pytest.param(0.5, marks=pytest.mark.long)])
def test_alpha_zero_is_trls_sigmoid_loss(policy: Path, reference: Path, tmp_path: Path, lam: float) -> None:
    """The canary for TRL's private methods: the same loss and the same gradient."""
    rows = Dataset.from_list([{**row, "row": n} for n, row in enumerate(make_pairs(8, reference=False))])
    arguments: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "beta": 0.2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "max_length": None,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    tokenizer = AutoTokenizer.from_pretrained(policy)
    collator = PairCollator(tokenizer.pad_token_id)
    theirs = _Trl(
        load(policy),
        load(reference),
        args=DPOConfig(**arguments),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id),
    )
    settings = Refinement(alpha=0.0, lam=lam, threshold=FixedThreshold(type="fixed", tau=0.7), warmup_ratio=0.0)
    ours = SpaTrainer(
        load(policy),
        DPOConfig(**arguments),
        rows,
        global_batch_size=8,
        detector=NoiseDetector(settings, warmup_steps=0),
        ref_model=load(reference),
        processing_class=tokenizer,
        data_collator=collator,
    )
    assert theirs.loss_types == ["sigmoid"]
    batch = collator(list(rows))
    their_loss = theirs.compute_loss(theirs.model, {name: batch[name] for name in batch if name != "row"})
    our_loss = ours.compute_loss(ours.model, batch)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    their_loss.backward()
    our_loss.backward()
    for (name, ours_p), theirs_p in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert (ours_p.grad - theirs_p.grad).norm() <= 1e-6 * theirs_p.grad.norm(), name
    assert 0 < sum(pairs.flagged.sum() for pairs in ours._seen) < 8


@pytest.mark.parametrize("lam", [pytest.param(0.0, marks=pytest.mark.long), 0.5])
def test_a_global_batch_can_be_cut_in_any_way(policy: Path, reference: Path, tmp_path: Path, lam: float) -> None:
    """Weights, flags and logs are the same, also where the last batch is not full."""
    rows = make_pairs(44, reference=False)
    refinement = replace(REFINEMENT, lam=lam)
    results = []
    for size in (8, 2, 1):
        env = make_env(policy, tmp_path / str(size))
        settings = preference(per_device_train_batch_size=size)
        results.append(train_preference(policy, rows, settings, env, reference_path=reference, refinement=refinement))
    traces = [trace(tmp_path / str(size)) for size in (8, 2, 1)]
    assert len(traces[0]) == 44
    assert {record["row"] for record in traces[0]} == set(range(44))
    assert sum(record["flagged"] for record in traces[0]) > 4
    for size, result, other in zip((2, 1), results[1:], traces[1:], strict=True):
        assert same_weights(tmp_path / "8" / "out", tmp_path / str(size) / "out", tolerance=1e-4)
        for ours, theirs in zip(traces[0], other, strict=True):
            assert [ours[key] for key in ("row", "step", "flagged")] == [
                theirs[key] for key in ("row", "step", "flagged")
            ]
            assert ours["p_detect"] == pytest.approx(theirs["p_detect"], rel=1e-4)
        for ours, theirs in zip(results[0].history, result.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_the_window_holds_earlier_steps_only(policy: Path, tmp_path: Path) -> None:
    """tau, replayed from the trace; nothing is flagged in the warm-up or before min_pairs."""
    rows = make_pairs(60)
    threshold = PercentileThreshold(k=40.0, window=20, min_pairs=12)
    refinement = Refinement(alpha=0.2, lam=0.0, threshold=threshold, warmup_ratio=0.4)
    result = train_preference(
        policy, rows, preference(), make_env(policy, tmp_path), reference_path=None, refinement=refinement
    )
    records = trace(tmp_path)
    assert result.steps == 8
    flagged_after_warmup = []
    for step in range(1, 9):
        before = [record["p_detect"] for record in records if record["step"] < step]
        now = [record for record in records if record["step"] == step]
        assert [record["row"] for record in now] == sorted(record["row"] for record in now)
        active = step > 4 and len(before) >= 12
        tau = torch.tensor(before[-20:], dtype=torch.float64).quantile(0.4).item() if active else -1.0
        assert [record["flagged"] for record in now] == [int(record["p_detect"] < tau) for record in now]
        flagged_after_warmup += [record["flagged"] for record in now if step > 4]
    assert 0 < sum(flagged_after_warmup) < len(flagged_after_warmup)
    assert result.metrics["spa/flagged"] == sum(flagged_after_warmup) / len(flagged_after_warmup)


def test_what_a_training_leaves_behind(policy: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, Any]]] = []
    rows = make_pairs(20)
    env = make_env(policy, tmp_path, on_progress=lambda done, total, logs: seen.append((done, total, logs)))
    result = train_preference(
        policy, rows, preference(num_train_epochs=2), env, reference_path=None, refinement=REFINEMENT
    )
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "training_log.jsonl", "pairs_trace.jsonl"),
    }
    for name in ("config.json", "generation_config.json"):
        before, after = json.loads((policy / name).read_text()), json.loads((out / name).read_text())
        before.pop("_name_or_path", None)
        assert after == before
    assert (result.steps, result.rows) == (6, 20)
    lengths = [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows]
    assert result.tokens == 2 * sum(lengths)
    logged = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert logged == result.history
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    keys = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    assert keys | {"spa/flagged", "spa/tau", "spa/p_detect", "learning_rate", "grad_norm"} <= logged[-1].keys()
    assert result.metrics["train_loss"] == pytest.approx(sum(entry["loss"] for entry in logged) / 3)
    assert [entry[:2] for entry in seen if not entry[2]] == [(step, 6) for step in range(1, 7)]
    assert [entry[0] for entry in seen if entry[2]] == [2, 4, 6]
    assert env.tokenizer.padding_side == AutoTokenizer.from_pretrained(policy).padding_side


def test_columns_and_a_live_reference_are_the_same_training(policy: Path, reference: Path, tmp_path: Path) -> None:
    rows = make_pairs(16, reference=False)
    given = [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, chosen, rejected in zip(
            rows, logps_of(reference, rows, "chosen_ids"), logps_of(reference, rows, "rejected_ids"), strict=True
        )
    ]
    for name, some_rows, path in (("live", rows, reference), ("columns", given, None)):
        env = make_env(policy, tmp_path / name)
        train_preference(policy, some_rows, preference(), env, reference_path=path, refinement=None)
    assert same_weights(tmp_path / "live" / "out", tmp_path / "columns" / "out", tolerance=1e-4)
    assert not (tmp_path / "live" / "out" / "pairs_trace.jsonl").exists()


def test_margins_start_at_zero_when_the_policy_is_the_reference(policy: Path, tmp_path: Path) -> None:
    for lam in (0.0, 0.5):
        env = make_env(policy, tmp_path / str(lam))
        train_preference(
            policy,
            make_pairs(8, reference=False),
            preference(),
            env,
            reference_path=policy,
            refinement=replace(REFINEMENT, lam=lam),
        )
        assert [record["margin"] for record in trace(tmp_path / str(lam))] == pytest.approx([0.0] * 8, abs=1e-5)
        assert [record["p_detect"] for record in trace(tmp_path / str(lam))] == pytest.approx([0.5] * 8, abs=1e-5)


def test_a_missing_reference_is_named(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path)
    with pytest.raises(DataError, match="ref_chosen_logps and ref_rejected_logps"):
        train_preference(
            policy, make_pairs(8, reference=False), preference(), env, reference_path=None, refinement=None
        )
    with pytest.raises(DataError, match="lambda > 0"):
        train_preference(
            policy,
            make_pairs(8),
            preference(),
            env,
            reference_path=None,
            refinement=replace(REFINEMENT, lam=0.5),
        )
    with pytest.raises(DataError, match="rejected_ids"):
        train_preference(
            policy, [{"prompt_ids": [1], "chosen_ids": [2]}], preference(), env, reference_path=None, refinement=None
        )
    with pytest.raises(DataError, match="no rows"):
        train_preference(policy, [], preference(), env, reference_path=None, refinement=None)


@pytest.mark.parametrize("bad", [math.nan, pytest.param(math.inf, marks=pytest.mark.long)])
def test_a_loss_that_is_not_finite_stops_the_training(policy: Path, tmp_path: Path, bad: float) -> None:
    rows = make_pairs(24)
    order = [record["row"] for record in _dry_run(policy, rows, tmp_path / "dry")]
    rows[order[-1]]["ref_chosen_logps"] = bad  # seen in the last of three steps
    env = make_env(policy, tmp_path)
    with pytest.raises(StageError, match=rf"rows .*\b{order[-1]}\b.* the loss of optimizer step 3 is not finite"):
        train_preference(policy, rows, preference(save_steps=1), env, reference_path=None, refinement=REFINEMENT)
    assert (env.checkpoint_dir / "checkpoint-2" / "spa_checkpoint.json").is_file()
    assert not (env.checkpoint_dir / "checkpoint-3").exists()
    assert not env.output_dir.exists()


def _dry_run(policy: Path, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    env = make_env(policy, folder)
    train_preference(policy, rows, preference(), env, reference_path=None, refinement=REFINEMENT)
    return trace(folder)


def test_a_gradient_that_is_not_finite_stops_the_training(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path)
    rows = make_pairs(8)
    original = SpaTrainer._clip_grad_norm
    try:
        SpaTrainer._clip_grad_norm = lambda self, model: torch.tensor(math.nan)
        with pytest.raises(StageError, match="the gradient of optimizer step 1"):
            train_preference(policy, rows, preference(), env, reference_path=None, refinement=None)
    finally:
        SpaTrainer._clip_grad_norm = original


def test_float16_is_refused_without_a_gpu(policy: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    env = make_env(policy, tmp_path, dtype="float16")
    with pytest.raises(RecipeError, match="float16"):
        train_preference(policy, make_pairs(8), preference(), env, reference_path=None, refinement=None)


@pytest.mark.parametrize("live", [False, True], ids=["columns", "adapter-off"])
def test_lora_is_merged(policy: Path, tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a live reference it is the policy with its adapter switched off: margins start at zero."""
    loaded = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments[0])
        return load_causal_lm(*arguments, **options)

    monkeypatch.setattr(run, "load_causal_lm", load)
    env = make_env(policy, tmp_path, lora=Lora(lora_r=4, lora_alpha=8))
    refinement = replace(REFINEMENT, lam=0.5 if live else 0.0)
    rows = make_pairs(16, reference=not live)
    settings = preference(gradient_checkpointing=live)
    train_preference(policy, rows, settings, env, reference_path=policy if live else None, refinement=refinement)
    assert loaded == [policy, policy]  # to be trained, and to be added to: no second one is the reference
    assert not list(env.output_dir.glob("*adapter*"))
    before, after = weights(policy), weights(env.output_dir)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    if live:
        first = [record["margin"] for record in trace(tmp_path) if record["step"] == 1]
        assert first == pytest.approx([0.0] * 8, abs=1e-5)


def test_bfloat16_trains_float32_weights_and_saves_bfloat16(policy: Path, tmp_path: Path) -> None:
    env = make_env(policy, tmp_path, dtype="bfloat16")
    rows = make_pairs(16)
    # Far too small to move a bfloat16 weight: only float32 master weights add it up.
    train_preference(
        policy,
        rows,
        preference(num_train_epochs=20, learning_rate=2e-4, lr_scheduler_type="constant", warmup_ratio=0.0),
        env,
        reference_path=None,
        refinement=REFINEMENT,
    )
    assert json.loads((env.output_dir / "config.json").read_text())["dtype"] == "bfloat16"
    before, after = weights(policy), weights(env.output_dir)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    norm = next(name for name in before if "norm" in name)  # ones: a step of 2e-4 rounds away in bfloat16
    assert not torch.equal(before[norm].bfloat16(), after[norm])
    assert AutoModelForCausalLM.from_pretrained(env.output_dir, dtype="auto").dtype == torch.bfloat16
