"""Flex attention, for those who ask for it: torch compiles a kernel around our mask.

Compiling takes a minute at the first microbatch and again when the shape of rows changes, so no
method comes here by itself. It trains on CUDA only, in any float dtype.

    rows (B), tokens of a row (T), query heads (H), key heads (K), width of a head (D)
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from workbench.model.rotary import document_index

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK_TOKENS = 128


def why_not_flex(device: torch.device) -> str | None:
    """Say what flex attention lacks on this device; None where it can train."""
    if device.type != "cuda":
        return f"flex attention has no backward on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "flex attention needs triton, which is not installed"
    return None


def visible_blocks(
    document_starts: Tensor, row_length: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Say which blocks of 128 keys a block of 128 queries sees in part, and which wholly.

    Worked out from the documents at both ends of each block, so nothing of the size T x T is made.

    Args:
        document_starts: (B, documents), ascending from 0; the tail repeats ``row_length``.
        row_length: T.
        window: tokens a query sees, itself included; None sees all before it.

    Returns:
        in part, wholly: (B, blocks, blocks) bool on the device of the starts, queries first; a
        block seen in part may turn out to hold nothing a query sees, never the other way round.
    """
    document = document_index(document_starts, row_length)
    blocks = -(-row_length // _BLOCK_TOKENS)
    begin = torch.arange(blocks, device=document.device) * _BLOCK_TOKENS
    last = (begin + _BLOCK_TOKENS - 1).clamp(max=row_length - 1)
    first_document, last_document = document[:, begin], document[:, last]
    apart = begin[:, None] - begin[None, :]
    seen = (apart >= 0) & (last_document[:, None, :] >= first_document[:, :, None])
    wholly = (apart > 0) & (first_document[:, None, :] == last_document[:, :, None])
    if window is not None:
        seen = seen & (apart - (_BLOCK_TOKENS - 1) < window)
        wholly = wholly & (apart + (_BLOCK_TOKENS - 1) < window)
    return seen & ~wholly, wholly


def flex_blocks(document_starts: Tensor, row_length: int, window: int | None) -> "BlockMask":
    """Give the mask of a microbatch, on the device of the starts; nothing waits for it."""
    from torch.nn.attention.flex_attention import BlockMask

    part, wholly = visible_blocks(document_starts, row_length, window)
    document = document_index(document_starts, row_length)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        allowed = (document[row, query] == document[row, key]) & (distance >= 0)
        return allowed if window is None else allowed & (distance < window)

    return BlockMask.from_kv_blocks(
        *_numbered(part),
        *_numbered(wholly),
        BLOCK_SIZE=_BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(row_length, row_length),
    )


def attend_flex(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, blocks: "BlockMask") -> Tensor:
    """Attend by the compiled kernel: (B, T, H, D), the dtype of the queries."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BTHD, k_BTKD, v_BTKD))
    out = _compiled()(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def _numbered(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Count the blocks that queries see, and list them first: (B, 1, blocks[, blocks]) int32."""
    order = seen.int().argsort(dim=-1, descending=True, stable=True)
    return seen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None].contiguous()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return cast(Callable[..., Tensor], torch.compile(flex_attention))
