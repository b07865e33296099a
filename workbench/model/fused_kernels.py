"""``Kernels`` in Triton: one pass over memory for each, imported only where Triton is.

``EagerKernels`` defines the results; these agree within the last bit of bf16. Nothing is tuned at
run time, which would cost seconds before the first step: sizes follow from the shapes by the rules
below. Each sum has one fixed order, without atomics, so results repeat bit for bit. Offsets of rows
are 64-bit numbers: a tensor may hold more than 2^31 elements. Tensors lie on the current device.

    tokens (T), hidden (D), a head's width (R), query heads (H), key and value heads (K),
    queries, keys and values side by side (E = (H + 2K) R), intermediate (F), vocabulary (V),
    columns of wider rows (N)
"""

import functools

import torch
import triton
from torch import Tensor

from workbench.model import triton_programs

# Sizes were found by trying powers of two around them on an H200, 4,096 rows of a 7B model: all of
# them keep 16-byte loads, several of them under way in each thread.
_ELEMENTS_PER_THREAD = 16  # of a row that one program holds
_TILE, _TILE_WARPS = 2048, 8  # of a row that is cut
_HEADS, _HEADS_WARPS = 8, 1
# The norm's backward keeps this many elements of rows under way per multiprocessor, times the rows
# that are loaded ahead; these lie in shared memory, of which small cards have 99 KiB.
_ROW_ELEMENTS_PER_PROCESSOR = 4096
_LOADED_AHEAD, _LOADED_AHEAD_BYTES = 3, 96 << 10
_ADDED_PARTS, _ADDED_COLUMNS = 64, 16
# Sums of columns: rows under way together and columns of a program; so many programs for each
# multiprocessor where there are few columns.
_COLUMN_ROWS, _COLUMN_WIDTH, _COLUMN_WARPS, _COLUMN_PROGRAMS = 32, 128, 4, 4
# A row of logits is read twice: few rows at a time, so that the second time they are in L2. Longer
# rows have more warps, whose registers hold half as many elements.
_LOGITS_PER_THREAD = 8
_LOGITS_WARPS, _LOGITS_DEEP = 8, 8
_MANY_LOGITS, _MANY_LOGITS_WARPS, _MANY_LOGITS_DEEP = 65536, 32, 4
# Rows of one id under way together: more for frequent ids, fewer for those that occur once.
_SUMMED_ROWS, _SUMMED_COLUMNS, _SUMMED_WARPS = 16, 64, 1

# ``enable_fp_fusion=False``: a product is rounded before it is added, as the twin's. Only the loss
# fuses them: it is short of arithmetic, not of memory.


