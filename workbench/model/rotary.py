"""Rotary positions that restart at each document of a row.

Tables are computed in fp32 and rounded once to the dtype of the activations, as transformers
does, so that bf16 logits agree as well.
"""

import functools

import torch
from torch import Tensor


def document_index(document_starts: Tensor, row_length: int) -> Tensor:
    """Say for each token to which document of its row it belongs.

    Args:
        document_starts: (rows, documents) int32 or int64, ascending from 0; the tail repeats
            ``row_length``.
        row_length: tokens in a row.

    Returns:
        (rows, row_length) int64. Starts [0, 3, 5] in a row of 5 give [0, 0, 0, 1, 1].
    """
    positions = torch.arange(
        row_length, dtype=document_starts.dtype, device=document_starts.device
    ).expand(document_starts.shape[0], row_length)
    after = torch.searchsorted(document_starts.contiguous(), positions.contiguous(), right=True)
    return after - 1


def document_positions(document_starts: Tensor, row_length: int) -> Tensor:
    """Count positions anew at each document.

    Returns:
        (rows, row_length) int64. Starts [0, 3, 5] in a row of 5 give [0, 1, 2, 0, 1].
    """
    index = document_index(document_starts, row_length)
    begins = torch.gather(document_starts.long(), 1, index)
    return torch.arange(row_length, device=document_starts.device) - begins


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Give cosine and sine of each position's angles.

    Args:
        positions: (rows, row_length) int64.
        head_dim: width of a head, even.
        theta: base of the frequencies.
        dtype: of the result.

    Returns:
        Two tensors (rows, row_length, 1, head_dim), ready to broadcast over heads. The second
        half of the last axis repeats the first.
    """
    angles = positions[..., None].float() * _frequencies(head_dim, theta, positions.device)
    angles = torch.cat((angles, angles), dim=-1)[..., None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


@functools.cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Give (head_dim / 2,) fp32, kept on the device so that no step waits for its copy."""
    # On the CPU always: a power differs in its last bit between devices.
    with torch.inference_mode(mode=False):  # whoever asks first, training can use it too
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return (1.0 / (theta**exponents)).to(device)
