"""Attention by the textbook, scores, mask, softmax: it defines what every kernel must equal.

rows (B), tokens of a row (T), query heads (H), key heads (K), width of a head (D)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.rotary import document_index


def visible(document_starts: Tensor, row_length: int, window: int | None) -> Tensor:
    """Say which key each query may see: the same document, not later, within the window.

    Returns:
        (rows, 1, row_length, row_length) bool, on the device of the starts.
    """
    document = document_index(document_starts, row_length)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & causal_band(row_length, window, document_starts.device)


def causal_band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Give (length, length) bool: query t sees keys t - window + 1 to t."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def dense_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Tensor) -> Tensor:
    """Attend by the textbook: the result every other way must equal.

    Args:
        q_BHTD: queries, heads before tokens.
        k_BKTD: keys; H is a multiple of K.
        v_BKTD: values.
        mask: (B or 1, 1, T, T) bool, True where visible; each query sees at least itself.

    Returns:
        (B, H, T, D).
    """
    group = q_BHTD.shape[1] // k_BKTD.shape[1]
    k, v = k_BKTD.repeat_interleave(group, 1), v_BKTD.repeat_interleave(group, 1)
    scores = torch.matmul(q_BHTD, k.transpose(2, 3)) * q_BHTD.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(scores.dtype, torch.float32)
    shares = F.softmax(scores, dim=-1, dtype=wide).to(q_BHTD.dtype)
    return torch.matmul(shares, v)
