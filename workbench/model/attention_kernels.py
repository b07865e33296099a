"""Attention kernels as pairs: a forward that keeps its log-sum-exp, a backward without a graph.

    flash   torch's flash attention with cumulative lengths: CUDA, 16 bits, any documents, windows
    cudnn   causal rows of one document each: CUDA, 16 bits; twice as fast as flash on Hopper
    cpu     causal rows of one document each on the CPU

No kernel waits for the device or reads a value from it. A kernel is used only where it passes its
test against the dense twin (``kernel_works``), once per process. The operators are private to torch
and the same in 2.11 and 2.13; the test is what notices when they are no longer.

    rows (B), tokens of a row (T), query heads (H), key heads (K), width of a head (D)
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.model.attention_twin import dense_attention, visible

logger = logging.getLogger(__name__)

Kernel = Literal["flash", "cudnn", "cpu"]

# A call of a backward on CUDA takes at most this many tokens times query heads. Beside its results
# it allocates up to 12 bytes for each of their elements, so 0.75 GiB for heads of 128, however long
# rows are. Smaller calls leave multiprocessors idle at their ends: on an H200 four rows of 4,096
# tokens and 32 heads take 5.06 ms in one call, 5.69 in two, 6.10 in four; longer rows lose nothing.
_BACKWARD_TOKEN_HEADS = 1 << 19


@dataclass(frozen=True)
class Spans:
    """Which tokens attend to each other, as the kernels want to be told.

    Attributes:
        window: tokens a query sees, itself included; None sees all before it in its document.
        boundaries: for flash, (documents + 1,) int32 offsets into the rows laid end to end, on the
            device; a document may be empty.
        longest: for flash, at least the tokens of the longest document.
    """

    window: int | None = None
    boundaries: Tensor | None = None
    longest: int = 0


def kernel_forward(
    kernel: Kernel, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, spans: Spans
) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        kernel: which.
        q_BTHD: queries, a view of any strides whose last is 1, like the keys and values.
        k_BTKD: keys; H is a multiple of K.
        v_BTKD: values.
        spans: which tokens attend to each other.

    Returns:
        out (B, T, H, D), the dtype of the queries; log_sum (B * T * H,) fp32, in an order of the
        kernel's own that depends on nothing but the shape.
    """
    if kernel == "flash":
        return _flash_forward(q_BTHD, k_BTKD, v_BTKD, spans)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BTHD, k_BTKD, v_BTKD))
    if kernel == "cudnn":
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True
        )
        return out.transpose(1, 2), log_sum.view(-1)
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return out.transpose(1, 2), log_sum.transpose(1, 2).reshape(-1)


