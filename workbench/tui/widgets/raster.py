"""Points to dots in character cells: pure numpy, no Textual, no colours.

A cell holds 2 × 4 dots in the bit order of Unicode braille. Each dot column shows everything from
the smallest to the largest value that falls into it; its first and last sample are joined to the
neighbouring columns; nothing is joined across a value that is not finite. Of several lines the
later one takes whole cells from the earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.tui.widgets.series import Column, Points

# Dot (row, column) of a cell → bit of U+2800.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
NOBODY = -1


@dataclass(frozen=True)
class View:
    """The part of the plane that is seen; bounds are included, y in data units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log_y: bool = False


@dataclass(frozen=True)
class Raster:
    """What to draw, top row first.

    Attributes:
        bits: (height, width) uint8, braille bits of each cell.
        owner: (height, width) int8, index of the line a cell belongs to, −1 for none.
        above: (width,) bool, a point of the last line lies over the view in this column.
        below: (width,) bool, likewise under it.
    """

    bits: NDArray[np.uint8]
    owner: NDArray[np.int8]
    above: NDArray[np.bool_]
    below: NDArray[np.bool_]


def rasterize(lines: Sequence[Points], view: View, width: int, height: int) -> Raster:
    """Draw ``lines`` in painter's order into ``width`` × ``height`` cells.

    Args:
        lines: x (n,) ascending, y (n,) with NaN for gaps; a single point draws one dot.
        view: what the cells show; where both y bounds are equal, the line lies in the middle.
        width: cells, at least 1.
        height: cells, at least 1.
    """
    bits = np.zeros((height, width), dtype=np.uint8)
    owner = np.full((height, width), NOBODY, dtype=np.int8)
    above = below = np.zeros(width, dtype=np.bool_)
    for index, points in enumerate(lines):
        dots, above, below = _dots(points, view, 2 * width, 4 * height)
        cells = dots.reshape(height, 4, width, 2)
        line_bits = (cells * _BITS[None, :, None, :]).sum(axis=(1, 3)).astype(np.uint8)
        drawn = line_bits > 0
        bits[drawn] = line_bits[drawn]
        owner[drawn] = index
    return Raster(bits, owner, above, below)


