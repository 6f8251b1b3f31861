"""Stochastic rounding of weights, and what a saved model keeps of an update. Imports nothing but torch.

A weight between two numbers of the lower precision goes to the one further from zero with a probability equal to the
fraction that would be cut off, so that its expectation is the weight itself. Rounding to nearest is without that: an
update below half a unit in the last place vanishes as a whole.

The random bits of an element are a function of a key, the tensor's name and the element's index alone, in integer
arithmetic, so that a tensor becomes the same bytes in whatever slices, on whatever device, and after a restart.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

BLOCK, GPU_BLOCK = 1 << 18, 1 << 23
"""Elements that are worked on at the same time: on a CPU as many as its caches hold, on a GPU as keep it busy."""

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's constants


def stochastic(tensor: torch.Tensor, dtype: torch.dtype, *, key: str, name: str, first_index: int = 0) -> torch.Tensor:
    """A tensor in bfloat16 or float16, each element rounded away from zero with the probability of what is cut off.

    Representable values stay as they are, infinities and NaN too. A finite value never becomes infinite: beyond the
    largest number it is that number.

    Args:
        tensor: of any shape; its elements are counted in row-major order.
        key, name: choose the random bits, together with the index of the element.
        first_index: index of the first element, for a slice of a larger tensor.

    Raises:
        ValueError: `dtype` is neither bfloat16 nor float16.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"stochastic rounding gives bfloat16 or float16, not {dtype}")
    flat_N = tensor.detach().reshape(-1)
    rounded_N = torch.empty(flat_N.shape, dtype=dtype, device=tensor.device)
    start, block = _start(key, name), _block(tensor)
    for first in range(0, len(flat_N), block):
        exact_N = flat_N[first : first + block].float()
        rounded_N[first : first + block] = _round(exact_N, dtype, start, first_index + first)
    return rounded_N.reshape(tensor.shape)


@dataclass
class Update:
    """What the saved weights keep of what a training did to them, summed up tensor by tensor in float64.

    With u = trained - start over all weights:

    Attributes:
        squared: |u|^2.
        kept: <saved - start, u>.
        visible: <trained, rounded to nearest - start, u>.
        rounding: |saved - trained|^2.
    """

    squared: float = 0.0
    kept: float = 0.0
    visible: float = 0.0
    rounding: float = 0.0

    def add(self, start: torch.Tensor, trained: torch.Tensor, saved: torch.Tensor) -> None:
        """Count a tensor, or a slice of one: before the training, after it, and as it is saved, on any devices."""
        places = [tensor.detach().reshape(-1) for tensor in (start, trained, saved)]
        block = _block(trained)
        for first in range(0, saved.numel(), block):
            blocks = [place[first : first + block].to(trained.device) for place in places]
            start_N, trained_N, saved_N = (block.double() for block in blocks)
            nearest_N = blocks[1].to(saved.dtype).double()
            update_N = trained_N - start_N
            sums = (
                torch.dot(update_N, update_N),
                torch.dot(saved_N - start_N, update_N),
                torch.dot(nearest_N - start_N, update_N),
                (saved_N - trained_N).square_().sum(),
            )
            squared, kept, visible, rounding = torch.stack(sums).tolist()  # one wait for the device
            self.squared += squared
            self.kept += kept
            self.visible += visible
            self.rounding += rounding

    def figures(self) -> dict[str, float]:
        """`update_kept` and `update_visible` (1: all of it) and `rounding_to_update`, a ratio of norms; none of them
        where no weight changed.
        """
        if not self.squared:
            return {}
        return {
            "update_kept": self.kept / self.squared,
            "update_visible": self.visible / self.squared,
            "rounding_to_update": math.sqrt(self.rounding / self.squared),
        }


def _block(tensor: torch.Tensor) -> int:
    return BLOCK if tensor.device.type == "cpu" else GPU_BLOCK


def splitmix64(start: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """The numbers `first` to `first + count - 1` of SplitMix64's sequence, as int64 with the same bits, (count,).

    Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
    """
    counter_N = torch.arange(first + 1, first + 1 + count, dtype=torch.int64, device=device)
    bits_N = counter_N.mul_(_signed(_GOLDEN)).add_(_signed(start))
    bits_N ^= _shifted(bits_N, 30)
    bits_N *= _signed(_MIX_1)
    bits_N ^= _shifted(bits_N, 27)
    bits_N *= _signed(_MIX_2)
    bits_N ^= _shifted(bits_N, 31)
    return bits_N


def _start(key: str, name: str) -> int:
    """Where the sequence of a tensor starts."""
    return int.from_bytes(hashlib.sha256(f"{key}\0{name}".encode()).digest()[:8], "little")


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of a number."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right: torch's own repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _random(start: int, first: int, count: int, lane: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uniform bits of the elements from `first` on, (count,), in the integers `lane`: a number of the sequence has
    several of them, the lowest first (all machines that torch runs on store them in this order).
    """
    lanes = 8 // lane.itemsize
    before = first % lanes
    numbers = splitmix64(start, first // lanes, math.ceil((before + count) / lanes), device)
    return numbers.view(lane)[before : before + count]


def _round(exact_N: torch.Tensor, dtype: torch.dtype, start: int, first: int) -> torch.Tensor:
    to_half = _to_bfloat16 if dtype == torch.bfloat16 else _to_float16
    largest = torch.finfo(dtype).max
    rounded_N = to_half(exact_N.clamp(-largest, largest), start, first)
    return torch.where(exact_N.isfinite(), rounded_N, exact_N.to(dtype))


def _to_bfloat16(exact_N: torch.Tensor, start: int, first: int) -> torch.Tensor:
    """bfloat16 is the upper half of float32: uniform bits are added to the lower half, and a carry rounds away."""
    bits_N = _random(start, first, len(exact_N), torch.int16, exact_N.device).int().bitwise_and_(0xFFFF)
    bits_N.add_(exact_N.view(torch.int32)).bitwise_and_(~0xFFFF)
    return bits_N.view(torch.float32).to(torch.bfloat16)


def _to_float16(exact_N: torch.Tensor, start: int, first: int) -> torch.Tensor:
    """In units of the last place, which a power of two makes exact: the integer part, and one more by chance."""
    exponent_N = (exact_N.view(torch.int32) >> 23) & 0xFF
    # 2^(10 - exponent) by its bits; below 2^-14, float16's numbers are as far apart as there.
    scale_N = ((264 - exponent_N.clamp_(113, 254)) << 23).view(torch.float32)
    units_N = exact_N.abs() * scale_N
    below_N = units_N.floor()
    random_N = _random(start, first, len(exact_N), torch.int32, exact_N.device).bitwise_and(0xFFFFFF)
    up_N = random_N * 2.0**-24 < units_N - below_N
    return ((below_N + up_N) / scale_N).copysign(exact_N).to(torch.float16)