def kernel_backward(
    kernel: Kernel,
    gradient_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    out_BTHD: Tensor,
    log_sum: Tensor,
    spans: Spans,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of queries, keys and values.

    Under ``torch.use_deterministic_algorithms`` flash sums in a fixed order; cuDNN does not.

    On CUDA it takes, in bytes per token for queries of q elements (H·D) and keys of k in 16 bits:
    2q + 4k for the gradients; 4q for sums of dq in fp32; 4q where heads are grouped, for each query
    head's own dk and dv. With 32 heads of 128 that is 45,056 for 8 key heads, 40,960 for 32 (H200,
    torch 2.11: cuDNN 45,184 and 41,088; flash the same and 512q for each document). All but the
    gradients is bounded where rows are long: their heads go in turn. In deterministic mode flash
    keeps several sums of dq where documents times heads are fewer than multiprocessors: 62,596
    for four rows of 4,096 (8 key heads), 111,361 for one of 16,384.

    Args:
        kernel: the one of the forward.
        gradient_BTHD: of the result.
        q_BTHD: as in the forward.
        k_BTKD: the same.
        v_BTKD: the same.
        out_BTHD: from the forward, or a copy.
        log_sum: from the forward, or a copy.
        spans: as in the forward.

    Returns:
        dq (B, T, H, D), dk and dv (B, T, K, D), the dtype of the queries.
    """
    rows, length, heads, _ = q_BTHD.shape
    key_heads = k_BTKD.shape[2]
    group = heads // key_heads
    at_once = max(1, _BACKWARD_TOKEN_HEADS // (rows * length * group))
    inputs = gradient_BTHD, q_BTHD, k_BTKD, v_BTKD, out_BTHD
    if kernel == "cpu" or at_once >= key_heads:
        return _backward_call(kernel, inputs, log_sum, spans)
    dq, dk, dv = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (q_BTHD, k_BTKD, v_BTKD)
    )
    by_head = log_sum.view(1 if kernel == "flash" else rows, heads, -1)
    for first in range(0, key_heads, at_once):
        keys = slice(first, first + at_once)
        queries = slice(first * group, (first + at_once) * group)
        heads_of = (queries, queries, keys, keys, queries)
        some = [tensor[:, :, those] for tensor, those in zip(inputs, heads_of, strict=True)]
        dq[:, :, queries], dk[:, :, keys], dv[:, :, keys] = _backward_call(
            kernel, some, by_head[:, queries].reshape(-1), spans
        )
    return dq, dk, dv


def _backward_call(
    kernel: Kernel, inputs: Sequence[Tensor], log_sum: Tensor, spans: Spans
) -> tuple[Tensor, Tensor, Tensor]:
    """Take gradient, q, k, v and out, all (B, T, heads, D), to dq, dk and dv."""
    rows, length, heads, _ = inputs[0].shape
    if kernel == "flash":
        unused = log_sum.new_empty(0)  # the state of a dropout of 0
        gradients = torch.ops.aten._flash_attention_backward(
            *(tensor.flatten(0, 1) for tensor in inputs),
            log_sum.view(heads, -1),
            spans.boundaries,
            spans.boundaries,
            spans.longest,
            spans.longest,
            0.0,
            spans.window is None,
            unused,
            unused,
            **_flash_window(spans.window),
        )
        dq, dk, dv = (tensor.view(rows, length, *tensor.shape[1:]) for tensor in gradients)
        return dq, dk, dv
    by_head = [tensor.transpose(1, 2) for tensor in inputs]
    if kernel == "cudnn":
        unused = torch.empty((), dtype=torch.int64, device=log_sum.device)  # the same
        gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *by_head, log_sum.view(rows, heads, length, 1), unused, unused,
            None, None, None, length, length, 0.0, True,
        )  # fmt: skip
    else:
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *by_head, log_sum.view(rows, length, heads).transpose(1, 2), 0.0, True
        )
    dq, dk, dv = (tensor.transpose(1, 2) for tensor in gradients)
    return dq, dk, dv


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        *(tensor.flatten(0, 1) for tensor in (q, k, v)),
        spans.boundaries,
        spans.boundaries,
        spans.longest,
        spans.longest,
        0.0,
        spans.window is None,
        False,
        **_flash_window(spans.window),
    )
    return out.view(q.shape), log_sum.view(-1)


def _flash_window(window: int | None) -> dict[str, int]:
    """Count as the kernel does: the tokens before the query, not the query itself."""
    left = -1 if window is None else window - 1
    return {"window_size_left": left, "window_size_right": 0}


# ---- the start-up test -------------------------------------------------------------------------


@functools.cache
def kernel_works(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Test a kernel against the dense twin on this device, once per process.

    Forward and all gradients; grouped heads; inputs that are views of one buffer; records copied
    elsewhere; for flash also an empty document and a sliding window. This waits for the device.

    Raises:
        torch.OutOfMemoryError: there is no memory for the test; the next call tests again.
    """
    places = {"flash": "cuda", "cudnn": "cuda", "cpu": "cpu"}
    sixteen_bits = (torch.bfloat16, torch.float16)
    known = sixteen_bits if device.type == "cuda" else (torch.float32, *sixteen_bits)
    if device.type != places[kernel] or dtype not in known:
        return False
    starts = [[0, 5, 5, 160, 300], [0, 300, 300, 300, 300]]
    if kernel != "flash":
        starts = [[0], [0]]
    windows = (None, 7) if kernel == "flash" else (None,)
    try:
        with torch.inference_mode(mode=False):
            agrees = all(
                _agrees(kernel, torch.tensor(starts), 300, window, device, dtype, head_dim)
                for window in windows
            )
    except torch.OutOfMemoryError:
        raise  # that says nothing of the kernel
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        # On a GPU what takes its place is slower by far: nobody should have to wonder why.
        level = logging.WARNING if device.type == "cuda" else logging.INFO
        logger.log(level, "attention kernel %s fails on %s in %s for heads of %d: %s",
                   kernel, device, dtype, head_dim, error)  # fmt: skip
        return False
    if not agrees:
        logger.warning("attention kernel %s is wrong on %s in %s", kernel, device, dtype)
    return agrees


def _agrees(
    kernel: Kernel,
    starts: Tensor,
    length: int,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
) -> bool:
    rows, heads, key_heads = starts.shape[0], 4, 2
    generator = torch.Generator().manual_seed(0)
    widths = [heads * head_dim, key_heads * head_dim, key_heads * head_dim]
    buffer = torch.randn(rows * length, sum(widths), generator=generator).to(device, dtype)
    gradient = torch.randn(rows, length, heads, head_dim, generator=generator).to(device, dtype)
    q, k, v = (part.view(rows, length, -1, head_dim) for part in torch.split(buffer, widths, 1))
    spans = Spans(window, flat_boundaries(starts, length).to(device), length)
    with torch.no_grad():
        out, log_sum = kernel_forward(kernel, q, k, v, spans)
        if log_sum.shape != (rows * length * heads,) or log_sum.dtype != torch.float32:
            return False
        ours = kernel_backward(
            kernel, gradient, q, k, v, out.clone(memory_format=torch.contiguous_format),
            log_sum.clone(), spans,
        )  # fmt: skip
    mask = visible(starts.to(device), length, window)
    with torch.enable_grad():
        leaves = [tensor.detach().float().requires_grad_() for tensor in (q, k, v)]
        by_head = [leaf.transpose(1, 2) for leaf in leaves]
        twin = dense_attention(by_head[0], by_head[1], by_head[2], mask).transpose(1, 2)
        theirs = torch.autograd.grad(twin, leaves, gradient.float())
    # 2e-2: the kernel rounds to 16 bits on its way; a wrong mask is off by the order of 1.
    return all(
        bool((found.float() - expected).norm() <= 2e-2 * expected.norm())
        for found, expected in zip((out, *ours), (twin.detach(), *theirs), strict=True)
    )


def flat_boundaries(document_starts: Tensor, row_length: int) -> Tensor:
    """Give the documents' offsets in all rows laid end to end; empty documents repeat one.

    Returns:
        (rows * documents + 1,) int32, on the device of the starts.
    """
    rows = document_starts.shape[0]
    first = torch.arange(rows, device=document_starts.device)[:, None] * row_length
    flat = (document_starts + first).flatten().to(torch.int32)
    return torch.nn.functional.pad(flat, (0, 1), value=rows * row_length)
