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
import triton.language as tl
from torch import Tensor

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

# Below any logit of a model, and finite also in base two: a lane that found nothing makes no NaN.
_LOWEST = tl.constexpr(-1e38)
_LOG2_E = tl.constexpr(1.4426950408889634)


class FusedKernels:
    """``Kernels`` on a CUDA device; see ``Kernels`` for what each does."""

    def norm(self, x_TD: Tensor, weight_D: Tensor, epsilon: float, *, out_TD: Tensor) -> None:
        """See ``Kernels.norm``."""
        _assert_contiguous(x_TD, weight_D, out_TD)
        rows, width = x_TD.shape
        if rows == 0:
            return
        block = triton.next_power_of_2(width)
        _norm[(rows,)](
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
        _norm_backward[(programs,)](
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
        _rotate[(rows, triton.cdiv(num_heads, _HEADS))](
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
        _pack_rotated_back[(rows, programs)](
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
        _norm_heads[(rows, triton.cdiv(num_heads, _HEADS))](
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
        _norm_heads_backward[(programs, head_blocks)](
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
        _add_bias[(rows * tiles,)](
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
        _sum_columns[(programs, tiles)](
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
        _gated_product[(rows * tiles,)](
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
        _gated_product_backward[(rows * tiles,)](
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
        _cross_entropy[(rows,)](
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
        _add_rows[(ids_K.shape[0], triton.cdiv(width, _SUMMED_COLUMNS))](
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
    _add_parts[(triton.cdiv(width, _ADDED_COLUMNS),)](
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


@triton.jit
def _rounded(value, like):
    """Round fp32 to the dtype of ``like``, as writing it to memory and reading it back would."""
    return value.to(like.dtype).to(tl.float32)


@triton.jit
def _norm(x, weight, out, width, epsilon, BLOCK: tl.constexpr):
    begin = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    read = tl.load(x + begin + columns, mask=inside, other=0.0)
    wide = read.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + begin + columns, _rounded(wide * inverse, read) * scale, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _norm_backward(
    gradient, x, weight, onto, parts, rows, share, width, epsilon,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes ``share`` rows in turn and adds up the weight's gradient over them."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program * share
    for row in tl.range(first, tl.minimum(first + share, rows), num_stages=STAGES):
        at = row * width + columns
        wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        before = tl.load(onto + at, mask=inside, other=0.0).to(tl.float32)
        # The two sums do not wait for each other.
        squares = tl.sum(wide * wide, 0) / width
        scaled = given * scale
        products = tl.sum(scaled * wide, 0) / width
        inverse = tl.rsqrt(squares + epsilon)
        along = products * inverse * inverse
        tl.store(onto + at, before + inverse * (scaled - wide * along), mask=inside)
        weight_sum += given * (wide * inverse)
    tl.store(parts + program * width + columns, weight_sum, mask=inside)


@triton.jit(do_not_specialize=["num_parts"])
def _add_parts(parts, weight_sum, num_parts, width, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((PARTS, COLUMNS), dtype=tl.float32)
    for begin in range(0, num_parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        total += tl.load(
            parts + part[:, None] * width + columns[None, :],
            mask=(part < num_parts)[:, None] & inside[None, :],
            other=0.0,
        )
    before = tl.load(weight_sum + columns, mask=inside, other=0.0)
    tl.store(weight_sum + columns, before + tl.sum(total, 0), mask=inside)


@triton.jit
def _norm_heads(
    x, weight, out, x_stride, out_stride, num_heads, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (columns < WIDTH)[None, :]
    at = heads[:, None] * WIDTH + columns[None, :]
    read = tl.load(x + token * x_stride + at, mask=inside, other=0.0)
    wide = read.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + epsilon)
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    normed = _rounded(wide * inverse[:, None], read) * scale[None, :]
    tl.store(out + token * out_stride + at, normed, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _norm_heads_backward(
    gradient, x, weight, parts, rows, share, gradient_stride, x_stride, num_heads, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes some heads of ``share`` rows in turn, and adds up the weight's gradient."""
    program = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (columns < WIDTH)[None, :]
    at = heads[:, None] * WIDTH + columns[None, :]
    scale = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((HEADS, BLOCK), dtype=tl.float32)
    first = program * share
    for row in tl.range(first, tl.minimum(first + share, rows), num_stages=STAGES):
        wide = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        to = gradient + row * gradient_stride + at
        given = tl.load(to, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(wide * wide, 1) / WIDTH
        scaled = given * scale[None, :]
        products = tl.sum(scaled * wide, 1) / WIDTH
        inverse = tl.rsqrt(squares + epsilon)
        along = products * inverse * inverse
        tl.store(to, inverse[:, None] * (scaled - wide * along[:, None]), mask=inside)
        weight_sum += given * (wide * inverse[:, None])
    part = program * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts + part * WIDTH + columns, tl.sum(weight_sum, 0), mask=columns < WIDTH)


@triton.jit
def _add_bias(x, bias, stride, width, tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = x + row * stride + columns
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, value + added, mask=inside)


@triton.jit(do_not_specialize=["rows", "share"])
def _sum_columns(
    gradient, parts, rows, share, stride, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program adds up some columns of ``share`` rows, several rows under way at a time."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    first = program * share
    last = tl.minimum(first + share, rows)
    for begin in range(first, last, ROWS):
        row = begin + tl.arange(0, ROWS)
        total += tl.load(
            gradient + row[:, None] * stride + columns[None, :],
            mask=(row < last)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
    tl.store(parts + program * width + columns, tl.sum(total, 0), mask=inside)


@triton.jit
def _rotate(
    qkv, cosine, sine, stride, num_heads,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    turns = token * (2 * HALF) + pairs
    cosines = tl.load(cosine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
    sines = tl.load(sine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
    at = qkv + token * stride + heads[:, None] * (2 * HALF) + pairs[None, :]
    inside = (heads < num_heads)[:, None] & (pairs < HALF)[None, :]
    read = tl.load(at, mask=inside, other=0.0)
    first = read.to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    # Each product is rounded, as separate operations would.
    turned_first = _rounded(first * cosines, read) - _rounded(second * sines, read)
    turned_second = _rounded(second * cosines, read) + _rounded(first * sines, read)
    tl.store(at, turned_first, mask=inside)
    tl.store(at + HALF, turned_second, mask=inside)


@triton.jit
def _turn_back(
    turned, token_stride, head_stride, token, block, num_heads, out, cosine, sine,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Turn a block of heads of one token back, or only copy them, to ``out``."""
    heads = block * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    inside = (heads < num_heads)[:, None] & (pairs < HALF)[None, :]
    at = turned + token * token_stride + heads.to(tl.int64)[:, None] * head_stride + pairs[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    to = out + heads[:, None] * (2 * HALF) + pairs[None, :]
    if TURN:
        turns = token * (2 * HALF) + pairs
        cosines = tl.load(cosine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        sines = tl.load(sine + turns, mask=pairs < HALF, other=0.0).to(tl.float32)[None, :]
        tl.store(to, first * cosines + second * sines, mask=inside)
        tl.store(to + HALF, second * cosines - first * sines, mask=inside)
    else:
        tl.store(to, first, mask=inside)
        tl.store(to + HALF, second, mask=inside)


@triton.jit
def _pack_rotated_back(
    dq, dk, dv, cosine, sine, out,
    q_token, q_head, k_token, k_head, v_token, v_head, stride, num_queries, num_keys,
    HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The blocks of heads of one token: those of queries, then of keys, then of values."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks = tl.cdiv(num_queries, HEADS)
    key_blocks = tl.cdiv(num_keys, HEADS)
    row = out + token * stride
    keys = row + num_queries * (2 * HALF)
    values = keys + num_keys * (2 * HALF)
    if block < query_blocks:
        _turn_back(
            dq, q_token, q_head, token, block, num_queries, row, cosine, sine,
            HALF, BLOCK, HEADS, True,
        )  # fmt: skip
    elif block < query_blocks + key_blocks:
        _turn_back(
            dk, k_token, k_head, token, block - query_blocks, num_keys, keys, cosine, sine,
            HALF, BLOCK, HEADS, True,
        )  # fmt: skip
    else:
        _turn_back(
            dv, v_token, v_head, token, block - query_blocks - key_blocks, num_keys, values,
            cosine, sine, HALF, BLOCK, HEADS, False,
        )  # fmt: skip


@triton.jit
def _sigmoid(value):
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit
def _product(gate, up, like):
    """silu(gate) * up, with silu rounded as if it were a result of its own."""
    return _rounded(gate * _sigmoid(gate), like) * up


@triton.jit
def _gated_product(gate_up, out, width, tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * (2 * width) + columns
    gate = tl.load(at, mask=inside, other=0.0)
    up = tl.load(at + width, mask=inside, other=0.0)
    product = _product(gate.to(tl.float32), up.to(tl.float32), gate)
    tl.store(out + row * width + columns, product, mask=inside)


@triton.jit
def _gated_product_backward(gate_up, product, width, tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = gate_up + row * (2 * width) + columns
    read = tl.load(at, mask=inside, other=0.0)
    gate = read.to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    to = product + row * width + columns
    gradient = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(gate)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(at, gradient * up * slope, mask=inside)
    tl.store(at + width, gradient * (gate * sigmoid), mask=inside)
    tl.store(to, _product(gate, up, read), mask=inside)


@triton.jit
def _cross_entropy(
    logits, labels, losses, correct, width, scale,
    WITH_GRADIENT: tl.constexpr, WITH_CORRECT: tl.constexpr,
    DEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes one row: each lane keeps its own maximum and sum, joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    start = logits + row * width
    wanted = tl.load(start + label).to(tl.float32)
    lanes = tl.arange(0, BLOCK)
    places = tl.arange(0, DEEP)[:, None] * BLOCK + lanes[None, :]
    largest = tl.full((BLOCK,), _LOWEST, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, width, DEEP * BLOCK):
        columns = begin + places
        value = tl.load(start + columns, mask=columns < width, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, 0))
        terms = tl.sum(tl.exp2((value - larger[None, :]) * _LOG2_E), 0)
        total = total * tl.exp2((largest - larger) * _LOG2_E) + terms
        largest = larger
    maximum = tl.max(largest, 0)
    total_terms = tl.sum(total * tl.exp2((largest - maximum) * _LOG2_E), 0)
    tl.store(losses + row, tl.log(total_terms) + maximum - wanted)
    if WITH_CORRECT:
        # The label is the first of the largest: none before it is as large.
        is_largest = wanted == maximum
        num_earlier = tl.zeros((BLOCK,), dtype=tl.int32)
        for begin in range(0, tl.where(is_largest, label, 0), BLOCK):
            columns = begin + lanes
            value = tl.load(start + columns, mask=columns < label, other=float("-inf"))
            num_earlier += (value.to(tl.float32) == maximum).to(tl.int32)
        is_first = is_largest & (tl.sum(num_earlier, 0) == 0)
        tl.store(correct + row, is_first.to(tl.uint8))
    if WITH_GRADIENT:
        shift = -tl.log2(total_terms)
        wide_lanes = tl.arange(0, 2 * BLOCK)
        for begin in range(0, width, 2 * BLOCK):
            columns = begin + wide_lanes
            inside = columns < width
            value = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
            slope = tl.exp2((value - maximum) * _LOG2_E + shift) * scale
            if (label >= begin) & (label < begin + 2 * BLOCK):
                slope = tl.where(columns == label, slope - scale, slope)
            # Nobody reads it soon: the rows that wait for their second pass stay in L2 instead.
            tl.store(start + columns, slope, mask=inside, cache_modifier=".cs")


@triton.jit
def _add_rows(gradient, order, begins, ids, onto, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program adds up some columns of the rows of one id, several rows under way at a time."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    begin = tl.load(begins + tl.program_id(0))
    end = tl.load(begins + tl.program_id(0) + 1)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(begin, end, ROWS):
        place = first + tl.arange(0, ROWS)
        row = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
        sums += tl.load(
            gradient + row[:, None] * width + columns[None, :],
            mask=(place < end)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
    row = tl.load(ids + tl.program_id(0)).to(tl.int64)
    to = onto + row * width + columns
    before = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, before + tl.sum(sums, 0), mask=inside)
