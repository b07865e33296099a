"""Goldens of the raster: what a few lines look like, to the dot."""

import numpy as np
import pytest

from workbench.tui.widgets.raster import NOBODY, Raster, View, rasterize, to_text
from workbench.tui.widgets.series import Points, Series

NAN = float("nan")


def points(*values: float) -> Points:
    return Points(np.arange(len(values), dtype=np.float64), np.array(values, dtype=np.float64))


def draw(*values: float, width: int = 8, height: int = 3, **view: object) -> list[str]:
    finite = [value for value in values if np.isfinite(value)]
    seen = View(
        **{
            "x_low": 0.0,
            "x_high": float(len(values) - 1),
            "y_low": min(finite, default=0.0),
            "y_high": max(finite, default=1.0),
            **view,
        }
    )
    return to_text(rasterize([points(*values)], seen, width, height))


def test_a_line_is_one_dot_thin_from_corner_to_corner() -> None:
    assert draw(0, 11, width=12, height=4) == [
        "         ⣀⠔⠊",
        "      ⣀⠔⠊   ",
        "   ⡠⠔⠉      ",
        "⡠⠔⠉         ",
    ]


def test_a_zigzag_looks_like_one() -> None:
    assert draw(0, 1, 5, 2, 2, 2, 7, width=12, height=4) == [
        "           ⡜",
        "   ⢠⠣⡀    ⡰⠁",
        "  ⢠⠃ ⠑⣄⣀⣀⣠⠃ ",
        "⡠⠔⠃         ",
    ]


def test_a_spike_of_one_point_reaches_its_top_in_a_hundred_thousand() -> None:
    values = np.zeros(100_000)
    values[61_803] = 1.0
    raster = rasterize(
        [Points(np.arange(100_000.0), values)], View(0, 99_999, 0, 1), width=40, height=5
    )
    top = np.flatnonzero(raster.bits[0])
    assert len(top) == 1
    assert top[0] == round(61_803 / 99_999 * 79) // 2


def test_nothing_is_joined_across_a_value_that_is_not_finite() -> None:
    drawn = draw(0, 0, 0, NAN, NAN, NAN, 0, 0, 0, width=9, height=1, y_low=0.0, y_high=1.0)
    assert drawn == ["⣀⣀⡀   ⢀⣀⣀"]


def test_a_gap_inside_one_column_still_parts_the_line() -> None:
    # Two stretches that share a column are drawn in it without being joined.
    x = np.array([0.0, 1.0, 1.01, 1.02, 2.0])
    y = np.array([0.0, 0.0, NAN, 1.0, 1.0])
    raster = rasterize([Points(x, y)], View(0, 2, 0, 1), width=4, height=3)
    middle_row = raster.bits[1]
    assert not middle_row.any()


def test_one_point_is_one_dot() -> None:
    raster = rasterize([points(3.0)], View(0, 0, 3, 3), width=5, height=3)
    assert sum(int(bits).bit_count() for bits in raster.bits.ravel()) == 1


def test_a_constant_lies_in_the_middle() -> None:
    assert draw(2, 2, 2, 2, width=4, height=3) == ["    ", "⠤⠤⠤⠤", "    "]


def test_only_nan_draws_nothing() -> None:
    assert draw(NAN, NAN, NAN, width=4, height=2) == ["    ", "    "]


def test_no_points_draw_nothing() -> None:
    raster = rasterize([Points(np.empty(0), np.empty(0))], View(0, 1, 0, 1), width=3, height=2)
    assert not raster.bits.any()
    assert (raster.owner == NOBODY).all()


def test_a_single_cell_holds_a_line() -> None:
    assert draw(0, 1, width=1, height=1) == ["⡜"]


def test_log_scale_puts_equal_ratios_at_equal_distances() -> None:
    raster = rasterize([points(1, 10, 100)], View(0, 2, 1, 100, log_y=True), width=9, height=9)
    straight = rasterize([points(0, 1, 2)], View(0, 2, 0, 2), width=9, height=9)
    assert (raster.bits == straight.bits).all()


def test_values_that_a_log_scale_cannot_show_leave_a_gap() -> None:
    raster = rasterize(
        [points(1, 1, -1, -1, 1, 1)], View(0, 5, 1, 10, log_y=True), width=12, height=2
    )
    assert raster.bits[1, 0]
    assert raster.bits[1, -1]
    assert not raster.bits[:, 5:7].any()


def test_points_outside_the_scale_are_marked_where_they_left() -> None:
    raster = rasterize([points(0, 0, 9, 0, -9, 0)], View(0, 5, 0, 1), width=6, height=2)
    assert raster.above.any()
    assert raster.below.any()
    assert int(np.flatnonzero(raster.above)[0]) < int(np.flatnonzero(raster.below)[0])


def test_the_later_line_takes_whole_cells() -> None:
    flat, rising = points(0, 0, 0, 0), points(0, 1, 2, 3)
    raster: Raster = rasterize([flat, rising], View(0, 3, 0, 3), width=8, height=4)
    assert raster.owner[3, 0] == 1
    assert raster.owner[3, -1] == 0
    assert raster.owner[0, -1] == 1
    alone = rasterize([rising], View(0, 3, 0, 3), width=8, height=4)
    owned = raster.owner == 1
    assert owned.any()
    assert (raster.bits[owned] == alone.bits[owned]).all()


def test_a_view_that_begins_between_two_points_is_entered_at_its_edge() -> None:
    raster = rasterize([points(0, 0, 0, 0, 0)], View(1.5, 2.5, -1, 1), width=10, height=3)
    assert (raster.bits.any(axis=0)).all()


def test_ten_million_points_are_drawn_from_the_pyramid() -> None:
    series = Series()
    num_points = 10_000_000
    values = np.zeros(num_points)
    values[7_654_321] = 5.0
    series.extend(np.arange(num_points, dtype=np.float64), values)
    seen = series.window(0, num_points, max_points=2000)
    assert len(seen.x) < 20_000
    raster = rasterize([seen], View(0, num_points, 0, 5), width=100, height=10)
    top = np.flatnonzero(raster.bits[0])
    assert top.tolist() == [76]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 5), (200, 60)])
def test_every_size_is_drawn(width: int, height: int) -> None:
    raster = rasterize([points(*range(50))], View(0, 49, 0, 49), width=width, height=height)
    assert raster.bits.shape == (height, width)
    assert raster.bits.any()
