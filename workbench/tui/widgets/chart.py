"""A live chart: curves as braille over the whole run or its newest steps, with ticks and events.

Numpy comes with the first curve that is drawn, not with this module. A chart out of sight holds no
raster. Invariants: the view is told in words; a value that is not finite leaves a gap; a point
outside the scale leaves a mark where it left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui import keys
from workbench.tui.drawn import Happening
from workbench.tui.widgets.ticks import labels, ticks
from workbench.tui.words import short

if TYPE_CHECKING:
    from workbench.tui.widgets.raster import Raster, View
    from workbench.tui.widgets.series import Points, Series

SMALLEST_TAIL = 10
_POINTS_PER_COLUMN = 8


@dataclass(frozen=True)
class Curve:
    """A series and the theme's colour for it; ``is_scale`` curves decide the bounds of y."""

    series: "Series"
    colour: str
    is_scale: bool = True


@dataclass(frozen=True)
class Layout:
    """Where the parts of a chart of a given size lie, in cells."""

    gutter: int
    width: int
    height: int
    num_axis_rows: int


def lay_out(size: Size, label_width: int) -> Layout:
    """Divide a chart: the plot gets everything when there is no room for axes.

    Two axis rows (line with events, labels) from ten rows up, one below, none under three rows or
    under twelve columns.
    """
    if size.width < label_width + 8 or size.height < 3:
        return Layout(0, max(size.width, 0), max(size.height, 0), 0)
    num_axis_rows = 2 if size.height >= 10 else 1
    gutter = label_width + 1
    return Layout(gutter, size.width - gutter, size.height - num_axis_rows, num_axis_rows)


