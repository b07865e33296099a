"""Causal attention that stays inside the documents of a row, by the fastest way that is right.

The layout is (rows, length, heads, head_dim) throughout. What the documents of a microbatch
require is worked out once, in ``attention_structure``; attending itself reads no value from the
device. The ways:

    varlen      torch's varlen kernel, CUDA in 16 bits, where it passes its start-up test
    causal      plain causal SDPA: every row is one document and no window bites
    documents   causal SDPA over documents of like length, gathered side by side
    dense       the twin that defines the result: scores, mask, softmax in fp32
"""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import ConfigError
from workbench.model.rotary import document_index

logger = logging.getLogger(__name__)

Method = Literal["varlen", "sdpa", "dense"]

# Documents up to this length share a group; longer ones share it with those of up to twice their
# length, so that a group's padding at most doubles its tokens and a row needs few calls.
_SHORT_DOCUMENT_TOKENS = 32


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of like length, laid side by side for one call.

    Attributes:
        tokens: (documents, longest) int64, which token of the flattened rows stands here; a
            shorter document repeats its last one, which no earlier token sees.
        band: (longest, longest) bool, True where a query may see a key; None without a window.
    """

    tokens: Tensor
    band: Tensor | None = None


@dataclass(frozen=True)
class AttentionStructure:
    """What attention must know of a microbatch; made once, used by every block.

    Attributes:
        way: see the module's docstring.
        row_length: tokens in a row.
        window: tokens a query sees, itself included; None sees all before it.
        mask: for dense, (rows, 1, length, length) bool, True where a query (third axis) may see a
            key.
        groups: for documents, all of them.
        places: for documents, (rows * length,) int64, where each token's result stands among the
            results of the groups.
        boundaries: for varlen, (rows * documents + 1,) int32 offsets into the flattened rows.
        expand_heads: for varlen, repeat keys and values because the kernel fails grouped heads.
    """

    way: Literal["varlen", "causal", "documents", "dense"]
    row_length: int
    window: int | None = None
    mask: Tensor | None = None
    groups: tuple[DocumentGroup, ...] = ()
    places: Tensor | None = None
    boundaries: Tensor | None = None
    expand_heads: bool = False


def choose_method(
    requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 64
) -> Method:
    """Turn ``model.attention`` into what this device can do.

    Raises:
        ConfigError: varlen was asked for and fails its test here, or flex was asked for.
    """
    if requested in ("sdpa", "dense"):
        return requested  # type: ignore[return-value]
    if requested == "flex":
        raise ConfigError(
            "flex attention is not built in",
            where="model.attention",
            remedy="set model.attention: auto",
        )
    works = varlen_support(device, dtype, head_dim) is not None
    if requested == "varlen" and not works:
        raise ConfigError(
            f"varlen attention fails its test on {device} in {dtype}",
            where="model.attention",
            remedy="set model.attention: auto",
        )
    return "varlen" if works else "sdpa"


def attention_structure(
    document_starts: Tensor,
    row_length: int,
    window: int | None,
    method: Method,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
) -> AttentionStructure:
    """Work out what each row's documents mean for attention.

    With starts on the host this never waits for the device; with starts on a GPU, every method
    but varlen copies them back once.

    Args:
        document_starts: (rows, documents) int32 or int64, ascending from 0; the tail repeats
            ``row_length``.
        row_length: tokens in a row.
        window: tokens a query sees, itself included; None sees all before it.
        method: from ``choose_method``.
        device: where attention will run.
        dtype: of queries, keys and values.
        head_dim: width of a head.
    """
    if window is not None and window >= row_length:
        window = None
    if method == "varlen" and document_starts.device.type != "cpu":
        return _varlen(document_starts, row_length, window, device, dtype, head_dim)
    if method == "dense":
        mask = visible(document_starts.to(device, non_blocking=True), row_length, window)
        return AttentionStructure("dense", row_length, window, mask=mask)
    begins, lengths = _documents(document_starts.cpu().long(), row_length)
    if begins.numel() == document_starts.shape[0] and window is None:
        return AttentionStructure("causal", row_length)
    if method == "varlen":
        return _varlen(document_starts, row_length, window, device, dtype, head_dim)
    return _grouped(begins, lengths, document_starts.shape[0], row_length, window, device)


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, structure: AttentionStructure) -> Tensor:
    """Attend within documents (B rows, T tokens, H query heads, K key heads, D head width).

    Returns:
        (B, T, H, D), the dtype of the queries.
    """
    if structure.way == "varlen":
        return _attend_varlen(q_BTHD, k_BTKD, v_BTKD, structure)
    if structure.way == "documents":
        return _attend_documents(q_BTHD, k_BTKD, v_BTKD, structure)
    if structure.way == "causal":
        return _causal(q_BTHD, k_BTKD, v_BTKD)
    assert structure.mask is not None
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BTHD, k_BTKD, v_BTKD))
    return dense_attention(q, k, v, structure.mask).transpose(1, 2)


@dataclass(frozen=True)
class Attended:
    """What attending gives, and what its backward needs of it beside q, k and v.

    Attributes:
        out_BTHD: the dtype of the queries.
        log_sum: the logarithm of each query's sum of exponentials, B·T·H fp32 elements in the
            kernel's own layout; None where the backward attends once more instead.
    """

    out_BTHD: Tensor
    log_sum: Tensor | None


def keeps_log_sum(structure: AttentionStructure) -> bool:
    """Say whether ``attend_forward`` gives a log-sum-exp, which a record then has to keep."""
    return False


def attend_forward(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, structure: AttentionStructure
) -> Attended:
    """Attend within documents, leaving no autograd graph.

    Args:
        q_BTHD: queries; like keys and values a view of any strides whose last is 1.
        k_BTKD: keys; H is a multiple of K.
        v_BTKD: values.
        structure: of the microbatch.
    """
    with torch.no_grad():
        return Attended(attend(q_BTHD, k_BTKD, v_BTKD, structure), None)


def attend_backward(
    gradient_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    attended: Attended,
    structure: AttentionStructure,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of queries, keys and values.

    Args:
        gradient_BTHD: of the result.
        q_BTHD: as they were in ``attend_forward``.
        k_BTKD: the same.
        v_BTKD: the same.
        attended: what ``attend_forward`` gave, or copies of it with the same content and shape.
        structure: of the microbatch.

    Returns:
        dq (B, T, H, D), dk and dv (B, T, K, D), the dtype of the queries.
    """
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q_BTHD, k_BTKD, v_BTKD))
        dq, dk, dv = torch.autograd.grad(attend(q, k, v, structure), (q, k, v), gradient_BTHD)
    return dq, dk, dv


