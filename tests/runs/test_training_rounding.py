"""Trainings in half precision save the trained model, rounded stochastically, and say what it keeps of the update."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from spa_recipes.errors import StageError
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.models.rounding import stochastic
from spa_recipes.models.saving import Weights, save_model
from spa_recipes.recipe.schema import Lora, PreferenceTraining
from spa_recipes.training import common
from spa_recipes.training.env import TrainEnv, TrainResult
from spa_recipes.training.run import train_preference, train_sft
from tests.kit.training import (
    REFINEMENT,
    KilledError,
    dying_at,
    make_env,
    make_half_model,
    make_pairs,
    make_texts,
    preference,
    supervised,
    train_rewards,
    weights,
)

FIGURES = ("update_kept", "update_visible", "rounding_to_update")
SMALL = {"learning_rate": 2e-5, "num_train_epochs": 2, "save_steps": 2}
"""Updates of some percent of a unit in the last place."""


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_half_model(tmp_path_factory.mktemp("half"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The float32 weights that the last training handed to the saver."""
    caught: dict[str, torch.Tensor] = {}

    def caught_first(model: Any, given: Weights, *rest: Any, **options: Any) -> dict[str, float]:
        caught.clear()
        caught.update({name: given.trained(name).clone() for name in given.tensors})
        return save_model(model, given, *rest, **options)

    monkeypatch.setattr(common, "save_model", caught_first)
    return caught


def train(kind: str, half: Path, env: TrainEnv) -> TrainResult:
    if kind == "sft":
        return train_sft(half, make_texts(20), supervised(**SMALL), env)
    if kind == "reward_model":
        return train_rewards(half, make_pairs(20, reference=False), env, **SMALL)
    refinement = REFINEMENT if kind == "refine" else None
    return train_preference(half, make_pairs(20), preference(**SMALL), env, reference_path=None, refinement=refinement)


KINDS = ("sft", "dpo", "refine", "reward_model")


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        *(pytest.param(kind, None, id=f"{kind}-whole") for kind in KINDS),
        pytest.param("refine", Lora(lora_r=4), id="refine-lora"),
        *(
            pytest.param(kind, Lora(lora_r=4), id=f"{kind}-lora", marks=pytest.mark.long)
            for kind in KINDS
            if kind != "refine"
        ),
    ],
)
def test_what_is_saved_is_the_trained_model_rounded_by_the_stages_key(
    kind: str, lora: Lora | None, half: Path, tmp_path: Path, trained: dict[str, torch.Tensor]
) -> None:
    env = make_env(half, tmp_path, dtype="bfloat16", lora=lora)
    result = train(kind, half, env)
    saved, start = weights(env.output_dir), weights(half)
    for name, tensor in saved.items():
        # What an adapter was not added to is as it was stored.
        assert trained[name].dtype == torch.float32 or torch.equal(trained[name], start[name])
        assert torch.equal(tensor, stochastic(trained[name], torch.bfloat16, key=env.key, name=name)), name
    update = {name: trained[name] - start[name].float() for name in start if name in trained}
    inner = sum(((saved[name].float() - start[name].float()) * u).double().sum() for name, u in update.items())
    squared = sum(u.double().square().sum() for u in update.values())
    if kind != "reward_model":  # its output layer is none of the policy's
        assert result.metrics["update_kept"] == pytest.approx(float(inner / squared), rel=1e-4)
    assert 0.6 < result.metrics["update_kept"] < 1.4
    assert result.metrics["update_visible"] < 0.5
    assert result.metrics["rounding_to_update"] > 1.0
    last = json.loads((env.output_dir / "training_log.jsonl").read_text().splitlines()[-1])
    assert [last[name] for name in FIGURES] == [result.metrics[name] for name in FIGURES]


