"""A recipe that names something huge on the Hub: refused by what the Hub says of its size, before it is downloaded."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cli import Answer, one_error, run_spa
from tests.kit.hub_server import TOKEN, HubServer
from tests.kit.models import model_folder, recipe_for
from tests.kit.recipes import write_recipe

TB = 10**12
HUGE = {"model-00001-of-00002.safetensors": TB, "model-00002-of-00002.safetensors": TB, "config.json": 1000}
SMALL = {"model.safetensors": 1000, "config.json": 100, "original/consolidated.00.pth": TB, "x.gguf": TB}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repos = {f"me/{name}": {"main": {}} for name in ("huge", "small", "data")}
        server.sizes = {"me/huge": HUGE, "me/small": SMALL, "me/data": {"data/train.parquet": 3 * TB}}
        yield server


def spa(folder: Path, hub: HubServer, *arguments: str) -> Answer:
    variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    done = run_spa(folder, *arguments, **variables)
    return Answer(done.returncode, done.stdout, done.stderr)


def fetched(hub: HubServer) -> list[str]:
    return [line for line in hub.asked if re.search("/resolve/", line)]


def test_a_model_that_is_larger_than_the_recipe_allows(tmp_path: Path, hub: HubServer) -> None:
    write_recipe(tmp_path / "r.yaml", recipe_for("me/huge"))
    line = one_error(spa(tmp_path, hub, "run", "r.yaml"), 3)
    assert "model.model_name_or_path: me/huge: the model would download 2.0 TB" in line
    assert "storage.max_download_gb allows 500 GB" in line
    assert fetched(hub) == []
    assert not (tmp_path / "runs").exists()
    line = one_error(spa(tmp_path, hub, "run", "r.yaml", "--set", "storage.max_download_gb=null"), 75)
    assert "the model would download 2.0 TB, and" in line
    assert "are free in" in line
    assert "HF_HOME" in line
    assert fetched(hub) == []


@pytest.mark.parametrize("command", ["chat", "export"])
def test_a_model_that_a_command_names(tmp_path: Path, hub: HubServer, command: str) -> None:
    line = one_error(spa(tmp_path, hub, command, "me/huge"), 3)
    assert "me/huge: the model would download 2.0 TB" in line
    assert fetched(hub) == []


def test_a_dataset_that_is_larger_than_the_recipe_allows(tmp_path: Path, hub: HubServer) -> None:
    write_recipe(tmp_path / "r.yaml", recipe_for(model_folder(tmp_path / "model")))
    line = one_error(spa(tmp_path, hub, "run", "r.yaml", "--set", "data.pairs={source: me/data}"), 3)
    assert "data.pairs.source: me/data: the dataset would download 3.0 TB" in line
    assert fetched(hub) == []


def test_files_of_a_model_that_are_not_loaded_do_not_count(tmp_path: Path, hub: HubServer) -> None:
    write_recipe(tmp_path / "r.yaml", recipe_for("me/small"))
    done = spa(tmp_path, hub, "run", "r.yaml")
    assert "would download" not in done.err
    assert any("blobs=true" in line for line in hub.asked)


def test_a_model_that_is_not_there(tmp_path: Path, hub: HubServer) -> None:
    write_recipe(tmp_path / "r.yaml", recipe_for("me/nothing"))
    line = one_error(spa(tmp_path, hub, "run", "r.yaml"), 3)
    assert "me/nothing: no such model on this disk or on the Hub, or no access to it" in line