def visible(document_starts: Tensor, row_length: int, window: int | None) -> Tensor:
    """Say which key each query may see: the same document, not later, within the window.

    Returns:
        (rows, 1, row_length, row_length) bool, on the device of the starts.
    """
    document = document_index(document_starts, row_length)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & _band(row_length, window, document_starts.device)


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
    shares = F.softmax(scores, dim=-1, dtype=torch.float32).to(q_BHTD.dtype)
    return torch.matmul(shares, v)


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Give (length, length) bool: query t sees keys t - window + 1 to t."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def _causal(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, band: Tensor | None = None
) -> Tensor:
    """Attend causally over the whole of each row, or within the band."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BTHD, k_BTKD, v_BTKD))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=band, is_causal=band is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def _documents(document_starts: Tensor, row_length: int) -> tuple[Tensor, Tensor]:
    """Give each document's offset in the flattened rows and its length, empty ones left out.

    Starts [[0, 3], [0, 5]] in rows of 5 give [0, 3, 5] and [3, 2, 5].
    """
    rows = torch.arange(document_starts.shape[0])[:, None] * row_length
    ends = F.pad(document_starts[:, 1:], (0, 1), value=row_length)
    lengths = (ends - document_starts).flatten()
    begins = (document_starts + rows).flatten()
    return begins[lengths > 0], lengths[lengths > 0]


def _grouped(
    begins: Tensor,
    lengths: Tensor,
    num_rows: int,
    row_length: int,
    window: int | None,
    device: torch.device,
) -> AttentionStructure:
    """Group documents by length and say where to find each token's result again."""
    doublings = (lengths.clamp(min=_SHORT_DOCUMENT_TOKENS) - 1).log2().floor()
    groups = []
    places = torch.empty(num_rows * row_length, dtype=torch.int64)
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
        band = None if window is None or window >= longest else _band(longest, window, device)
        groups.append(DocumentGroup(tokens.to(device, non_blocking=True), band))
    return AttentionStructure(
        "documents",
        row_length,
        window,
        groups=tuple(groups),
        places=places.to(device, non_blocking=True),
    )


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, structure: AttentionStructure) -> Tensor:
    assert structure.places is not None
    flat = [tensor.flatten(0, 1) for tensor in (q, k, v)]
    results = []
    for group in structure.groups:
        tokens = group.tokens.flatten()
        side_by_side = [
            tensor.index_select(0, tokens).view(*group.tokens.shape, *tensor.shape[1:])
            for tensor in flat
        ]
        results.append(_causal(*side_by_side, band=group.band).flatten(0, 1))
    return torch.cat(results).index_select(0, structure.places).view(q.shape)


