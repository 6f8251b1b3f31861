"""Matrix products on a CPU while gradients are off."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which oneDNN computes the linear layers in float32, if the device is a CPU that gains by it.

    It holds for this thread and while gradients are off. torch leaves these layers to MKL, which has no AVX-512 code
    for processors of other makers than Intel. oneDNN, which torch includes and uses for bfloat16, has it and is twice
    as fast there. The two add up in different orders, so their results differ by rounding.
    """
    return _OneDnnProducts() if device.type == "cpu" and _gains() else nullcontext()


def _gains() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _OneDnnProducts(TorchFunctionMode):
    """Redirects `torch.nn.functional.linear`, which every linear layer calls, to oneDNN."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # oneDNN's product has no backward pass.
        if func is linear and not torch.is_grad_enabled() and not kwargs and all(map(_is_plain, args)):
            input_, weight, bias = args if len(args) == 3 else (*args, None)
            return torch.ops.mkldnn._linear_pointwise(input_, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_plain(operand: torch.Tensor | None) -> bool:
    """Say whether oneDNN takes an input, a weight or a bias without a conversion."""
    return operand is None or (operand.dtype == torch.float32 and operand.is_contiguous() and operand.numel() > 0)
