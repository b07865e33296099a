"""Gradients that land where they are summed: no temporary of a weight's size, no extra pass.

A matrix gradient is a product of two activations; it is added straight into the sum, in the sum's
own precision. Knows nothing of blocks or of the model.

    rows (N), out (O), in (I)
"""

import torch
from torch import Tensor


def add_product(
    into_OI: Tensor, left_NO: Tensor, right_NI: Tensor, *, is_empty: bool = False
) -> None:
    """Add ``left.T @ right`` to a sum, with the sum's precision.

    Args:
        into_OI: bfloat16 or fp32; changed in place.
        left_NO: bfloat16 or fp32.
        right_NI: of the same dtype as ``left_NO``.
        is_empty: overwrite what the sum holds.
    """
    left_ON = left_NO.t()
    kept = 0.0 if is_empty else 1.0
    if into_OI.dtype == left_NO.dtype:
        torch.addmm(into_OI, left_ON, right_NI, beta=kept, out=into_OI)
    elif into_OI.device.type == "cuda":
        torch.addmm(into_OI, left_ON, right_NI, beta=kept, out_dtype=into_OI.dtype, out=into_OI)
    else:
        # The CPU has no product of bfloat16 into an fp32 sum.
        left_ON, right_NI = left_ON.to(into_OI.dtype), right_NI.to(into_OI.dtype)
        torch.addmm(into_OI, left_ON, right_NI, beta=kept, out=into_OI)
