"""What tensors take while code runs, byte by byte, whatever the allocator keeps."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the memory of all tensors that operations read or made while it is entered.

    Attributes:
        now, peak: bytes, and the most bytes at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._count(result)
        return result

    def _count(self, tree: Any) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._add(storage._cdata, storage)

    def _add(self, name: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def freed(_: object) -> None:
            self.now -= size
            del self._seen[name]

        self._seen[name] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
