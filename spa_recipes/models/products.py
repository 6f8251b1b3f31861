"""Matrix products in float32 on a CPU."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

WORTH_A_GRADIENT = 50_000_000
"""Multiplications from which on a layer that is trained goes through oneDNN, which prepares itself for each new shape.

That takes about 2 ms for each of a layer's three products, and lengths of texts make many shapes.
"""


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which oneDNN computes the linear layers in float32, if the device is a CPU that gains by it.

    It holds for this thread, and for the backward pass of what is computed in it, where small layers are left to torch.
    torch leaves these layers to MKL, which has no AVX-512 code for processors of other makers than Intel, and is the
    faster one on Intel's. oneDNN, which torch includes and uses for bfloat16, has it and is nearly twice as fast there.
    The two add up in different orders, so their results differ by rounding. Under autocast every product is left to
    torch.
    """
    return _OneDnnProducts() if device.type == "cpu" and _gains() else nullcontext()


def _gains() -> bool:
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and not _by_intel() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _by_intel() -> bool:
    """Whether Intel made this processor; not known where the system does not tell."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _OneDnnProducts(TorchFunctionMode):
    """Redirects `torch.nn.functional.linear`, which every linear layer calls, to oneDNN."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and all(map(_is_plain, args)) and not torch.is_autocast_enabled("cpu"):
            operands = args if len(args) == 3 else (*args, None)
            if not torch.is_grad_enabled():
                return _product(*operands)
            if operands[0].numel() * len(operands[1]) >= WORTH_A_GRADIENT:
                return _Linear.apply(*operands)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass is oneDNN's as well, which has none of its own."""

    @staticmethod
    def forward(ctx: Any, input_: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input_ if needs_weight else None, weight_OI if needs_input else None)
        ctx.shape = input_.shape
        return _product(input_, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input_, weight_OI = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO = grad.reshape(-1, grad.shape[-1]).contiguous()
        return (
            _product(grad_NO, weight_OI.T).view(ctx.shape) if needs_input else None,
            _product(grad_NO.T, input_.reshape(-1, ctx.shape[-1]).T) if needs_weight else None,
            grad_NO.sum(dim=0) if needs_bias else None,
        )


def _product(input_: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """What `linear` gives, by oneDNN."""
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input_, weight_OI, bias_O, "none", [], "")
    return output


def _is_plain(operand: torch.Tensor | None) -> bool:
    """Say whether oneDNN takes an input, a weight or a bias without a conversion."""
    return operand is None or (operand.dtype == torch.float32 and operand.is_contiguous() and operand.numel() > 0)
