"""The chart widget: axes at every size, gaps, clipped points, the tail, and when it is redrawn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from textual.app import App, ComposeResult
from textual.geometry import Size
from textual.pilot import Pilot

from workbench.tui.drawn import Happening
from workbench.tui.themes import DEFAULTS, WB_DARK
from workbench.tui.widgets.chart import Chart, Curve, lay_out
from workbench.tui.widgets.series import Series


class ChartApp(App[None]):
    """Nothing but a chart."""

    def __init__(self, *, from_zero: bool) -> None:
        super().__init__()
        self._from_zero = from_zero
        self.register_theme(WB_DARK)
        self.theme = "wb-dark"

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return DEFAULTS

    def compose(self) -> ComposeResult:
        yield Chart("loss", from_zero=self._from_zero)


@asynccontextmanager
async def charting(
    width: int, height: int, *, from_zero: bool = False
) -> AsyncIterator[tuple[Pilot[None], Chart]]:
    app = ChartApp(from_zero=from_zero)
    async with app.run_test(size=(width, height)) as pilot:
        yield pilot, app.query_one(Chart)


def rows_of(chart: Chart) -> list[str]:
    return [chart.render_line(y).text for y in range(chart.size.height)]


def ramp(num_points: int = 101) -> Series:
    series = Series()
    series.extend(np.arange(float(num_points)), np.linspace(0.0, 10.0, num_points))
    return series


async def test_axes_have_round_numbers_and_the_ends_of_the_run() -> None:
    async with charting(50, 14) as (_, chart):
        chart.show([Curve(ramp(), "chart-1")], [Happening(50.0, "S"), Happening(75.0, "E")])
        rows = rows_of(chart)
        assert [row.partition("┤")[0].strip() for row in rows if "┤" in row] == ["10", "5", "0"]
        axis, numbers = rows[-2], rows[-1]
        assert axis.strip().startswith("└")
        assert axis.index("S") < axis.index("E")
        assert numbers.split()[0] == "0"
        assert numbers.rstrip().endswith("100")
        assert all(len(row) == 50 for row in rows)


@pytest.mark.parametrize("size", [(1, 1), (5, 2), (12, 3), (36, 8), (250, 70)])
async def test_every_size_is_filled_exactly(size: tuple[int, int]) -> None:
    async with charting(*size) as (_, chart):
        chart.show([Curve(ramp(), "chart-1")])
        rows = rows_of(chart)
        assert len(rows) == size[1]
        assert {len(row) for row in rows} == {size[0]}
        assert any(0x2800 < ord(character) <= 0x28FF for row in rows for character in row)


def test_small_charts_give_their_room_to_the_curve() -> None:
    assert lay_out(Size(10, 10), 4).num_axis_rows == 0
    assert lay_out(Size(60, 2), 4).num_axis_rows == 0
    assert lay_out(Size(60, 8), 4).num_axis_rows == 1
    assert lay_out(Size(60, 10), 4).num_axis_rows == 2
    layout = lay_out(Size(60, 10), 4)
    assert layout.gutter + layout.width == 60
    assert layout.height + layout.num_axis_rows == 10


async def test_an_empty_chart_says_why() -> None:
    async with charting(40, 8) as (_, chart):
        chart.show([], empty_text="No metrics yet: loading for 14 s")
        assert "No metrics yet: loading for 14 s" in "\n".join(rows_of(chart))


async def test_a_far_outlier_is_marked_and_does_not_squash_the_rest() -> None:
    series = Series()
    values = 1.0 + 0.1 * np.sin(np.arange(1000.0) / 20)
    values[500] = 1e6
    series.extend(np.arange(1000.0), values)
    async with charting(60, 12) as (_, chart):
        chart.show([Curve(series, "chart-1")])
        rows = rows_of(chart)
        assert "^" in rows[0]
        curve = "\n".join(row.partition("│")[2] or row.partition("┤")[2] for row in rows[:-2])
        assert sum(character not in " ^\n" for character in curve) > 100


async def test_the_newest_value_is_always_inside_the_scale() -> None:
    series = Series()
    values = np.ones(1000)
    values[-1] = 50.0
    series.extend(np.arange(1000.0), values)
    async with charting(60, 12) as (_, chart):
        chart.show([Curve(series, "chart-1")])
        assert "^" not in rows_of(chart)[0]


async def test_a_gap_has_its_mark_on_the_axis() -> None:
    series = Series()
    values = np.ones(100)
    values[40:60] = np.nan
    series.extend(np.arange(100.0), values)
    async with charting(60, 12) as (_, chart):
        chart.show([Curve(series, "chart-1")])
        rows = rows_of(chart)
        mark = rows[-2].index("!")
        drawn = [row for row in rows[:-2] if any(ord(each) > 0x2800 for each in row)]
        assert drawn
        assert all(row[mark + 2 : mark + 8].strip() == "" for row in drawn)


async def test_the_tail_follows_new_points_and_the_whole_run_comes_back() -> None:
    series = ramp()
    async with charting(60, 12) as (pilot, chart):
        chart.show([Curve(series, "chart-1")])
        chart.do_shorter_tail()
        assert chart.view_in_words == "LIVE TAIL 50 steps"
        series.append(101.0, 10.1)
        chart.show([Curve(series, "chart-1")])
        assert rows_of(chart)[-1].split()[0] == "51"
        assert rows_of(chart)[-1].split()[-1] == "101"
        chart.do_longer_tail()
        assert chart.view_in_words == "LIVE TAIL 100 steps"
        chart.do_longer_tail()
        assert chart.view_in_words == "all steps"
        await pilot.pause()


async def test_it_is_redrawn_only_when_what_is_seen_has_changed() -> None:
    series = ramp()
    async with charting(60, 12) as (pilot, chart):
        chart.show([Curve(series, "chart-1")])
        await pilot.pause()
        rows_of(chart)
        before = chart.num_drawn
        chart.show([Curve(series, "chart-1")])
        rows_of(chart)
        assert chart.num_drawn == before
        series.append(200.0, 1.0)
        chart.show([Curve(series, "chart-1")])
        rows_of(chart)
        assert chart.num_drawn == before + 1


async def test_memory_begins_at_zero_and_reaches_its_limit() -> None:
    series = Series()
    series.extend(np.arange(10.0), np.full(10, 16.0))
    async with charting(60, 12, from_zero=True) as (_, chart):
        chart.show([Curve(series, "chart-1")], limit=22.8)
        ticks = [row.partition("┤")[0].strip() for row in rows_of(chart) if "┤" in row]
        assert ticks[-1] == "0"
        assert float(ticks[0]) >= 20
