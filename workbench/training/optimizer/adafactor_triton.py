"""Adafactor in Triton: four passes per matrix, one launch per vector, nothing read back.

    1 sums        gradient            -> sums of squares of rows, of columns and of each program
    2 statistics  those sums          -> new row and column statistics, whether anything may move
    3 lengths     gradient            -> sums of squares of the update
    4 move        gradient, weight    -> weight: update, decay and one rounding

The rule is that of ``adafactor.update``, its test. Traffic is three reads of the gradient, one read
and one write of the weight. A program owns a band of rows x a stripe of columns; where a number is
the sum over all programs, each program that needs it adds their parts itself, in one order, so no
atomics are needed and results repeat bit for bit.

Invariant: scratch is allocated once, for the largest shape, and never grows.

    rows (R), columns (C), bands (B), stripes (S)
"""

# Arguments of device functions are what Triton makes of them: pointers, blocks and scalars.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench.training.optimizer.adafactor import (
    ADDED_TO_SQUARE,
    CLIP_THRESHOLD,
    Statistics,
    beta2,
)
from workbench.training.optimizer.rounding import NoiseKey
from workbench.training.optimizer.rounding_triton import (
    chosen_rounding,
    is_healthy,
    load_weight,
    signed,
    store_weight,
    total,
)

# Found on an H200 with 4,096 x 14,336 and 1,024 x 4,096. Elements a program holds at a time, and
# in the last pass; columns of a stripe; programs per launch: enough of all to keep the memory busy,
# few enough that adding up their parts costs nothing. More warps wait longer for each other when
# they add up rows.
_TILE, _TILE_OF_MOVE, _STRIPE, _PROGRAMS, _WARPS = 8192, 4096, 512, 2048, 4
_STAGES, _STAGES_OF_MOVE = 1, 1
_REDUCED = 256  # rows or columns whose statistics one program updates
_PART_BYTES = 15 << 20  # of the sums per band and per stripe, each

_ADDED = tl.constexpr(ADDED_TO_SQUARE)
_THRESHOLD = tl.constexpr(CLIP_THRESHOLD)


@dataclass(frozen=True)
class Tiles:
    """How a matrix of R x C is divided among programs.

    Attributes:
        block_rows: rows that a program holds at a time; a power of two.
        block_columns: columns of a stripe; a power of two.
        band_rows: rows of a band; a multiple of ``block_rows``.
        bands: B, of the matrix.
        stripes: S, of the matrix.
    """

    block_rows: int
    block_columns: int
    band_rows: int
    bands: int
    stripes: int


