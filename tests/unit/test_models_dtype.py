"""What `model.dtype` names."""

from pathlib import Path

import pytest
import torch

from spa_recipes.models import dtype
from spa_recipes.models.dtype import in_float64, resolved_dtype, torch_dtype, weight_bytes
from spa_recipes.models.loading import local_device


def test_auto_is_bfloat16_where_the_device_has_it() -> None:
    assert resolved_dtype("auto", has_bfloat16=True) == "bfloat16"
    assert resolved_dtype("auto", has_bfloat16=False) == "float32"
    assert resolved_dtype("float16", has_bfloat16=True) == "float16"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_name_is_torchs(name: str) -> None:
    assert torch_dtype(name) == getattr(torch, name)
    assert weight_bytes(name) == torch_dtype(name).itemsize


def test_auto_on_this_machine() -> None:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert torch_dtype("auto") == (torch.bfloat16 if on_gpu else torch.float32)


def test_a_gpu_driver_is_taken_for_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "_DRIVERS", (str(tmp_path / "version"),))
    for name in dtype._HIDING:
        monkeypatch.delenv(name, raising=False)
    assert weight_bytes("auto") == 4
    (tmp_path / "version").touch()
    assert weight_bytes("auto") == 2
    for hidden in ("-1", "", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert weight_bytes("auto") == 4


def test_a_macs_gpu_is_used_unless_gpus_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in dtype._HIDING:
        monkeypatch.delenv(name, raising=False)
    assert local_device().type == "mps"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as in a stage that forked from another process
    assert local_device().type == "cpu"
    assert in_float64(torch.ones(2)).dtype == torch.float64
