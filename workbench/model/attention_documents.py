"""Causal attention over documents of like length, gathered side by side; works on every device.

rows (B), tokens of a row (T), query heads (H), key heads (K), width of a head (D)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.attention_kernels import Kernel, Spans, kernel_backward, kernel_forward
from workbench.model.attention_twin import causal_band

# Documents up to this length share a group; longer ones share it with those of up to twice their
# length, so that a group's padding at most doubles its tokens and a row needs few calls.
_SHORT_DOCUMENT_TOKENS = 32

_NO_SPANS = Spans()


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of like length, laid side by side for one call.

    Attributes:
        tokens: (documents, longest) int64, which token of the flattened rows stands here; a
            shorter document repeats its last one, which no earlier token sees.
        padding: (documents, longest) bool, True where a token is such a repetition.
        band: (longest, longest) bool, True where a query may see a key; None without a window.
    """

    tokens: Tensor
    padding: Tensor
    band: Tensor | None = None


@dataclass(frozen=True)
class DocumentGroups:
    """All documents of a microbatch, in groups.

    Attributes:
        groups: each document is in one of them.
        places: (rows * length,) int64, where each token's result stands among the results of the
            groups, laid end to end.
    """

    groups: tuple[DocumentGroup, ...]
    places: Tensor


def document_spans(document_starts: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """Give each document's offset in the flattened rows and its length, empty ones left out.

    Starts [[0, 3], [0, 5]] in rows of 5 give [0, 3, 5] and [3, 2, 5].
    """
    rows = torch.arange(document_starts.shape[0])[:, None] * row_length
    ends = F.pad(document_starts[:, 1:], (0, 1), value=row_length)
    lengths = (ends - document_starts).flatten()
    begins = (document_starts + rows).flatten()
    return begins[lengths > 0], lengths[lengths > 0]


def group_documents(
    begins: Tensor, lengths: Tensor, num_tokens: int, window: int | None, device: torch.device
) -> DocumentGroups:
    """Group documents by length and say where to find each token's result again.

    Args:
        begins: (documents,) int64 on the host, offsets in the flattened rows.
        lengths: (documents,) int64 on the host, none of them 0.
        num_tokens: of all rows.
        window: tokens a query sees, itself included; None sees all before it.
        device: where attention will run; nothing waits for it.
    """
    doublings = (lengths.clamp(min=_SHORT_DOCUMENT_TOKENS) - 1).log2().floor()
    groups = []
    places = torch.empty(num_tokens, dtype=torch.int64)
    num_results = 0
    for doubling in sorted(set(doublings.tolist())):
        members = doublings == doubling
        begin, length = begins[members, None], lengths[members, None]
        offsets = torch.arange(int(length.max()))
        tokens = begin + torch.minimum(offsets, length - 1)
        found = offsets < length
        places[tokens[found]] = num_results + found.flatten().nonzero().flatten()
        num_results += tokens.numel()
        longest = offsets.numel()
        band = None if window is None or window >= longest else causal_band(longest, window, device)
        tokens, padding = (part.to(device, non_blocking=True) for part in (tokens, ~found))
        groups.append(DocumentGroup(tokens, padding, band))
    return DocumentGroups(tuple(groups), places.to(device, non_blocking=True))


def attend_documents(q: Tensor, k: Tensor, v: Tensor, documents: DocumentGroups) -> Tensor:
    """Attend with autograd: (B, T, heads, D) each, to (B, T, H, D)."""
    results = []
    for group in documents.groups:
        side_by_side = (_gathered(tensor, group) for tensor in (q, k, v))
        results.append(attend_causally(*side_by_side, band=group.band).flatten(0, 1))
    return torch.cat(results).index_select(0, documents.places).view(q.shape)


def attend_causally(q: Tensor, k: Tensor, v: Tensor, *, band: Tensor | None = None) -> Tensor:
    """Attend with autograd over the whole of each row, or within the band."""
    by_head = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    out = F.scaled_dot_product_attention(
        by_head[0],
        by_head[1],
        by_head[2],
        attn_mask=band,
        is_causal=band is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def documents_forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, documents: DocumentGroups
) -> tuple[Tensor, Tensor]:
    """Attend by a kernel for causal rows, where no group has a band.

    Returns:
        out (B, T, H, D); log_sum (B * T * H,) fp32, token by token.
    """
    results, log_sums = [], []
    for group in documents.groups:
        queries, keys, values = (_gathered(tensor, group) for tensor in (q, k, v))
        out, log_sum = kernel_forward(kernel, queries, keys, values, _NO_SPANS)
        results.append(out.flatten(0, 1))
        log_sums.append(log_sum.view(-1, q.shape[2]))
    out = torch.cat(results).index_select(0, documents.places).view(q.shape)
    return out, torch.cat(log_sums).index_select(0, documents.places).view(-1)


def documents_backward(
    kernel: Kernel,
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    documents: DocumentGroups,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of queries, keys and values by the kernel of the forward.

    A repeated token asks for nothing, its gradient is 0, so neither its share nor the log-sum-exp
    that it borrows from the token it repeats leaves a trace.
    """
    by_token = log_sum.view(-1, q.shape[2])
    results: list[list[Tensor]] = [[], [], []]
    for group in documents.groups:
        asked, queries, keys, values, given = (
            _gathered(tensor, group) for tensor in (gradient, q, k, v, out)
        )
        asked = asked.masked_fill_(group.padding[:, :, None, None], 0)
        sums = by_token.index_select(0, group.tokens.flatten()).view(-1)
        gradients = kernel_backward(kernel, asked, queries, keys, values, given, sums, _NO_SPANS)
        for parts, found in zip(results, gradients, strict=True):
            parts.append(found.flatten(0, 1))
    dq, dk, dv = (
        torch.cat(parts).index_select(0, documents.places).view(shaped.shape)
        for parts, shaped in zip(results, (q, k, v), strict=True)
    )
    return dq, dk, dv


def _gathered(tensor: Tensor, group: DocumentGroup) -> Tensor:
    """Lay the group's documents side by side: (documents, longest, heads, D)."""
    picked = tensor.flatten(0, 1).index_select(0, group.tokens.flatten())
    return picked.view(*group.tokens.shape, *tensor.shape[2:])