class Chart(Widget, can_focus=True):
    """Curves over steps."""

    KEY_SCOPES = ("chart", "pane")
    BINDINGS = keys.bindings("chart", "pane")
    DEFAULT_CSS = """
    Chart { height: 1fr; }
    """

    @dataclass
    class ViewChanged(Message):
        """Another part of the run is seen."""

        chart: "Chart"

    def __init__(
        self,
        name: str,
        *,
        from_zero: bool = False,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.chart_name = name
        self.tail: float | None = None
        self.empty_text = "No metrics yet."
        self._from_zero = from_zero
        self._curves: tuple[Curve, ...] = ()
        self._happenings: tuple[Happening, ...] = ()
        self._limit: float | None = None
        self._strips: list[Strip] = []
        self._drawn: object = None
        self.num_drawn = 0

    # ---- data --------------------------------------------------------------------------

    def show(
        self,
        curves: Sequence[Curve],
        happenings: Sequence[Happening] = (),
        *,
        limit: float | None = None,
        empty_text: str = "No metrics yet.",
    ) -> None:
        """Draw these curves; nothing is redrawn when nothing visible has changed.

        Args:
            curves: in painter's order, the most important last.
            happenings: events for the axis.
            limit: a value that y always reaches, such as a memory budget.
            empty_text: what is said while no curve has a point.
        """
        self._curves, self._happenings = tuple(curves), tuple(happenings)
        self._limit = limit
        self.empty_text = empty_text
        if self._state() != self._drawn:
            self.refresh()

    def _state(self) -> object:
        return (
            self.size,
            self.tail,
            self._limit,
            self.app.theme,
            self.empty_text,
            len(self._happenings),
            tuple((id(curve.series), curve.series.version, curve.colour) for curve in self._curves),
        )

    @property
    def view_in_words(self) -> str:
        """Tell what part of the run is seen."""
        return "all steps" if self.tail is None else f"LIVE TAIL {self.tail:.0f} steps"

    def do_shorter_tail(self) -> None:
        """Show only the newest half of what is seen."""
        extent = self._extent()
        if extent > SMALLEST_TAIL:
            self.tail = max(float(round(extent / 2)), SMALLEST_TAIL)
            self.refresh()
            self.post_message(self.ViewChanged(self))

    def do_longer_tail(self) -> None:
        """Show twice as many steps."""
        if self.tail is not None:
            whole = self._whole_extent()
            self.tail = None if self.tail * 2 >= whole else self.tail * 2
            self.refresh()
            self.post_message(self.ViewChanged(self))

    def do_whole_run(self) -> None:
        """Show all steps."""
        self.tail = None
        self.refresh()
        self.post_message(self.ViewChanged(self))

    def _whole_extent(self) -> float:
        ends = [
            (curve.series.x[0], curve.series.x[-1]) for curve in self._curves if len(curve.series)
        ]
        return float(max(end[1] for end in ends) - min(end[0] for end in ends)) if ends else 0.0

    def _extent(self) -> float:
        return self.tail if self.tail is not None else self._whole_extent()

    # ---- drawing -----------------------------------------------------------------------

    def on_hide(self) -> None:
        """Hold no raster while out of sight."""
        self._strips, self._drawn = [], None

    def notify_style_update(self) -> None:
        """Draw anew in other colours."""
        self._drawn = None
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """Draw one row, all rows anew where something has changed."""
        state = self._state()
        if state != self._drawn:
            self._strips = self._draw()
            self._drawn = state
            self.num_drawn += 1
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width, self._style(None))

    def _style(self, colour: str | None, *, bold: bool = False) -> Style:
        base = self.visual_style.rich_style
        if colour is None:
            return base
        parsed = Color.parse(self.app.theme_variables[colour])
        return base + Style(color=parsed.rich_color, bold=bold)

    def _draw(self) -> list[Strip]:
        size = self.size
        if not any(len(curve.series) for curve in self._curves):
            return self._draw_empty(size)
        from workbench.tui.widgets.raster import View, rasterize

        x_low, x_high = self._x_bounds()
        points = [
            curve.series.window(x_low, x_high, _POINTS_PER_COLUMN * max(size.width, 1))
            for curve in self._curves
        ]
        y_low, y_high = self._y_bounds(points, x_low, x_high)
        # Labels first: their width decides how much is left for the plot.
        num_rows = max(size.height - 2, 1)
        at = ticks(y_low, y_high, max(min(num_rows // 3 + 1, 7), 2))
        names = labels(at)
        layout = lay_out(size, max((len(name) for name in names), default=0))
        if layout.width < 1 or layout.height < 1:
            return []
        view = View(x_low, x_high, y_low, y_high)
        raster = rasterize(points, view, layout.width, layout.height)
        strips = self._draw_plot(raster, layout, view, dict(zip(names, at, strict=True)))
        if layout.num_axis_rows:
            strips.extend(self._draw_axis(points, layout, view))
        return strips

    def _x_bounds(self) -> tuple[float, float]:
        filled = [curve.series for curve in self._curves if len(curve.series)]
        low = float(min(series.x[0] for series in filled))
        high = float(max(series.x[-1] for series in filled))
        if self.tail is not None:
            low = max(low, high - self.tail)
        return low, high

    def _y_bounds(
        self, points: "Sequence[Points]", x_low: float, x_high: float
    ) -> tuple[float, float]:
        """Give a scale that outliers do not squash: most of the window, and its last value."""
        import numpy as np

        seen = [
            each.y[(each.x >= x_low) & (each.x <= x_high) & np.isfinite(each.y)]
            for each, curve in zip(points, self._curves, strict=True)
            if curve.is_scale
        ]
        values = np.concatenate(seen) if seen else np.empty(0)
        if not len(values):
            return 0.0, 1.0
        low, high = float(values.min()), float(values.max())
        if len(values) >= 100:
            lasts = [float(each[-1]) for each in seen if len(each)]
            # The first hundredth of a run is its steep beginning, not an outlier: only what lies
            # far over the bulk is cut, and marked.
            p1, p99 = (float(value) for value in np.percentile(values, [1, 99]))
            margin = 0.5 * (p99 - p1)
            low = min(max(low, p1 - margin), *lasts)
            high = max(min(high, p99 + margin), *lasts)
        if self._from_zero:
            low = min(low, 0.0)
        if self._limit is not None:
            high = max(high, self._limit)
        if high <= low:
            pad = abs(low) * 0.05 or 0.5
            return low - pad, high + pad
        pad = 0.03 * (high - low)
        return (low if self._from_zero and low == 0.0 else low - pad), high + pad

    def _draw_empty(self, size: Size) -> list[Strip]:
        text = Content(self.empty_text)
        lines = text.wrap(max(size.width - 4, 1))[: size.height]
        top = max((size.height - len(lines)) // 2, 0)
        blank = Strip.blank(size.width, self._style(None))
        strips = [blank] * size.height
        for index, line in enumerate(lines):
            left = max((size.width - line.cell_length) // 2, 0)
            strips[top + index] = Strip(
                [Segment(" " * left, self._style(None)), Segment(line.plain, self._style("axis"))]
            ).adjust_cell_length(size.width, self._style(None))
        return strips

    def _draw_plot(
        self, raster: "Raster", layout: Layout, view: "View", at: dict[str, float]
    ) -> list[Strip]:
        names = (
            {_row_of(value, view, layout.height): name for name, value in at.items()}
            if layout.gutter
            else {}
        )
        styles = [self._style(curve.colour) for curve in self._curves]
        blank, axis = self._style(None), self._style("axis")
        mark = self._style("note", bold=True)
        strips = []
        for row in range(layout.height):
            segments = []
            if layout.gutter:
                segments.append(Segment(names.get(row, "").rjust(layout.gutter - 1), axis))
                segments.append(Segment("┤" if row in names else "│", axis))
            text, style = "", blank
            for column in range(layout.width):
                bits, owner = int(raster.bits[row, column]), int(raster.owner[row, column])
                if row == 0 and raster.above[column]:
                    character, wanted = "^", mark
                elif row == layout.height - 1 and raster.below[column]:
                    character, wanted = "v", mark
                elif bits:
                    character, wanted = chr(0x2800 + bits), styles[owner]
                else:
                    character, wanted = " ", blank
                if wanted is not style and text:
                    segments.append(Segment(text, style))
                    text = ""
                style = wanted
                text += character
            segments.append(Segment(text, style))
            strips.append(Strip(segments, self.size.width))
        return strips

    def _draw_axis(self, points: "Sequence[Points]", layout: Layout, view: "View") -> list[Strip]:
        import numpy as np

        axis, note = self._style("axis"), self._style("note", bold=True)
        gaps = [each.x[~np.isfinite(each.y)] for each in points[-1:]]
        first_gap = next((float(gap[0]) for gap in gaps if len(gap)), None)
        marks = {
            column: happening.letter
            for happening in self._happenings
            if (column := _column_of(happening.x, view, layout.width)) is not None
        }
        if (
            first_gap is not None
            and (column := _column_of(first_gap, view, layout.width)) is not None
        ):
            marks[column] = "!"
        numbers = _x_labels(view, layout.width)
        corner = Segment("└".rjust(layout.gutter), axis)
        if layout.num_axis_rows == 1:
            line = list(numbers)
            for column, letter in marks.items():
                if letter == "!" and line[column] == " ":
                    line[column] = letter
            return [Strip([corner, Segment("".join(line), axis)], self.size.width)]
        segments = [corner]
        for column in range(layout.width):
            mark = marks.get(column)
            segments.append(Segment(mark or "─", note if mark else axis))
        return [
            Strip(segments, self.size.width).simplify(),
            Strip([Segment(" " * layout.gutter + numbers, axis)], self.size.width),
        ]


def _row_of(value: float, view: "View", height: int) -> int:
    if view.y_high <= view.y_low:
        return height // 2
    dot = (view.y_high - value) / (view.y_high - view.y_low) * (4 * height - 1)
    return min(max(round(dot) // 4, 0), height - 1)


def _column_of(x: float, view: "View", width: int) -> int | None:
    """Give the cell column of an x, None outside the view."""
    if not view.x_low <= x <= view.x_high:
        return None
    if view.x_high <= view.x_low:
        return width // 2
    dot = round((x - view.x_low) / (view.x_high - view.x_low) * (2 * width - 1))
    return min(dot // 2, width - 1)


def _x_labels(view: "View", width: int) -> str:
    """Write the first and the last x, and round numbers between them where they do not touch."""
    line = [" "] * width

    def put(text: str, begin: int) -> None:
        begin = min(max(begin, 0), width - len(text))
        if begin < 0:
            return
        around = line[max(begin - 2, 0) : begin + len(text) + 2]
        if all(character == " " for character in around):
            line[begin : begin + len(text)] = text

    put(_number(view.x_high), width)
    put(_number(view.x_low), 0)
    if view.x_high > view.x_low:
        for tick in ticks(view.x_low, view.x_high, max(width // 14, 1)):
            column = _column_of(tick, view, width)
            if column is not None:
                put(_number(tick), column - len(_number(tick)) // 2)
    return "".join(line)


def _number(x: float) -> str:
    return f"{x:.0f}" if x < 100_000 and x == round(x) else short(x, 4)
