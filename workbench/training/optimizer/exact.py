"""An fp32 weight as two halves of 16 bits: the nearest bfloat16, and what is missing to it.

Forward sees the high half, a bfloat16 weight like any other; the low half is an int16 that only
the update needs. The nearest bfloat16 takes halves away from zero: with halves to even the
difference would not fit 16 bits.

Invariant: ``join_exact(*split_exact(x))`` is ``x`` bit for bit, for every x but NaN, whose payload
is not kept.
"""

import torch
from torch import Tensor

LOW = "low"
"""Name of the part of a companion that holds the low half."""

_HALF = 0x8000
_NAN = 0x7FC00000


def split_exact(values: Tensor) -> tuple[Tensor, Tensor]:
    """Take fp32 values apart into the nearest bfloat16 and the difference of the bit patterns.

    0x3F80C000 is 1.005859375: its high half is 0x3F81 (1.0078125), its low half -0x4000.

    Args:
        values: fp32, any shape.

    Returns:
        The high half, bfloat16, and the low half, int16, both of the shape of ``values``.
    """
    bits = torch.where(values.isnan(), _NAN, values.contiguous().view(torch.int32))
    high = (bits + _HALF) >> 16
    low = bits - (high << 16)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_exact(high: Tensor, low: Tensor) -> Tensor:
    """Put the halves that ``split_exact`` gave together again.

    Args:
        high: bfloat16, contiguous.
        low: int16 of the same number of elements.

    Returns:
        fp32 of the shape of ``high``.
    """
    bits = high.contiguous().view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return bits.add_(low.view(high.shape)).view(torch.float32)


def write_exact(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Store fp32 ``values`` in the halves ``high`` and ``low``, which are overwritten."""
    new_high, new_low = split_exact(values)
    high.copy_(new_high)
    low.view(high.shape).copy_(new_low)