# ---- varlen: one wrapper around a function whose form differs between torch 2.11 and 2.13 ----


@functools.cache
def varlen_support(
    device: torch.device, dtype: torch.dtype, head_dim: int
) -> AttentionStructure | None:
    """Test torch's varlen kernel against the dense twin on this device, once per process.

    Forward and backward, grouped heads, an empty document, a sliding window.

    Returns:
        A structure whose ``expand_heads`` says whether keys and values must be repeated; None
        where the kernel is missing or wrong.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if _varlen_function() is None:
        return None
    starts = torch.tensor([[0, 5, 5, 23, 32], [0, 32, 32, 32, 32]], dtype=torch.int32)
    for expand_heads in (False, True):
        try:
            with torch.inference_mode(mode=False), torch.enable_grad():
                agrees = all(
                    _varlen_agrees(starts, window, expand_heads, device, dtype, head_dim)
                    for window in (None, 7)
                )
            if agrees:
                return AttentionStructure("varlen", 0, expand_heads=expand_heads)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            logger.info("varlen attention (expand heads: %s) fails: %s", expand_heads, error)
    return None


def _varlen_agrees(
    starts: Tensor,
    window: int | None,
    expand_heads: bool,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> bool:
    rows, row_length = starts.shape[0], 32
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(rows, row_length, heads, head_dim, generator=generator).to(device, dtype)
        for heads in (4, 2, 2, 4)
    ]
    boundaries = _flat_boundaries(starts.to(device), row_length)
    varlen = AttentionStructure(
        "varlen", row_length, window, boundaries=boundaries, expand_heads=expand_heads
    )
    mask = visible(starts.to(device), row_length, window)
    dense = AttentionStructure("dense", row_length, window, mask=mask)
    results = []
    for structure in (varlen, dense):
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs[:3])
        out = attend(q, k, v, structure)
        results.append((out, *torch.autograd.grad(out, (q, k, v), inputs[3])))
    # 2e-2: both sides round to 16 bits on their way; a wrong mask is off by the order of 1.
    return all(
        bool((ours.float() - twin.float()).norm() <= 2e-2 * twin.float().norm())
        for ours, twin in zip(*results, strict=True)
    )


def _varlen(
    document_starts: Tensor,
    row_length: int,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> AttentionStructure:
    support = varlen_support(device, dtype, head_dim)
    assert support is not None, "choose_method tests varlen before it is used"
    boundaries = _flat_boundaries(document_starts.to(device, non_blocking=True), row_length)
    return replace(support, row_length=row_length, window=window, boundaries=boundaries)


def _flat_boundaries(document_starts: Tensor, row_length: int) -> Tensor:
    """Give the documents' offsets in all rows laid end to end; empty documents repeat one."""
    rows = document_starts.shape[0]
    first = torch.arange(rows, device=document_starts.device)[:, None] * row_length
    flat = (document_starts + first).flatten().to(torch.int32)
    return F.pad(flat, (0, 1), value=rows * row_length)


def _varlen_function() -> Callable[..., Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(Callable[..., Tensor], varlen_attn)


@functools.cache
def _varlen_arguments() -> frozenset[str]:
    function = _varlen_function()
    return frozenset() if function is None else frozenset(inspect.signature(function).parameters)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, structure: AttentionStructure) -> Tensor:
    group = q.shape[2] // k.shape[2]
    if structure.expand_heads and group > 1:
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        group = 1
    known = _varlen_arguments()
    options: dict[str, Any] = {}
    if group > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    if "window_size" in known:
        # The kernel counts the tokens before the query, our window counts the query too.
        options["window_size"] = (-1 if structure.window is None else structure.window - 1, 0)
    elif structure.window is None:
        options["is_causal"] = True
    else:
        raise NotImplementedError("this varlen kernel knows no window")
    length, boundaries = structure.row_length, structure.boundaries
    function = _varlen_function()
    assert function is not None, "choose_method tests varlen before it is used"
    out = function(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        boundaries,
        boundaries,
        length,
        length,
        **options,
    )
    return out.view(q.shape)