def test_killed_and_resumed_it_saves_the_same_bytes(half: Path, tmp_path: Path) -> None:
    straight = make_env(half, tmp_path / "straight", dtype="bfloat16")
    resumed = make_env(half, tmp_path / "resumed", dtype="bfloat16")
    figures = [train("refine", half, straight).metrics]
    with pytest.raises(KilledError):
        train("refine", half, replace(resumed, on_progress=dying_at(5)))
    figures.append(train("refine", half, resumed).metrics)
    assert [each["resumed_from_step"] for each in figures] == [0.0, 4.0]
    for name in ("model.safetensors", "pairs_trace.jsonl", "training_log.jsonl"):
        assert (straight.output_dir / name).read_bytes() == (resumed.output_dir / name).read_bytes()
    assert [figures[0][name] for name in FIGURES] == [figures[1][name] for name in FIGURES]


def test_another_key_gives_another_model_of_the_same_training(
    half: Path, tmp_path: Path, trained: dict[str, torch.Tensor]
) -> None:
    exact, models = [], []
    for key in ("one", "another"):
        env = replace(make_env(half, tmp_path / key, dtype="bfloat16"), key=key)
        train("dpo", half, env)
        exact.append(dict(trained))
        models.append(weights(env.output_dir))
    assert all(torch.equal(exact[0][name], exact[1][name]) for name in exact[0])
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_merge_is_the_adapter_on_its_base_and_the_next_adapter_starts_at_what_is_stored(
    half: Path, tmp_path: Path
) -> None:
    """pi_i of LoRA is the merged model as it is stored: start and reference of the next training, whose margins are 0
    before its first step."""
    lora = Lora(lora_r=4)
    env = replace(make_env(half, tmp_path / "one", dtype="bfloat16", lora=lora), adapter_dir=tmp_path / "adapter")
    train("dpo", half, env)
    base = load_causal_lm(half, env.model, torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    stored = weights(env.output_dir)
    for name, tensor in stored.items():
        assert torch.equal(tensor, stochastic(merged[name], torch.bfloat16, key=env.key, name=name))
    after = replace(make_env(env.output_dir, tmp_path / "two", dtype="bfloat16", lora=lora), adapter_dir=tmp_path / "b")
    settings: PreferenceTraining = preference(learning_rate=1e-2, logging_steps=1)
    rows = make_pairs(32, reference=False)
    history = train_preference(
        env.output_dir, rows, settings, after, reference_path=env.output_dir, refinement=None
    ).history
    assert history[0]["rewards/margins"] == 0.0
    assert history[-1]["rewards/margins"] != 0.0
    base = load_causal_lm(env.output_dir, env.model, torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "b").merge_and_unload().state_dict()
    for name, tensor in weights(after.output_dir).items():
        assert torch.equal(tensor, stochastic(merged[name], torch.bfloat16, key=env.key, name=name))


def notices_of(half: Path, folder: Path, kind: str, **fields: Any) -> list[str]:
    said: list[str] = []
    train(kind, half, replace(make_env(half, folder, **fields), on_notice=said.append))
    return said


def test_a_person_is_told_that_rounding_to_nearest_lost_the_update_and_what_to_do(half: Path, tmp_path: Path) -> None:
    (said,) = notices_of(half, tmp_path, "dpo", dtype="bfloat16", save_rounding="nearest")
    assert said.startswith("the saved model keeps ")
    assert said.endswith("rounded to bfloat16: set model.save_rounding to stochastic")
    assert float(said.split()[4].rstrip("%")) < 50


def test_float32_is_saved_as_it_is_and_measures_nothing(
    policy: Path, tmp_path: Path, trained: dict[str, torch.Tensor]
) -> None:
    env = make_env(policy, tmp_path)
    result = train("dpo", policy, env)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights(env.output_dir).items())
    assert not set(FIGURES) & result.metrics.keys()
    assert "update" not in (env.output_dir / "training_log.jsonl").read_text()
    assert notices_of(policy, tmp_path / "again", "refine") == []


def test_weights_that_a_launcher_has_rounded_already_are_refused() -> None:
    """Stochastic rounding of what was rounded to nearest before would change nothing, silently."""
    with pytest.raises(StageError, match=r"hands out the trained weights of w in torch\.bfloat16"):
        common._refuse_rounded({"w": torch.zeros(2, dtype=torch.bfloat16)})
