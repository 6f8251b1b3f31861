"""Matrix products on a CPU, where gradients are off."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Linear layers in float32 by oneDNN, in this thread and while gradients are off, where a CPU gains by it.

    torch leaves them to MKL, which on processors that are not Intel's has no code for AVX-512: there oneDNN, which
    torch brings along and takes for bfloat16, is twice as fast. Both round to float32 in another order of sums.
    """
    return _OneDnnProducts() if device.type == "cpu" and _gains() else nullcontext()


def _gains() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _OneDnnProducts(TorchFunctionMode):
    """Redirects `torch.nn.functional.linear`, which every linear layer calls."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # The product has no backward pass.
        if func is linear and not torch.is_grad_enabled() and not kwargs and all(map(_is_plain, args)):
            input_, weight, bias = args if len(args) == 3 else (*args, None)
            return torch.ops.mkldnn._linear_pointwise(input_, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_plain(operand: torch.Tensor | None) -> bool:
    """Whether oneDNN takes an input, a weight or a bias as it is."""
    return operand is None or (operand.dtype == torch.float32 and operand.is_contiguous() and operand.numel() > 0)
