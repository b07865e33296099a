"""Norm, rotary and gated MLP, readable: these functions define what a faster kernel must equal.

Each rounds where transformers rounds: the norm works in fp32 and multiplies its weight after the
cast, everything else stays in the dtype of the activations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Scale each vector to a root mean square of one, times ``weight``.

    Args:
        x: (..., hidden), any float dtype.
        weight: (hidden,), the dtype of x.
        epsilon: added to the mean square, in fp32.

    Returns:
        (..., hidden), the dtype of x.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of a head by its position's angle.

    Args:
        x: (rows, length, heads, head_dim).
        cosine: (rows, length, 1, head_dim), from ``rotary.rotary_tables``.
        sine: the same shape.

    Returns:
        The shape and dtype of x.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``silu(gate)`` by ``up``: what the down projection reads.

    Args:
        gate: (..., intermediate).
        up: (..., intermediate).
    """
    return F.silu(gate) * up
