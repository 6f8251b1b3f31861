"""How much a run would download from the Hub, asked before it does: what the Hub says of the sizes of files."""

from __future__ import annotations

from pathlib import Path

from spa_recipes.data.hub import Repository, ask, is_offline
from spa_recipes.data.places import is_path
from spa_recipes.errors import DataError, TryAgainError
from spa_recipes.recipe.schema import Storage
from spa_recipes.run.disk import free_bytes
from spa_recipes.units import human_bytes

GB = 10**9


def check_named_model(location: str, revision: str | None = None) -> None:
    """`check_download` of a model that a command names without a recipe; a folder needs no download.

    Raises:
        DataError, TryAgainError: as `check_download`.
    """
    if not is_path(location):
        check_download("model", location, revision, Storage.model_fields["max_download_gb"].default)


def check_download(kind: Repository, name: str, revision: str | None, limit_gb: float | None) -> None:
    """Refuse a model or dataset of the Hub that is larger than the recipe allows, or than the disk has room for.

    Of a model, the weights in safetensors and the small files at the top count, as no other files are loaded; of a
    dataset, all files. What is in the cache counts no more.

    Args:
        limit_gb: 10^9 bytes; None for no limit.

    Raises:
        DataError: it is larger, or there is no such repository. TryAgainError: the disk has no room, or the network
            failed.
    """
    if is_offline():
        return
    left = _bytes_left(kind, name, revision)
    if limit_gb is not None and left > limit_gb * GB:
        raise DataError(
            f"the {kind} would download {human_bytes(left)}, and storage.max_download_gb allows {limit_gb:g} GB",
            where=name,
            fix="check the name, or set storage.max_download_gb higher",
        )
    free = free_bytes(_cache())
    if left > free:
        raise TryAgainError(
            f"the {kind} would download {human_bytes(left)}, and {human_bytes(free)} are free in {_cache()}",
            where=name,
            fix="make room on the disk, or name a folder on a larger one in the variable HF_HOME",
        )


def _bytes_left(kind: Repository, name: str, revision: str | None) -> int:
    from huggingface_hub import HfApi, try_to_load_from_cache

    info = HfApi().model_info if kind == "model" else HfApi().dataset_info
    files = ask(kind, name, lambda: info(name, revision=revision, files_metadata=True)).siblings or []
    return sum(
        int(file.size or 0)
        for file in files
        if (kind == "dataset" or _is_loaded(file.rfilename))
        and not isinstance(try_to_load_from_cache(name, file.rfilename, revision=revision, repo_type=kind), str)
    )


def _is_loaded(file: str) -> bool:
    return "/" not in file and file.endswith((".safetensors", ".json", ".jinja", ".model", ".txt", ".py"))


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()
