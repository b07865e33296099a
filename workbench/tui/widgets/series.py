"""Columns that grow: one curve as float64 x and y, with a min/max pyramid for drawing.

Knows nothing of charts or screens. Invariants: x ascends strictly; a record of a step that is
already there replaces it and all that followed (a later attempt went back to that step); what
``window`` returns holds the smallest and the largest value of every stretch it stands for, so a
spike of one point survives any reduction.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

FACTOR = 16  # samples of one level in a block of the next


class Points(NamedTuple):
    """A curve, or what stands for it: x ascending (n,), y (n,) with NaN for gaps, float64."""

    x: Column
    y: Column


class _Growing:
    """A float64 column with room to grow."""

    def __init__(self) -> None:
        self._room: Column = np.empty(256, dtype=np.float64)
        self.length = 0

    @property
    def values(self) -> Column:
        return self._room[: self.length]

    def append(self, value: float) -> None:
        if self.length == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self.length] = value
        self.length += 1

    def extend(self, values: Column) -> None:
        needed = self.length + len(values)
        if needed > len(self._room):
            grown = np.empty(max(needed, 2 * len(self._room)), dtype=np.float64)
            grown[: self.length] = self.values
            self._room = grown
        self._room[self.length : needed] = values
        self.length = needed


@dataclass
class _Level:
    """Blocks of FACTOR entries of the level below: bounds, and whether a gap lies inside."""

    low: _Growing = field(default_factory=_Growing)
    high: _Growing = field(default_factory=_Growing)
    gap: _Growing = field(default_factory=_Growing)  # 1.0 where a sample is not finite

    def cut(self, length: int) -> None:
        for column in (self.low, self.high, self.gap):
            column.length = min(column.length, length)


class Series:
    """One curve that grows at its end.

    Example: appending (1, 5.0), (2, 4.0), (3, nan), (2, 4.5) leaves (1, 5.0), (2, 4.5).
    """

    def __init__(self) -> None:
        self._x, self._y = _Growing(), _Growing()
        self._levels: list[_Level] = []
        self.version = 0

    def __len__(self) -> int:
        return self._x.length

    @property
    def x(self) -> Column:
        """(n,) float64, ascending."""
        return self._x.values

    @property
    def y(self) -> Column:
        """(n,) float64, NaN where the value was not finite."""
        return self._y.values

    def append(self, x: float, y: float | None) -> int:
        """Add a point; give how many points had to go because they lie at or behind ``x``.

        Args:
            x: the step (or whatever the axis counts).
            y: the value; None or a value that is not finite leaves a gap.
        """
        removed = 0
        if len(self) and x <= self.x[-1]:
            keep = int(np.searchsorted(self.x, x, side="left"))
            removed = len(self) - keep
            self.cut(keep)
        self._x.append(x)
        self._y.append(y if y is not None and np.isfinite(y) else np.nan)
        self.version += 1
        return removed

    def extend(self, x: Column, y: Column) -> None:
        """Add many points that lie behind the last one; x (n,) strictly ascending, y (n,)."""
        assert len(x) == len(y), (len(x), len(y))
        if not len(x):
            return
        assert not len(self) or x[0] > self.x[-1], (x[0], self.x[-1])
        self._x.extend(np.asarray(x, dtype=np.float64))
        clean = np.array(y, dtype=np.float64)
        clean[~np.isfinite(clean)] = np.nan
        self._y.extend(clean)
        self.version += 1

    def cut(self, length: int) -> None:
        """Forget all points from index ``length`` on."""
        self._x.length = self._y.length = length
        for level in self._levels:
            length //= FACTOR
            level.cut(length)
        self.version += 1

    def window(self, low: float, high: float, max_points: int) -> Points:
        """Give the points from ``low`` to ``high`` and one neighbour on either side.

        Where more than ``max_points`` samples lie there, blocks of 16, 256, … samples are each
        given by their smallest and largest value (and a NaN if a gap lies inside), so the result
        is bounded and no spike is lost.
        """
        first = max(int(np.searchsorted(self.x, low, side="left")) - 1, 0)
        last = min(int(np.searchsorted(self.x, high, side="right")) + 1, len(self))
        if last - first <= max(max_points, 4 * FACTOR):
            return Points(self.x[first:last], self.y[first:last])
        level, size = 0, 1
        while (last - first) // size > max_points:
            level, size = level + 1, size * FACTOR
        self._grow_levels(level)
        return self._reduced(first, last, level)

    def _reduced(self, first: int, last: int, level: int) -> Points:
        """Give samples ``first`` to ``last`` in blocks of a level; the ends in smaller blocks."""
        if level == 0:
            return Points(self.x[first:last], self.y[first:last])
        size, blocks = FACTOR**level, self._levels[level - 1]
        begin, end = -(-first // size), min(last // size, blocks.low.length)
        if end <= begin:
            return self._reduced(first, last, level - 1)
        head = self._reduced(first, begin * size, level - 1)
        tail = self._reduced(end * size, last, level - 1)
        low, high, gap = (
            column.values[begin:end] for column in (blocks.low, blocks.high, blocks.gap)
        )
        at = np.arange(begin, end) * size
        # Three samples stand for a block: at its first x, in its middle, and its gap behind them.
        x = np.stack([self.x[at], self.x[at + size // 2], self.x[at + size - 1]], axis=1)
        y = np.stack([low, high, np.where(gap > 0, np.nan, low)], axis=1)
        return Points(
            np.concatenate([head.x, x.ravel(), tail.x]), np.concatenate([head.y, y.ravel(), tail.y])
        )

    def bounds(self, low: float, high: float) -> tuple[float, float] | None:
        """Give the smallest and largest finite value from ``low`` to ``high``, or None."""
        points = self.window(low, high, 4096)
        inside = (points.x >= low) & (points.x <= high) & np.isfinite(points.y)
        if not inside.any():
            return None
        visible = points.y[inside]
        return float(visible.min()), float(visible.max())

    @property
    def last(self) -> tuple[float, float] | None:
        """The newest point whose value is finite, or None."""
        finite = np.flatnonzero(np.isfinite(self.y[-4096:]))
        if not len(finite):
            return None
        index = max(len(self) - 4096, 0) + int(finite[-1])
        return float(self.x[index]), float(self.y[index])

    def _grow_levels(self, count: int) -> None:
        """Bring the lowest ``count`` levels up to date: only blocks that are complete."""
        low, high, gap = self.y, self.y, np.isnan(self.y).astype(np.float64)
        for index in range(count):
            if index == len(self._levels):
                self._levels.append(_Level())
            level = self._levels[index]
            begin, end = level.low.length, len(low) // FACTOR
            if end > begin:
                part = slice(begin * FACTOR, end * FACTOR)
                # fmin and fmax pass over NaN and stay silent where a block holds nothing else.
                level.low.extend(np.fmin.reduce(low[part].reshape(-1, FACTOR), axis=1))
                level.high.extend(np.fmax.reduce(high[part].reshape(-1, FACTOR), axis=1))
                level.gap.extend(gap[part].reshape(-1, FACTOR).max(axis=1))
            low, high, gap = level.low.values, level.high.values, level.gap.values


class Smoothed:
    """A series and its exponential moving average over all its points, computed once.

    The average is unbiased at its beginning: after one point it equals that point. A gap leaves a
    gap and does not disturb what follows.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.raw, self.average = Series(), Series()
        self._sums, self._weights = _Growing(), _Growing()

    def append(self, x: float, y: float | None) -> None:
        """Add a point to both curves."""
        removed = self.raw.append(x, y)
        if removed:
            keep = self._sums.length - removed
            self._sums.length = self._weights.length = keep
        total = self._sums.values[-1] if self._sums.length else 0.0
        weight = self._weights.values[-1] if self._weights.length else 0.0
        value = self.raw.y[-1]
        if np.isfinite(value):
            total = self.decay * total + (1 - self.decay) * value
            weight = self.decay * weight + (1 - self.decay)
        self._sums.append(total)
        self._weights.append(weight)
        self.average.append(x, total / weight if np.isfinite(value) else None)

    def trend(self, num_points: int = 200) -> float | None:
        """Give the relative change of the average over the last ``num_points`` points.

        None while fewer than three finite points exist. −0.02 means: fell by two hundredths.
        """
        recent = self.average.y[-num_points:]
        recent = recent[np.isfinite(recent)]
        if len(recent) < 3:
            return None
        scale = max(abs(float(recent[0])), 1e-12)
        return (float(recent[-1]) - float(recent[0])) / scale