class FusedKernels:
    """``Kernels`` on a CUDA device; see ``Kernels`` for what each does."""

    def norm(self, x_TD: Tensor, weight_D: Tensor, epsilon: float, *, out_TD: Tensor) -> None:
        """See ``Kernels.norm``."""
        _assert_contiguous(x_TD, weight_D, out_TD)
        rows, width = x_TD.shape
        if rows == 0:
            return
        block = triton.next_power_of_2(width)
        triton_programs.norm[(rows,)](
            x_TD,
            weight_D,
            out_TD,
            width,
            epsilon,
            BLOCK=block,
            num_warps=_row_warps(block),
            enable_fp_fusion=False,
        )

    def norm_backward(
        self,
        gradient_TD: Tensor,
        x_TD: Tensor,
        weight_D: Tensor,
        epsilon: float,
        *,
        onto_TD: Tensor,
        weight_sum_D: Tensor,
    ) -> None:
        """See ``Kernels.norm_backward``."""
        _assert_contiguous(gradient_TD, x_TD, weight_D, onto_TD, weight_sum_D)
        rows, width = x_TD.shape
        if rows == 0:
            return
        block = triton.next_power_of_2(width)
        per_processor = max(1, _ROW_ELEMENTS_PER_PROCESSOR // block)
        programs = min(rows, per_processor * _num_processors(x_TD.device))
        share = triton.cdiv(rows, programs)
        programs = triton.cdiv(rows, share)
        parts_PD = torch.empty((programs, width), dtype=torch.float32, device=x_TD.device)
        triton_programs.norm_backward[(programs,)](
            gradient_TD,
            x_TD,
            weight_D,
            onto_TD,
            parts_PD,
            rows,
            share,
            width,
            epsilon,
            BLOCK=block,
            STAGES=_stages(3 * block * x_TD.element_size()),
            num_warps=_row_warps(block),
            enable_fp_fusion=False,
        )
        _sum_parts(parts_PD, weight_sum_D)

    def rotate(
        self, qkv_TE: Tensor, cosine_TR: Tensor, sine_TR: Tensor, *, num_heads: int, head_dim: int
    ) -> None:
        """See ``Kernels.rotate``."""
        _assert_contiguous(qkv_TE, cosine_TR, sine_TR)
        rows, stride = qkv_TE.shape
        if rows == 0:
            return
        triton_programs.rotate[(rows, triton.cdiv(num_heads, _HEADS))](
            qkv_TE,
            cosine_TR,
            sine_TR,
            stride,
            num_heads,
            HALF=head_dim // 2,
            BLOCK=triton.next_power_of_2(head_dim // 2),
            HEADS=_HEADS,
            num_warps=_HEADS_WARPS,
            enable_fp_fusion=False,
        )

    def pack_rotated_back(
        self,
        dq_THR: Tensor,
        dk_TKR: Tensor,
        dv_TKR: Tensor,
        cosine_TR: Tensor,
        sine_TR: Tensor,
        *,
        out_TE: Tensor,
    ) -> None:
        """See ``Kernels.pack_rotated_back``."""
        _assert_contiguous(cosine_TR, sine_TR, out_TE)
        rows, num_queries, head_dim = dq_THR.shape
        if rows == 0:
            return
        num_keys = dk_TKR.shape[1]
        assert all(tensor.stride(2) == 1 for tensor in (dq_THR, dk_TKR, dv_TKR))
        programs = triton.cdiv(num_queries, _HEADS) + 2 * triton.cdiv(num_keys, _HEADS)
        triton_programs.pack_rotated_back[(rows, programs)](
            dq_THR,
            dk_TKR,
            dv_TKR,
            cosine_TR,
            sine_TR,
            out_TE,
            *dq_THR.stride()[:2],
            *dk_TKR.stride()[:2],
            *dv_TKR.stride()[:2],
            out_TE.shape[1],
            num_queries,
            num_keys,
            HALF=head_dim // 2,
            BLOCK=triton.next_power_of_2(head_dim // 2),
            HEADS=_HEADS,
            num_warps=_HEADS_WARPS,
            enable_fp_fusion=False,
        )

    def norm_heads(self, x_TN: Tensor, weight_R: Tensor, epsilon: float, *, out_TN: Tensor) -> None:
        """See ``Kernels.norm_heads``."""
        _assert_rows(x_TN, out_TN)
        rows, head_dim = x_TN.shape[0], weight_R.shape[0]
        if rows == 0:
            return
        num_heads, block = x_TN.shape[1] // head_dim, triton.next_power_of_2(head_dim)
        triton_programs.norm_heads[(rows, triton.cdiv(num_heads, _HEADS))](
            x_TN,
            weight_R,
            out_TN,
            x_TN.stride(0),
            out_TN.stride(0),
            num_heads,
            epsilon,
            WIDTH=head_dim,
            BLOCK=block,
            HEADS=_HEADS,
            num_warps=_row_warps(_HEADS * block),
            enable_fp_fusion=False,
        )

    def norm_heads_backward(
        self,
        gradient_TN: Tensor,
        x_TN: Tensor,
        weight_R: Tensor,
        epsilon: float,
        *,
        weight_sum_R: Tensor,
    ) -> None:
        """See ``Kernels.norm_heads_backward``."""
        _assert_rows(gradient_TN, x_TN)
        _assert_contiguous(weight_R, weight_sum_R)
        rows, head_dim = x_TN.shape[0], weight_R.shape[0]
        if rows == 0:
            return
        num_heads, block = x_TN.shape[1] // head_dim, triton.next_power_of_2(head_dim)
        per_processor = max(1, _ROW_ELEMENTS_PER_PROCESSOR // (_HEADS * block))
        programs = min(rows, per_processor * _num_processors(x_TN.device))
        share = triton.cdiv(rows, programs)
        programs = triton.cdiv(rows, share)
        head_blocks = triton.cdiv(num_heads, _HEADS)
        parts_PR = torch.empty(
            (programs * head_blocks, head_dim), dtype=torch.float32, device=x_TN.device
        )
        triton_programs.norm_heads_backward[(programs, head_blocks)](
            gradient_TN,
            x_TN,
            weight_R,
            parts_PR,
            rows,
            share,
            gradient_TN.stride(0),
            x_TN.stride(0),
            num_heads,
            epsilon,
            WIDTH=head_dim,
            BLOCK=block,
            HEADS=_HEADS,
            STAGES=_stages(2 * _HEADS * block * x_TN.element_size()),
            num_warps=_row_warps(_HEADS * block),
            enable_fp_fusion=False,
        )
        _sum_parts(parts_PR, weight_sum_R)

    def add_bias(self, x_TN: Tensor, bias_N: Tensor) -> None:
        """See ``Kernels.add_bias``."""
        _assert_rows(x_TN)
        _assert_contiguous(bias_N)
        rows, width = x_TN.shape
        if rows == 0:
            return
        tiles = triton.cdiv(width, _TILE)
        triton_programs.add_bias[(rows * tiles,)](
            x_TN,
            bias_N,
            x_TN.stride(0),
            width,
            tiles,
            BLOCK=_TILE,
            num_warps=_TILE_WARPS,
            enable_fp_fusion=False,
        )

    def add_columns(self, gradient_TN: Tensor, *, onto_N: Tensor) -> None:
        """See ``Kernels.add_columns``."""
        _assert_rows(gradient_TN)
        _assert_contiguous(onto_N)
        rows, width = gradient_TN.shape
        if rows == 0:
            return
        tiles = triton.cdiv(width, _COLUMN_WIDTH)
        wanted = _COLUMN_PROGRAMS * _num_processors(gradient_TN.device)
        programs = min(triton.cdiv(rows, _COLUMN_ROWS), triton.cdiv(wanted, tiles))
        share = triton.cdiv(triton.cdiv(rows, programs), _COLUMN_ROWS) * _COLUMN_ROWS
        programs = triton.cdiv(rows, share)
        parts_PN = torch.empty((programs, width), dtype=torch.float32, device=gradient_TN.device)
        triton_programs.sum_columns[(programs, tiles)](
            gradient_TN,
            parts_PN,
            rows,
            share,
            gradient_TN.stride(0),
            width,
            ROWS=_COLUMN_ROWS,
            COLUMNS=_COLUMN_WIDTH,
            num_warps=_COLUMN_WARPS,
            enable_fp_fusion=False,
        )
        _sum_parts(parts_PN, onto_N)

    def gated_product(self, gate_up_T2F: Tensor, *, out_TF: Tensor) -> None:
        """See ``Kernels.gated_product``."""
        _assert_contiguous(gate_up_T2F, out_TF)
        rows, width = out_TF.shape
        if rows == 0:
            return
        tiles = triton.cdiv(width, _TILE)
        triton_programs.gated_product[(rows * tiles,)](
            gate_up_T2F,
            out_TF,
            width,
            tiles,
            BLOCK=_TILE,
            num_warps=_TILE_WARPS,
            enable_fp_fusion=False,
        )

    def gated_product_backward(self, gate_up_T2F: Tensor, product_TF: Tensor) -> None:
        """See ``Kernels.gated_product_backward``."""
        _assert_contiguous(gate_up_T2F, product_TF)
        rows, width = product_TF.shape
        if rows == 0:
            return
        tiles = triton.cdiv(width, _TILE)
        triton_programs.gated_product_backward[(rows * tiles,)](
            gate_up_T2F,
            product_TF,
            width,
            tiles,
            BLOCK=_TILE,
            num_warps=_TILE_WARPS,
            enable_fp_fusion=False,
        )

    def cross_entropy(
        self,
        logits_CV: Tensor,
        labels_C: Tensor,
        scale: float | None,
        *,
        losses_C: Tensor,
        correct_C: Tensor | None = None,
    ) -> None:
        """See ``Kernels.cross_entropy``."""
        _assert_contiguous(logits_CV, labels_C, losses_C)
        rows, width = logits_CV.shape
        if rows == 0:
            return
        warps, deep = _LOGITS_WARPS, _LOGITS_DEEP
        if width > _MANY_LOGITS:
            warps, deep = _MANY_LOGITS_WARPS, _MANY_LOGITS_DEEP
        block = min(warps * 32 * _LOGITS_PER_THREAD, triton.next_power_of_2(width))
        triton_programs.cross_entropy[(rows,)](
            logits_CV,
            labels_C,
            losses_C,
            losses_C if correct_C is None else correct_C.view(torch.uint8),
            width,
            0.0 if scale is None else scale,
            WITH_GRADIENT=scale is not None,
            WITH_CORRECT=correct_C is not None,
            DEEP=deep,
            BLOCK=block,
            num_warps=max(1, block // (32 * _LOGITS_PER_THREAD)),
            enable_fp_fusion=True,
        )

    def add_rows(
        self,
        gradient_SD: Tensor,
        order_S: Tensor,
        begins_K1: Tensor,
        ids_K: Tensor,
        *,
        onto_VD: Tensor,
    ) -> None:
        """See ``Kernels.add_rows``."""
        _assert_contiguous(gradient_SD, order_S, begins_K1, ids_K, onto_VD)
        width = gradient_SD.shape[1]
        if ids_K.shape[0] == 0:
            return
        triton_programs.add_rows[(ids_K.shape[0], triton.cdiv(width, _SUMMED_COLUMNS))](
            gradient_SD,
            order_S,
            begins_K1,
            ids_K,
            onto_VD,
            width,
            ROWS=_SUMMED_ROWS,
            COLUMNS=_SUMMED_COLUMNS,
            num_warps=_SUMMED_WARPS,
            enable_fp_fusion=False,
        )


def _assert_contiguous(*tensors: Tensor) -> None:
    """Catch views that the kernels would read as if they were in one piece."""
    assert all(tensor.is_contiguous() for tensor in tensors), [t.stride() for t in tensors]


def _assert_rows(*tensors: Tensor) -> None:
    """Catch what is no rows of neighbouring elements; rows may have any stride."""
    assert all(tensor.stride(1) == 1 for tensor in tensors), [t.stride() for t in tensors]


def _sum_parts(parts_PN: Tensor, onto_N: Tensor) -> None:
    """Add parts up in one fixed order, and onto what is there."""
    num_parts, width = parts_PN.shape
    triton_programs.add_parts[(triton.cdiv(width, _ADDED_COLUMNS),)](
        parts_PN,
        onto_N,
        num_parts,
        width,
        PARTS=_ADDED_PARTS,
        COLUMNS=_ADDED_COLUMNS,
        num_warps=4,
        enable_fp_fusion=False,
    )


def _row_warps(block: int) -> int:
    """Give the warps of a program that holds a row of ``block`` elements."""
    return min(16, max(1, block // (32 * _ELEMENTS_PER_THREAD)))


def _stages(row_bytes: int) -> int:
    """Give the stages of a loop over rows that take so many bytes of shared memory each."""
    return 1 + min(_LOADED_AHEAD, _LOADED_AHEAD_BYTES // row_bytes)


@functools.cache
def _num_processors(device: torch.device) -> int:
    """Count a device's multiprocessors; on a CPU, for Triton's interpreter, there are two."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