def _dots(
    points: Points, view: View, num_columns: int, num_rows: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Give the dots of one line (num_rows, num_columns), and the cell columns it leaves."""
    outside = np.zeros(num_columns // 2, dtype=np.bool_)
    empty = np.zeros((num_rows, num_columns), dtype=np.bool_)
    x, y = _inside(points, view)
    if not len(x) or not np.isfinite(y).any():
        return empty, outside, outside
    column = _column(x, view, num_columns)
    row = _row(y, view, num_rows)
    begin, low, high = _spans(column, row)
    above, below = outside.copy(), outside.copy()
    real = (begin >= 0) & (begin < num_columns)
    above[begin[real & (low < 0)] // 2] = True
    below[begin[real & (high > num_rows - 1)] // 2] = True
    visible = real & (high >= 0) & (low <= num_rows - 1)
    begin = begin[visible]
    low, high = np.clip(low[visible], 0, None), np.clip(high[visible], None, num_rows - 1)
    # +1 where a span begins and −1 behind its end: the running sum is positive inside.
    edges = np.zeros((num_rows + 1, num_columns), dtype=np.int32)
    np.add.at(edges, (low, begin), 1)
    np.add.at(edges, (high + 1, begin), -1)
    return np.cumsum(edges, axis=0)[:-1] > 0, above, below


def _inside(points: Points, view: View) -> Points:
    """Cut a line at the view's left and right edge, on the scale it is drawn in."""
    x, y = points
    if view.log_y:
        y = np.log10(y, out=np.full(len(y), np.nan), where=y > 0)
    first = int(np.searchsorted(x, view.x_low, side="left"))
    last = int(np.searchsorted(x, view.x_high, side="right"))
    parts_x, parts_y = [x[first:last]], [y[first:last]]
    if 0 < first < len(x):
        parts_x.insert(0, np.array([view.x_low]))
        parts_y.insert(0, np.array([_between(x, y, first, view.x_low)]))
    if 0 < last < len(x):
        parts_x.append(np.array([view.x_high]))
        parts_y.append(np.array([_between(x, y, last, view.x_high)]))
    return Points(np.concatenate(parts_x), np.concatenate(parts_y))


def _between(x: Column, y: Column, index: int, at: float) -> float:
    """Give y at ``at`` on the straight line from sample index − 1 to sample index."""
    share = (at - x[index - 1]) / (x[index] - x[index - 1])
    return float(y[index - 1] + share * (y[index] - y[index - 1]))


def _column(x: Column, view: View, num_columns: int) -> NDArray[np.int64]:
    extent = view.x_high - view.x_low
    if extent <= 0:
        return np.full(len(x), num_columns // 2, dtype=np.int64)
    scaled = (x - view.x_low) / extent * (num_columns - 1)
    return np.rint(scaled).astype(np.int64)


def _row(y: Column, view: View, num_rows: int) -> Column:
    """Give the dot row of each value as float, 0 at the top, NaN kept."""
    low, high = view.y_low, view.y_high
    if view.log_y:
        low, high = float(np.log10(low)), float(np.log10(high))
    if high <= low:
        return np.where(np.isfinite(y), (num_rows - 1) / 2, np.nan)
    # Far outside is as good as just outside, and stays an int.
    return np.clip((high - y) / (high - low) * (num_rows - 1), -4.0 * num_rows, 5.0 * num_rows)


def _spans(
    column: NDArray[np.int64], row: Column
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give (column, first row, last row) of every vertical run of dots."""
    finite = np.isfinite(row)
    stretch = np.cumsum(~finite)[finite]
    column, row = column[finite], row[finite]
    new = np.flatnonzero((np.diff(column) != 0) | (np.diff(stretch) != 0)) + 1
    starts = np.concatenate([[0], new])
    ends = np.concatenate([new, [len(row)]]) - 1
    group_column, group_stretch = column[starts], stretch[starts]
    low = np.rint(np.minimum.reduceat(row, starts)).astype(np.int64)
    high = np.rint(np.maximum.reduceat(row, starts)).astype(np.int64)
    # Joins: from the last sample of a group to the first of the next, unless a gap lies between.
    joined = np.flatnonzero(group_stretch[:-1] == group_stretch[1:])
    from_column, to_column = group_column[joined], group_column[joined + 1]
    from_row, to_row = row[ends[joined]], row[starts[joined + 1]]
    num_columns = to_column - from_column
    which = np.repeat(np.arange(len(joined)), num_columns + 1)
    first = np.cumsum(num_columns + 1) - (num_columns + 1)
    offset = np.arange(len(which)) - first[which]
    length = num_columns[which]
    slope = (to_row - from_row)[which]
    begin = from_row[which] + slope * np.clip((offset - 0.5) / length, 0.0, 1.0)
    end = from_row[which] + slope * np.clip((offset + 0.5) / length, 0.0, 1.0)
    # Half-open, so that neighbouring columns share no dot and a slanted line stays one dot thin.
    join_low = np.ceil(np.minimum(begin, end) - 1e-9).astype(np.int64)
    join_high = np.ceil(np.maximum(begin, end) - 1e-9).astype(np.int64) - 1
    is_flat = join_high < join_low
    middle = np.rint((begin + end) / 2).astype(np.int64)
    join_low[is_flat] = join_high[is_flat] = middle[is_flat]
    return (
        np.concatenate([group_column, from_column[which] + offset]),
        np.concatenate([low, join_low]),
        np.concatenate([high, join_high]),
    )


def to_text(raster: Raster) -> list[str]:
    """Give the rows as braille text, blank where nothing is drawn."""
    return [
        "".join(chr(0x2800 + int(bits)) if bits else " " for bits in row) for row in raster.bits
    ]


def to_ascii(raster: Raster) -> list[str]:
    """Give the rows with ``*`` for cells that are at least half full and ``.`` for the others."""
    counts = np.bitwise_count(raster.bits)
    marks = np.where(counts == 0, " ", np.where(counts >= 3, "*", "."))
    return ["".join(row) for row in marks]