def choose_tiles(rows: int, columns: int) -> Tiles:
    """Divide a matrix so that the sums per band and per stripe stay within their scratch.

    4,096 x 14,336 gives 28 stripes of 512 columns and 64 bands of 64 rows.
    """
    block_columns = min(_STRIPE, triton.next_power_of_2(columns))
    while triton.cdiv(columns, block_columns) * rows * 4 > _PART_BYTES and block_columns < _TILE:
        block_columns *= 2
    block_rows = min(_TILE // block_columns, triton.next_power_of_2(rows))
    stripes = triton.cdiv(columns, block_columns)
    bands = max(1, min(_PROGRAMS // stripes, _PART_BYTES // (4 * columns)))
    band_rows = triton.cdiv(triton.cdiv(rows, bands), block_rows) * block_rows
    return Tiles(block_rows, block_columns, band_rows, triton.cdiv(rows, band_rows), stripes)


@triton.jit
def _lerp(new, old, kept):
    # As torch.lerp does it: exact at both ends.
    near_new = new + kept * (old - new)
    near_old = old - (old - new) * (1.0 - kept)
    return tl.where(kept < 0.5, near_new, near_old)


@triton.jit
def _sums(
    gradient, row_parts_SR, column_parts_BC, square_parts,
    rows, columns, band_rows, stripes,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    band, stripe = program // stripes, program % stripes
    column = stripe * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    lane = tl.arange(0, BLOCK_ROWS)
    first_row = band * band_rows
    last_row = tl.minimum(first_row + band_rows, rows)
    of_columns = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for begin in tl.range(first_row, last_row, BLOCK_ROWS, num_stages=STAGES):
        row = begin + lane
        inside = (row < last_row)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        square = values * values
        of_columns += square
        tl.store(row_parts_SR + stripe * rows + row, tl.sum(square, 1), mask=row < last_row)
    sums = tl.sum(of_columns, 0)
    tl.store(column_parts_BC + band * columns + column, sums, mask=column < columns)
    tl.store(square_parts + program, tl.sum(sums, 0))


@triton.jit(do_not_specialize=["kept"])
def _statistics(
    row_parts_SR, column_parts_BC, square_parts, row_statistic, column_statistic,
    row_total_parts, healthy_out, square_out, scale, ok, kept,
    rows, columns, stripes, bands, num_square_parts, row_programs,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    square = total(square_parts, num_square_parts, 1024)
    healthy = is_healthy(square, ok)
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale)
        factor = factor * factor
    program = tl.program_id(0)
    if program == 0:
        tl.store(square_out, square)
        tl.store(healthy_out, healthy.to(tl.int32))
    if program < row_programs:
        row = program * BLOCK + tl.arange(0, BLOCK)
        sums = tl.zeros((BLOCK,), dtype=tl.float32)
        for stripe in range(stripes):
            sums += tl.load(row_parts_SR + stripe * rows + row, mask=row < rows, other=0.0)
        old = tl.load(row_statistic + row, mask=row < rows, other=0.0)
        new = _lerp(sums * factor + columns * _ADDED, old, kept)
        new = tl.where(healthy, new, old)
        tl.store(row_statistic + row, new, mask=row < rows)
        tl.store(row_total_parts + program, tl.sum(tl.where(row < rows, new, 0.0), 0))
    else:
        WIDTH: tl.constexpr = BLOCK // DEPTH
        column = (program - row_programs) * WIDTH + tl.arange(0, WIDTH)
        lane = tl.arange(0, DEPTH)
        of_bands = tl.zeros((DEPTH, WIDTH), dtype=tl.float32)
        for begin in range(0, bands, DEPTH):
            band = begin + lane
            inside = (band < bands)[:, None] & (column < columns)[None, :]
            at = column_parts_BC + (band[:, None] * columns + column[None, :])
            of_bands += tl.load(at, mask=inside, other=0.0)
        # Names of its own: triton gives a name one shape, whichever branch is taken.
        before = tl.load(column_statistic + column, mask=column < columns, other=0.0)
        after = _lerp(tl.sum(of_bands, 0) * factor + rows * _ADDED, before, kept)
        after = tl.where(healthy, after, before)
        tl.store(column_statistic + column, after, mask=column < columns)


@triton.jit
def _lengths(
    gradient, row_statistic, column_statistic, row_total_parts, healthy, length_parts,
    rows, columns, band_rows, stripes, row_programs,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    if tl.load(healthy) == 0:
        return
    program = tl.program_id(0)
    band, stripe = program // stripes, program % stripes
    column = stripe * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    lane = tl.arange(0, BLOCK_ROWS)
    first_row = band * band_rows
    last_row = tl.minimum(first_row + band_rows, rows)
    root = tl.sqrt(total(row_total_parts, row_programs, 1024))
    column_factor = tl.rsqrt(tl.load(column_statistic + column, mask=column < columns, other=1.0))
    found = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for begin in tl.range(first_row, last_row, BLOCK_ROWS, num_stages=STAGES):
        row = begin + lane
        inside = (row < last_row)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        row_factor = root * tl.rsqrt(tl.load(row_statistic + row, mask=row < last_row, other=1.0))
        change = values * row_factor[:, None] * column_factor[None, :]
        found += change * change
    tl.store(length_parts + program, tl.sum(tl.sum(found, 1), 0))


@triton.jit(do_not_specialize=["first", "second", "learning_rate", "decay"])
def _move(
    gradient, weight, low, row_statistic, column_statistic, row_total_parts, healthy,
    length_parts, scale, learning_rate, decay, first, second,
    rows, columns, band_rows, stripes, row_programs, num_length_parts,
    ROUNDING: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    if tl.load(healthy) == 0:
        return
    program = tl.program_id(0)
    band, stripe = program // stripes, program % stripes
    column = stripe * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    lane = tl.arange(0, BLOCK_ROWS)
    first_row = band * band_rows
    last_row = tl.minimum(first_row + band_rows, rows)
    root = tl.sqrt(total(row_total_parts, row_programs, 1024))
    mean_square = total(length_parts, num_length_parts, 1024) / rows / columns
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale)
    bound = tl.maximum(tl.sqrt(mean_square) * tl.abs(factor) / _THRESHOLD, 1.0)
    root = root * (learning_rate / bound * factor)
    column_factor = tl.rsqrt(tl.load(column_statistic + column, mask=column < columns, other=1.0))
    for begin in tl.range(first_row, last_row, BLOCK_ROWS, num_stages=STAGES):
        row = begin + lane
        inside = (row < last_row)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        old = load_weight(weight, low, at, inside, ROUNDING)
        row_factor = root * tl.rsqrt(tl.load(row_statistic + row, mask=row < last_row, other=1.0))
        change = values * row_factor[:, None] * column_factor[None, :]
        # The decay joins the small change first: a factor of 1 - decay is 1 in fp32 below 3e-8.
        new = old - (change + old * decay)
        store_weight(weight, low, at, inside, new, first, second, ROUNDING)


@triton.jit(do_not_specialize=["first", "second", "learning_rate", "decay", "kept"])
def _move_vector(
    gradient, weight, low, statistic, square_out, scale, ok,
    kept, learning_rate, decay, first, second, size,
    ROUNDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        values = tl.load(gradient + begin + lane, mask=begin + lane < size, other=0.0)
        values = values.to(tl.float32)
        found += values * values
    square = tl.sum(found, 0)
    tl.store(square_out, square)
    if not is_healthy(square, ok):
        return
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale)
    lengths = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, size, BLOCK):
        at = begin + lane
        inside = at < size
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        old = tl.load(statistic + at, mask=inside, other=1.0)
        full = _lerp(values * values * (factor * factor) + _ADDED, old, kept)
        tl.store(statistic + at, full, mask=inside)
        change = values * factor * tl.rsqrt(full)
        lengths += tl.where(inside, change * change, 0.0)
    # The statistics are read again below, by other threads than those that wrote them.
    tl.debug_barrier()
    bound = tl.maximum(tl.sqrt(tl.sum(lengths, 0) / size) / _THRESHOLD, 1.0)
    length = learning_rate / bound * factor
    for begin in range(0, size, BLOCK):
        at = begin + lane
        inside = at < size
        values = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        full = tl.load(statistic + at, mask=inside, other=1.0)
        old = load_weight(weight, low, at, inside, ROUNDING)
        new = old - (values * tl.rsqrt(full) * length + old * decay)
        store_weight(weight, low, at, inside, new, first, second, ROUNDING)


class FusedUpdate:
    """Does what ``adafactor.update`` does, on a GPU, in scratch of its own.

    Args:
        shapes: of the parameters it will move.
        device: of all of them.
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]], device: torch.device) -> None:
        row_parts, column_parts, programs, row_programs = 1, 1, 1, 1
        for rows, columns in (shape for shape in shapes if len(shape) == 2):
            tiles = choose_tiles(rows, columns)
            row_parts = max(row_parts, tiles.stripes * rows)
            column_parts = max(column_parts, tiles.bands * columns)
            programs = max(programs, tiles.bands * tiles.stripes)
            row_programs = max(row_programs, triton.cdiv(rows, _REDUCED))
        self._device = device
        self._row_parts = torch.empty(row_parts, dtype=torch.float32, device=device)
        self._column_parts = torch.empty(column_parts, dtype=torch.float32, device=device)
        self._square_parts = torch.empty(programs, dtype=torch.float32, device=device)
        self._length_parts = torch.empty(programs, dtype=torch.float32, device=device)
        self._row_total_parts = torch.empty(row_programs, dtype=torch.float32, device=device)
        self._healthy = torch.zeros(1, dtype=torch.int32, device=device)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all scratch together."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __call__(
        self,
        weight: Tensor,
        gradient: Tensor,
        statistics: Statistics,
        *,
        step: int,
        learning_rate: float,
        weight_decay: float,
        noise: NoiseKey | None,
        low: Tensor | None = None,
        scale: Tensor | None = None,
        ok: Tensor | None = None,
    ) -> Tensor:
        """Move one tensor by one step; arguments and result as of ``adafactor.update``."""
        assert weight.is_contiguous(), weight.stride()
        assert gradient.is_contiguous(), gradient.stride()
        assert weight.shape == gradient.shape, (weight.shape, gradient.shape)
        rounding = chosen_rounding(weight, noise, low)
        first = 0 if noise is None else signed(noise.first)
        second = 0 if noise is None else signed(noise.second)
        square = torch.empty((), dtype=torch.float32, device=self._device)
        ok = None if ok is None else ok.view(torch.uint8)
        decay = learning_rate * weight_decay
        kept = beta2(step)
        if weight.dim() == 1:
            size = weight.shape[0]
            _move_vector[(1,)](
                gradient, weight, low, statistics.full, square, scale, ok,
                kept, learning_rate, decay, first, second, size,
                ROUNDING=rounding, BLOCK=min(4096, triton.next_power_of_2(size)),
                num_warps=8,
            )  # fmt: skip
            return square
        rows, columns = weight.shape
        tiles = choose_tiles(rows, columns)
        programs = tiles.bands * tiles.stripes
        row_programs = triton.cdiv(rows, _REDUCED)
        depth = min(32, triton.next_power_of_2(tiles.bands))
        column_programs = triton.cdiv(columns, _REDUCED // depth)
        blocks = {
            "BLOCK_ROWS": tiles.block_rows,
            "BLOCK_COLUMNS": tiles.block_columns,
            "STAGES": _STAGES,
        }
        _sums[(programs,)](
            gradient, self._row_parts, self._column_parts, self._square_parts,
            rows, columns, tiles.band_rows, tiles.stripes, **blocks, num_warps=_WARPS,
        )  # fmt: skip
        _statistics[(row_programs + column_programs,)](
            self._row_parts, self._column_parts, self._square_parts,
            statistics.row, statistics.column, self._row_total_parts, self._healthy, square,
            scale, ok, kept, rows, columns, tiles.stripes, tiles.bands, programs, row_programs,
            BLOCK=_REDUCED, DEPTH=depth,
        )  # fmt: skip
        _lengths[(programs,)](
            gradient, statistics.row, statistics.column, self._row_total_parts, self._healthy,
            self._length_parts, rows, columns, tiles.band_rows, tiles.stripes, row_programs,
            **blocks, num_warps=_WARPS,
        )  # fmt: skip
        _move[(programs,)](
            gradient, weight, low, statistics.row, statistics.column, self._row_total_parts,
            self._healthy, self._length_parts, scale, learning_rate, decay, first, second,
            rows, columns, tiles.band_rows, tiles.stripes, row_programs, programs,
            ROUNDING=rounding, BLOCK_ROWS=max(1, tiles.block_rows * _TILE_OF_MOVE // _TILE),
            BLOCK_COLUMNS=tiles.block_columns, STAGES=_STAGES_OF_MOVE, num_warps=_WARPS,
        )  # fmt: skip
        return square
