"""vLLM stops at the ends that it is given and nowhere else, and takes no sampling key of the model's own."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from spa_recipes.generation.vllm import open_vllm
from spa_recipes.recipe.schema import Model, Sampling, VllmBackend


def test_ends_and_sampling_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    whole, sampling, platforms = ModuleType("vllm"), ModuleType("vllm.sampling_params"), ModuleType("vllm.platforms")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.update(given_back=True))

    def start(**settings: Any) -> None:
        assert asked == {"given_back": True}  # what the stage scored with is no more in the way of the engine
        asked.update(settings)

    vars(whole).update(LLM=start, SamplingParams=lambda **settings: settings)
    vars(sampling).update(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))
    cpu = SimpleNamespace(is_cpu=lambda: True, has_device_capability=lambda wanted: False)
    vars(platforms).update(current_platform=cpu)
    for module in (whole, sampling, platforms):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    backend = VllmBackend(type="vllm")
    engine: Any = open_vllm(Model(model_name_or_path="m"), Sampling(backend=backend, temperature=0.7), backend, [5, 7])
    assert asked["generation_config"] == "vllm"
    params = engine._params(seed=3)
    assert params["stop_token_ids"] == [5, 7]
    assert params["ignore_eos"] is True
    assert {name for name in params if "penalty" in name or name in ("top_k", "min_p")} == set()
    assert params["temperature"] == 0.7
