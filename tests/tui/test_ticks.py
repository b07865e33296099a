"""Ticks on 1, 2, 5 and labels that tell them apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.tui.widgets.ticks import labels, log_ticks, ticks
from workbench.tui.words import short


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 412, 5, ["0", "100", "200", "300", "400"]),
        (1.2, 2.15, 3, ["1.5", "2"]),
        (0, 22.8, 3, ["0", "10", "20"]),
        (3e-6, 5e-6, 3, ["3e-6", "4e-6", "5e-6"]),
        (11_999, 12_001, 4, ["11.999k", "12k", "12.001k"]),
        (-1, 1, 3, ["−1", "0", "1"]),
        (7, 7, 3, ["7"]),
    ],
)
def test_ticks_of_known_axes(low: float, high: float, most: int, expected: list[str]) -> None:
    assert labels(ticks(low, high, most)) == expected


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 12))
def test_ticks_lie_inside_and_no_label_is_there_twice(low: float, size: float, most: int) -> None:
    high = low + size
    found = ticks(low, high, most)
    assert len(found) <= most
    # No nearer than floats of this size can be told apart.
    near = max(size * 1e-6, 1e-15 * max(abs(low), abs(high)))
    assert all(low - near <= each <= high + near for each in found)
    written = labels(found)
    assert len(set(written)) == len(written)


def test_nonsense_has_no_ticks() -> None:
    assert ticks(0, float("nan"), 5) == []
    assert ticks(5, 1, 5) == []
    assert ticks(0, 1, 0) == []


def test_log_ticks_are_1_2_5_until_they_are_too_many() -> None:
    assert log_ticks(1, 10, 4) == pytest.approx([1, 2, 5, 10])
    assert log_ticks(1, 1e6, 7) == pytest.approx([10.0**power for power in range(7)])
    assert log_ticks(0, 10, 4) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (412, "412"),
        (1247, "1.25k"),
        (0.812, "0.812"),
        (3.5e-6, "3.5e-6"),
        (999.96, "1k"),
        (0.001, "0.001"),
        (0, "0"),
        (-2.5e9, "−2.5G"),
        (float("inf"), "–"),
    ],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert short(value) == expected
