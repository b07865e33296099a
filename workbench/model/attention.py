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
from workbench.model.attention_documents import (
    DocumentGroups,
    attend_causally,
    attend_documents,
    document_spans,
    documents_backward,
    documents_forward,
    group_documents,
)
from workbench.model.attention_flex import attend_flex, flex_blocks, why_not_flex
from workbench.model.attention_kernels import (
    Kernel,
    Spans,
    flat_boundaries,
    kernel_backward,
    kernel_forward,
    kernel_works,
)
from workbench.model.attention_twin import dense_attention, visible

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Method = Literal["varlen", "sdpa", "flex", "dense"]

_NO_SPANS = Spans()


@dataclass(frozen=True)
class AttentionStructure:
    """What attention must know of a microbatch; made once, used by every block.

    Attributes:
        way: see the module's docstring.
        row_length: tokens in a row.
        window: tokens a query sees, itself included; None sees all before it.
        mask: for dense, (rows, 1, length, length) bool, True where a query (third axis) may see a
            key.
        documents: for documents, all of them.
        blocks: for flex, its mask.
        kernel: what attends, forward and backward, without autograd; None where nothing does and
            the backward attends once more to get a graph. Always there for varlen.
        spans: what the kernel must know; always there for varlen.
    """

    way: Literal["varlen", "causal", "documents", "flex", "dense"]
    row_length: int
    window: int | None = None
    mask: Tensor | None = None
    documents: DocumentGroups | None = None
    blocks: "BlockMask | None" = None
    kernel: Kernel | None = None
    spans: Spans = _NO_SPANS


def choose_method(
    requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 64
) -> Method:
    """Turn ``model.attention`` into what this device can do.

    Raises:
        ConfigError: varlen was asked for and does not work here, or flex and it cannot train here.
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
        reason = "does not run on a CPU"
        if device.type != "cpu":
            reason = f"fails its test on {device} in {dtype} with heads of {head_dim}"
        raise ConfigError(
            f"varlen attention {reason}",
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
    begins, lengths = document_spans(document_starts.cpu().long(), row_length)
    num_rows, longest = document_starts.shape[0], int(lengths.max())
    if window is not None and window >= longest:
        window = None
    if begins.numel() == num_rows and window is None:
        kernel = _causal_kernel(row_length, device, dtype, head_dim)
        if kernel is not None or method != "varlen":
            return AttentionStructure("causal", row_length, kernel=kernel)
    if method == "varlen":
        # The documents are known here: what a kernel allocates grows with those it is told of.
        boundaries = F.pad(begins, (0, 1), value=num_rows * row_length).to(torch.int32)
        longest = max(2, longest)  # for one token the kernel takes another path
        return _varlen(boundaries.to(device, non_blocking=True), row_length, longest, window)
    documents = group_documents(begins, lengths, num_rows * row_length, window, device)
    kernel = None if window is not None else _cpu_kernel(device, dtype, head_dim)
    return AttentionStructure("documents", row_length, window, documents=documents, kernel=kernel)


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
    if structure.documents is not None:
        return attend_documents(q_BTHD, k_BTKD, v_BTKD, structure.documents)
    if structure.way == "causal":
        return attend_causally(q_BTHD, k_BTKD, v_BTKD)
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
    inputs = q_BTHD, k_BTKD, v_BTKD
    with torch.no_grad():
        if structure.kernel is None:
            return Attended(attend(*inputs, structure), None)
        if structure.documents is not None:
            return Attended(*documents_forward(structure.kernel, *inputs, structure.documents))
        return Attended(*kernel_forward(structure.kernel, *inputs, structure.spans))


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
    inputs = q_BTHD, k_BTKD, v_BTKD
    if structure.kernel is None:
        with torch.enable_grad():
            q, k, v = (tensor.detach().requires_grad_() for tensor in inputs)
            dq, dk, dv = torch.autograd.grad(attend(q, k, v, structure), (q, k, v), gradient_BTHD)
        return dq, dk, dv
    assert attended.log_sum is not None, "attend_forward gave one"
    known = (gradient_BTHD, *inputs, attended.out_BTHD, attended.log_sum)
    with torch.no_grad():
        if structure.documents is not None:
            return documents_backward(structure.kernel, *known, structure.documents)
        return kernel_backward(structure.kernel, *known, structure.spans)


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


def _causal_kernel(
    row_length: int, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Kernel | None:
    """Choose what attends to rows of one document each; None leaves it to torch, or to flash.

    cuDNN's kernels are the faster ones from Hopper on (H200, four rows of 4,096, 32 heads: forward
    1.04 ms against flash's 1.86, backward 3.03 against 5.28), but not deterministic, and for each
    new shape the host plans for 80 ms. Rows cut to one length have a round one; others change with
    each step.
    """
    if device.type != "cuda":
        return _cpu_kernel(device, dtype, head_dim)
    old = torch.cuda.get_device_capability(device) < (9, 0)
    if old or row_length % 128 or torch.are_deterministic_algorithms_enabled():
        return None
    return "cudnn" if kernel_works("cudnn", device, dtype, head_dim) else None


def _cpu_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel | None:
    return "cpu" if kernel_works("cpu", device, dtype, head_dim) else None


def _varlen(
    boundaries: Tensor, row_length: int, longest: int, window: int | None
) -> AttentionStructure:
    spans = Spans(window, boundaries, longest)
    return AttentionStructure("varlen", row_length, window, kernel="flash", spans=spans)
