"""Causal attention that stays inside the documents of a row, by the fastest way that is right.

The layout is (rows, length, heads, head_dim) throughout. What the documents of a microbatch
require is worked out once, in ``attention_structure``; attending itself reads no value from the
device. The ways:

    varlen      flash attention told where documents end, CUDA in 16 bits
    causal      every row is one document and no window bites
    documents   causal attention over documents of like length, gathered side by side
    flex        a kernel that torch compiles around the mask, where it is asked for
    dense       the twin that defines the result: scores, mask, softmax in fp32

Each can be had with autograd (``attend``) and without (``attend_forward``, ``attend_backward``).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from workbench.errors import ConfigError
from workbench.model.attention_flex import attend_flex, flex_blocks, why_not_flex
from workbench.model.attention_kernels import (
    Kernel,
    Spans,
    flat_boundaries,
    kernel_backward,
    kernel_forward,
    kernel_works,
)
from workbench.model.attention_twin import causal_band, dense_attention, visible

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Method = Literal["varlen", "sdpa", "flex", "dense"]

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
        blocks: for flex, its mask.
        kernel: what attends, forward and backward, without autograd; None where nothing does and
            the backward attends once more to get a graph. Always there for varlen.
        spans: what the kernel must know; always there for varlen.
    """

    way: Literal["varlen", "causal", "documents", "flex", "dense"]
    row_length: int
    window: int | None = None
    mask: Tensor | None = None
    groups: tuple[DocumentGroup, ...] = ()
    places: Tensor | None = None
    blocks: "BlockMask | None" = None
    kernel: Kernel | None = None
    spans: Spans = _NO_SPANS


def choose_method(
    requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 64
) -> Method:
    """Turn ``model.attention`` into what this device can do.

    Raises:
        ConfigError: varlen was asked for and fails its test here, or flex and it cannot train here.
    """
    if requested in ("sdpa", "dense"):
        return requested  # type: ignore[return-value]
    if requested == "flex":
        reason = why_not_flex(device)
        if reason is not None:
            raise ConfigError(reason, where="model.attention", remedy="set model.attention: auto")
        return "flex"
    works = kernel_works("flash", device, dtype, head_dim)
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

    With starts on the host this never waits for the device; with starts on a GPU, sdpa
    copies them back once.

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
        boundaries = flat_boundaries(document_starts.to(device), row_length)
        return _varlen(boundaries, row_length, row_length, window)
    if method == "dense":
        mask = visible(document_starts.to(device, non_blocking=True), row_length, window)
        return AttentionStructure("dense", row_length, window, mask=mask)
    if method == "flex":
        starts = document_starts.to(device, non_blocking=True)
        blocks = flex_blocks(starts, row_length, window)
        return AttentionStructure("flex", row_length, window, blocks=blocks)
    begins, lengths = _documents(document_starts.cpu().long(), row_length)
    num_rows = document_starts.shape[0]
    if begins.numel() == num_rows and window is None:
        kernel = _causal_kernel(device, dtype, head_dim)
        if kernel is not None or method != "varlen":
            return AttentionStructure("causal", row_length, kernel=kernel)
    if method == "varlen":
        # The documents are known here: what a kernel allocates grows with those it is told of.
        boundaries = F.pad(begins, (0, 1), value=num_rows * row_length).to(torch.int32)
        longest = max(2, int(lengths.max()))  # for one token the kernel takes another path
        return _varlen(boundaries.to(device, non_blocking=True), row_length, longest, window)
    return _grouped(begins, lengths, num_rows, row_length, window, device)


def attend(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, structure: AttentionStructure) -> Tensor:
    """Attend within documents (B rows, T tokens, H query heads, K key heads, D head width).

    Returns:
        (B, T, H, D), the dtype of the queries.
    """
    if structure.way == "varlen":
        out: Tensor = _KernelWithGraph.apply(  # type: ignore[no-untyped-call]
            q_BTHD, k_BTKD, v_BTKD, structure
        )
        return out
    if structure.way == "documents":
        return _attend_documents(q_BTHD, k_BTKD, v_BTKD, structure)
    if structure.way == "causal":
        return _causal(q_BTHD, k_BTKD, v_BTKD)
    if structure.blocks is not None:
        return attend_flex(q_BTHD, k_BTKD, v_BTKD, structure.blocks)
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
    return structure.kernel is not None


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
        if structure.kernel is not None:
            return Attended(
                *kernel_forward(structure.kernel, q_BTHD, k_BTKD, v_BTKD, structure.spans)
            )
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
    if structure.kernel is not None:
        assert attended.log_sum is not None, "attend_forward gave one"
        with torch.no_grad():
            return kernel_backward(
                structure.kernel,
                gradient_BTHD,
                q_BTHD,
                k_BTKD,
                v_BTKD,
                attended.out_BTHD,
                attended.log_sum,
                structure.spans,
            )
    with torch.enable_grad():
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q_BTHD, k_BTKD, v_BTKD))
        dq, dk, dv = torch.autograd.grad(attend(q, k, v, structure), (q, k, v), gradient_BTHD)
    return dq, dk, dv


class _KernelWithGraph(torch.autograd.Function):
    """The kernel's pair, where somebody wants a graph."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, structure: AttentionStructure
    ) -> Tensor:
        attended = attend_forward(q, k, v, structure)
        assert attended.log_sum is not None, "a kernel gives one"
        ctx.save_for_backward(q, k, v, attended.out_BTHD, attended.log_sum)
        ctx.structure = structure  # type: ignore[attr-defined]
        return attended.out_BTHD

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_sum = ctx.saved_tensors  # type: ignore[attr-defined]
        structure: AttentionStructure = ctx.structure  # type: ignore[attr-defined]
        return (*attend_backward(gradient, q, k, v, Attended(out, log_sum), structure), None)


def _causal_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel | None:
    """Choose what attends to rows of one document each; None leaves it to torch, or to flash.

    cuDNN's kernels are the faster ones from Hopper on (H200, four rows of 4,096: forward 0.90 ms
    against flash's 1.69, backward 2.90 against 5.0), but not deterministic.
    """
    kernel: Kernel = "cpu"
    if device.type == "cuda":
        old = torch.cuda.get_device_capability(device) < (9, 0)
        if old or torch.are_deterministic_algorithms_enabled():
            return None
        kernel = "cudnn"
    return kernel if kernel_works(kernel, device, dtype, head_dim) else None


def _varlen(
    boundaries: Tensor, row_length: int, longest: int, window: int | None
) -> AttentionStructure:
    spans = Spans(window, boundaries, longest)
    return AttentionStructure("varlen", row_length, window, kernel="flash", spans=spans)


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
        band = None if window is None or window >= longest else causal_band(longest, window, device)
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
