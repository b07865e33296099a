"""Axis ticks on 1, 2, 5 and their labels; pure, no numpy.

Invariant: no label appears twice in one list, so two ticks never claim to be the same number.
"""

import math
from collections.abc import Sequence

from workbench.tui.words import PREFIXES, short


def ticks(low: float, high: float, max_count: int) -> list[float]:
    """Give at most ``max_count`` round numbers from ``low`` to ``high``, ascending.

    The distance is 1, 2 or 5 times a power of ten: ticks(0, 412, 5) is [0, 100, 200, 300, 400].
    Equal bounds give that one number.
    """
    if max_count < 1 or not (math.isfinite(low) and math.isfinite(high)) or high < low:
        return []
    if high == low:
        return [low]
    distance = _distance((high - low) / max_count)
    while True:
        first, last = math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9)
        if last - first + 1 <= max_count:
            # Beyond the resolution of a float, neighbours are the same number.
            return sorted({index * distance for index in range(first, last + 1)})
        distance = _distance(distance * 1.01)


def log_ticks(low: float, high: float, max_count: int) -> list[float]:
    """Give at most ``max_count`` of the numbers 1, 2, 5 × 10ⁿ from ``low`` to ``high``."""
    if low <= 0 or high < low:
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1,)):
        found = [
            step * 10.0**power
            for power in range(first, last + 1)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(found) <= max_count:
            return found
    return found[:: -(-len(found) // max_count)] if max_count > 0 else []


def _distance(at_least: float) -> float:
    power = 10.0 ** math.floor(math.log10(at_least))
    for step in (1, 2, 5, 10):
        if step * power >= at_least * (1 - 1e-9):
            return step * power
    raise AssertionError(at_least)


def labels(values: Sequence[float]) -> list[str]:
    """Give a short label for each value, with as many digits as it takes to tell them apart."""
    for digits in range(2, 8):
        found = [short(value, digits) for value in values]
        if len(set(found)) == len(found) and all(
            _close(label, value, values) for label, value in zip(found, values, strict=True)
        ):
            return found
    return [repr(value) for value in values]


def _close(label: str, value: float, values: Sequence[float]) -> bool:
    """Say whether a label names its value to a hundredth of the axis."""
    extent = max(values) - min(values)
    return abs(_value(label) - value) <= 0.01 * extent or extent == 0


def _value(label: str) -> float:
    for factor, prefix in PREFIXES:
        if label.endswith(prefix):
            return float(label[: -len(prefix)].replace("−", "-")) * factor
    return float(label.replace("−", "-"))
