"""Gradients that land where they are summed: no temporary of a weight's size, no extra pass.

A matrix gradient is a product of two activations; it is added straight into the sum, in the sum's
own precision. Knows nothing of blocks or of the model.

    rows (N), out (O), in (I)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def add_product(into_OI: Tensor, left_NO: Tensor, right_NI: Tensor) -> None:
    """Add ``left.T @ right`` to a sum, with the sum's precision.

    Args:
        into_OI: bfloat16 or fp32; changed in place.
        left_NO: bfloat16 or fp32.
        right_NI: of the same dtype as ``left_NO``.
    """
    left_ON = left_NO.t()
    if into_OI.dtype == left_NO.dtype:
        into_OI.addmm_(left_ON, right_NI)
    elif into_OI.device.type == "cuda":
        torch.addmm(into_OI, left_ON, right_NI, out_dtype=into_OI.dtype, out=into_OI)
    else:
        # The CPU has no product of bfloat16 into an fp32 sum.
        into_OI.addmm_(left_ON.to(into_OI.dtype), right_NI.to(into_OI.dtype))


class SummingLinear:
    """A linear layer whose weight gradient is added to a given sum during backward.

    Args:
        sums: by ``id`` of the weight tensor, the sum its gradient is added to.
    """

    def __init__(self, sums: Mapping[int, Tensor]) -> None:
        self._sums = sums

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply ``weight`` (O, I) to ``x`` (..., I)."""
        result: Tensor = _LinearInto.apply(  # type: ignore[no-untyped-call]
            x, weight, self._sums[id(weight)]
        )
        return result


class _LinearInto(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, into: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x)
        ctx.weight, ctx.into = weight, into
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        add_product(ctx.into, gradient.flatten(0, -2), x.flatten(0, -2))
        return gradient @ ctx.weight, None, None
