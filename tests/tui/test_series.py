"""Growing columns: bounds that lose no spike, averages that are computed once, later attempts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.tui.widgets.series import Series, Smoothed


def filled(values: list[float]) -> Series:
    series = Series()
    for step, value in enumerate(values, start=1):
        series.append(float(step), value)
    return series


def test_a_record_of_a_step_that_is_there_replaces_it_and_what_followed() -> None:
    series = filled([5.0, 4.0, 3.0])
    removed = series.append(2.0, 4.5)
    assert removed == 2
    assert series.x.tolist() == [1.0, 2.0]
    assert series.y.tolist() == [5.0, 4.5]


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_becomes_a_gap(missing: float | None) -> None:
    series = Series()
    series.append(1.0, 2.0)
    series.append(2.0, missing)
    assert np.isnan(series.y[1])
    assert series.last == (1.0, 2.0)


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=300, max_size=900),
    st.integers(20, 200),
)
def test_a_reduced_window_has_the_bounds_of_all_points(values: list[float], most: int) -> None:
    series = Series()
    series.extend(np.arange(len(values), dtype=np.float64), np.array(values))
    reduced = series.window(0.0, float(len(values)), most)
    everything = np.array(values)
    if np.isfinite(everything).any():
        assert np.nanmin(reduced.y) == np.nanmin(everything)
        assert np.nanmax(reduced.y) == np.nanmax(everything)
    assert (np.diff(reduced.x) >= 0).all()


def test_a_gap_survives_the_reduction() -> None:
    values = np.zeros(100_000)
    values[50_000] = np.nan
    series = Series()
    series.extend(np.arange(100_000.0), values)
    reduced = series.window(0, 100_000, 500)
    assert len(reduced.x) < 5_000
    assert np.isnan(reduced.y).sum() == 1


def test_the_pyramid_follows_when_points_are_added_and_cut() -> None:
    series = Series()
    series.extend(np.arange(5_000.0), np.zeros(5_000))
    series.window(0, 5_000, 100)  # builds the pyramid
    series.append(6_000.0, 9.0)
    assert series.window(0, 6_000, 100).y.max() == 9.0
    series.append(2_000.0, 1.0)
    assert len(series) == 2_001
    assert series.window(0, 6_000, 100).y.max() == 1.0


def test_a_window_has_one_neighbour_on_either_side() -> None:
    series = filled([1.0, 2.0, 3.0, 4.0, 5.0])
    assert series.window(2.5, 3.5, 100).x.tolist() == [2.0, 3.0, 4.0]


def test_the_average_begins_at_the_first_value_and_follows_the_rule() -> None:
    smoothed = Smoothed(0.5)
    for step, value in enumerate([4.0, 2.0, 2.0], start=1):
        smoothed.append(float(step), value)
    # (0.5·4) / 0.5, (0.25·4 + 0.5·2) / 0.75, (0.125·4 + 0.25·2 + 0.5·2) / 0.875
    assert smoothed.average.y.tolist() == pytest.approx([4.0, 2 / 0.75, 2 / 0.875])


def test_a_gap_does_not_disturb_the_average_behind_it() -> None:
    with_gap, without = Smoothed(0.9), Smoothed(0.9)
    for step, value in enumerate([3.0, None, 2.0, 1.0], start=1):
        with_gap.append(float(step), value)
        if value is not None:
            without.append(float(step), value)
    assert np.isnan(with_gap.average.y[1])
    assert with_gap.average.y[-1] == pytest.approx(without.average.y[-1])


def test_a_later_attempt_averages_as_if_the_earlier_had_ended_there() -> None:
    both, alone = Smoothed(0.9), Smoothed(0.9)
    for step in range(1, 30):
        both.append(float(step), 5.0 + step)
    for step in range(10, 40):
        both.append(float(step), 1.0)
    for step in range(1, 40):
        alone.append(float(step), 5.0 + step if step < 10 else 1.0)
    assert both.average.y.tolist() == pytest.approx(alone.average.y.tolist())


def test_the_trend_is_the_relative_change_of_the_average() -> None:
    smoothed = Smoothed(0.0)
    assert smoothed.trend() is None
    for step, value in enumerate([2.0, 1.5, 1.0], start=1):
        smoothed.append(float(step), value)
    assert smoothed.trend() == pytest.approx(-0.5)
