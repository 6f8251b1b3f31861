"""Which GPUs are here is what torch says in a process of its own; what is not supported is refused, never the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.models import dtype
from spa_recipes.run import devices
from spa_recipes.run.devices import accelerators, check_supported, only, visible_gpus

FAKE_TORCH = """
from types import SimpleNamespace
import contextlib
version = SimpleNamespace(hip={hip!r})
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: {mps}))
class cuda:
    is_available = staticmethod(lambda: {count} > 0)
    device_count = staticmethod(lambda: {count})
    get_device_properties = staticmethod(lambda i: SimpleNamespace(name="Card", total_memory=8 * 2**30))
    is_bf16_supported = staticmethod(lambda: True)
    device = staticmethod(lambda i: contextlib.nullcontext())
"""
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with a driver, and a torch that sees what it is told to."""
    driver = tmp_path / "driver"
    monkeypatch.setattr(dtype, "_DRIVERS", (str(driver),))
    for name in dtype._HIDING:
        monkeypatch.delenv(name, raising=False)

    def make(*, count: int = 0, hip: str | None = None, mps: bool = False, has_driver: bool = True) -> None:
        (tmp_path / "torch.py").write_text(FAKE_TORCH.format(count=count, hip=hip, mps=mps))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        driver.unlink(missing_ok=True)
        if has_driver:
            driver.touch()
        accelerators.cache_clear()

    yield make
    accelerators.cache_clear()


@pytest.mark.parametrize(
    ("chosen", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        ("3, 5", 2, ["3", "5"]),
        ("GPU-8f2a,GPU-11c0", 2, ["GPU-8f2a", "GPU-11c0"]),
        ("MIG-2b7c9d", 1, ["MIG-2b7c9d"]),
        ("0,1,-1,2", 2, ["0", "1"]),
    ],
)
def test_gpus_are_called_as_the_user_chose_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, chosen: str | None, count: int, names: list[str]
) -> None:
    machine(count=count)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == names
    assert accelerators().gpus[0].memory == 8 * 2**30
    assert only(names[:1]) == {"CUDA_VISIBLE_DEVICES": names[0]}
    check_supported()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_leave_the_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    machine(count=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert visible_gpus() == []
    check_supported()


def test_without_a_driver_nothing_is_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(count=4, has_driver=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("subprocess.run", None)
    assert visible_gpus() == []
    check_supported()


def test_gpus_of_amd_are_hidden_by_their_own_variable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(count=2, hip="6.4")
    assert only(["1"]) == {"CUDA_VISIBLE_DEVICES": "1"}  # which ROCm reads, too
    accelerators.cache_clear()
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    assert only(["3"]) == {"HIP_VISIBLE_DEVICES": "3"}


def test_a_driver_whose_gpu_torch_does_not_see_is_refused(machine: Machine) -> None:
    machine(count=0)
    with pytest.raises(RecipeError, match=r"sees no GPU.*CUDA_VISIBLE_DEVICES=-1 to use the CPU"):
        check_supported()


def test_a_torch_that_fails_is_told(machine: Machine, tmp_path: Path) -> None:
    machine(count=1)
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    with pytest.raises(RecipeError, match=r"does not say which GPUs there are \(ImportError: libcudart.so.13"):
        visible_gpus()


def test_other_makers_accelerators_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(has_driver=False)
    monkeypatch.setattr(devices, "_torch_build", lambda: "2.13.0+xpu")
    with pytest.raises(RecipeError, match="Intel's GPUs"):
        check_supported()
    monkeypatch.setattr(devices, "_torch_build", lambda: "2.13.0")
    (tmp_path / "davinci").touch()
    monkeypatch.setattr(devices, "ASCEND", str(tmp_path / "davinci"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torch_npu" or None)
    with pytest.raises(RecipeError, match="Ascend"):
        check_supported()
