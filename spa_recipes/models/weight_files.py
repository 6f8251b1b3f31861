"""The files of weights in a model's folder, and in which precision they are, without loading them."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HALF = {"BF16": torch.bfloat16, "F16": torch.float16}


def weight_files(folder: Path) -> Iterator[Path]:
    """The safetensors of a folder, in the order of their names."""
    if (folder / _INDEX).is_file():
        names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        yield from (folder / Path(name).name for name in sorted(set(names)))
    else:
        yield folder / _WEIGHTS


def exact_dtype(model: Path | str) -> torch.dtype:
    """The precision in which to load weights so that each stays as it is stored, in the least memory.

    That is the one of all tensors where they are in one half precision, else float32, also where there are no files to
    look at: a model of the Hub may not be on this disk yet.
    """
    found = set()
    try:
        for path in weight_files(Path(model)):
            with safe_open(path, framework="pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError):
        return torch.float32
    return _HALF.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32
