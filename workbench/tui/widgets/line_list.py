"""A list of one-line rows with a cursor, drawn line by line: every table of the program.

Knows nothing of what the rows are; a subclass says how one looks at a given width. Invariant: the
cursor stays on a row that can be chosen, and on the same row (by its key) when the rows change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from textual import events
from textual.content import Content
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

from workbench.tui import keys

Row = TypeVar("Row")


class LineList(ScrollView, Generic[Row], can_focus=True):
    """Rows under a cursor."""

    BINDINGS = keys.bindings("list", "pane")
    COMPONENT_CLASSES: ClassVar[set[str]] = {"line-list--cursor", "line-list--cursor-blurred"}
    DEFAULT_CSS = """
    LineList {
        scrollbar-size-vertical: 1;
        overflow-x: hidden;
        & > .line-list--cursor { background: $cursor-row; color: $heading; }
        & > .line-list--cursor-blurred { background: $surface; }
    }
    """

    cursor = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor is on another row."""

        list: "LineList[Any]"
        row: Any

        @property
        def control(self) -> "LineList[Any]":
            """The list, for handlers that select by it."""
            return self.list

    @dataclass
    class Opened(Message):
        """A row was opened by key or double click."""

        list: "LineList[Any]"
        row: Any

        @property
        def control(self) -> "LineList[Any]":
            """The list, for handlers that select by it."""
            return self.list

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.rows: Sequence[Row] = ()
        self.empty_text: Content = Content("")

    # ---- what a subclass says ----------------------------------------------------------

    def draw(self, row: Row, width: int) -> Content:
        """Give a row as one line of at most ``width`` cells."""
        del width
        return Content(str(row))

    def key_of(self, row: Row) -> object:
        """Give what stays the same of a row when the rows are read anew."""
        return row

    def can_choose(self, row: Row) -> bool:
        """Say whether the cursor may stand on a row."""
        del row
        return True

    # ---- rows and cursor ---------------------------------------------------------------

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        if 0 <= self.cursor < len(self.rows) and self.can_choose(self.rows[self.cursor]):
            return self.rows[self.cursor]
        return None

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show other rows; the cursor stays on its row where that still exists."""
        before = None if self.current is None else self.key_of(self.current)
        self.rows = rows
        self.virtual_size = Size(0, len(rows))
        found = next(
            (
                index
                for index, row in enumerate(rows)
                if self.can_choose(row) and self.key_of(row) == before
            ),
            None,
        )
        target = found if found is not None else self._nearest(min(self.cursor, len(rows) - 1), 1)
        changed = target != self.cursor
        self.set_reactive(LineList.cursor, target)
        after = None if self.current is None else self.key_of(self.current)
        if before != after:
            self.post_message(self.Moved(self, self.current))
        if changed:
            self._keep_in_view()
        self.refresh()

    def choose(self, key: object) -> bool:
        """Put the cursor on the row with this key; False where there is none."""
        for index, row in enumerate(self.rows):
            if self.can_choose(row) and self.key_of(row) == key:
                self.cursor = index
                return True
        return False

    def _nearest(self, index: int, direction: int) -> int:
        """Give the row that can be chosen nearest to ``index``, first in ``direction``."""
        index = min(max(index, 0), max(len(self.rows) - 1, 0))
        for way in (direction, -direction):
            at = index
            while 0 <= at < len(self.rows):
                if self.can_choose(self.rows[at]):
                    return at
                at += way
        return 0

    def watch_cursor(self, before: int, after: int) -> None:
        """Tell that the cursor moved and keep it in view."""
        if before == after:
            return
        self._keep_in_view()
        self.post_message(self.Moved(self, self.current))
        self.refresh()

    def _keep_in_view(self) -> None:
        if not self.size.height:
            return
        # A heading above the first row comes into view with it.
        top = 0 if self.cursor == self._nearest(0, 1) else self.cursor
        self.scroll_to_region(Region(0, top, 1, self.cursor - top + 1), animate=False, force=True)

    def _scrolls(self, y: float) -> bool:
        """Bring a line to the top where no row can be chosen, so that keys reach every line."""
        if any(self.can_choose(row) for row in self.rows):
            return False
        self.scroll_to(y=y, animate=False, force=True)
        return True

    def do_move_down(self) -> None:
        """Move one row down."""
        if not self._scrolls(self.scroll_y + 1):
            self.cursor = self._step(1)

    def do_move_up(self) -> None:
        """Move one row up."""
        if not self._scrolls(self.scroll_y - 1):
            self.cursor = self._step(-1)

    def _step(self, direction: int) -> int:
        at = self.cursor + direction
        while 0 <= at < len(self.rows):
            if self.can_choose(self.rows[at]):
                return at
            at += direction
        return self.cursor

    def do_move_first(self) -> None:
        """Move to the first row."""
        if not self._scrolls(0):
            self.cursor = self._nearest(0, 1)

    def do_move_last(self) -> None:
        """Move to the last row."""
        if not self._scrolls(len(self.rows)):
            self.cursor = self._nearest(len(self.rows) - 1, -1)

    def do_page_down(self) -> None:
        """Move one page down."""
        page = max(self.size.height - 1, 1)
        if not self._scrolls(self.scroll_y + page):
            self.cursor = self._nearest(self.cursor + page, -1)

    def do_page_up(self) -> None:
        """Move one page up."""
        page = max(self.size.height - 1, 1)
        if not self._scrolls(self.scroll_y - page):
            self.cursor = self._nearest(self.cursor - page, 1)

    def do_open_row(self) -> None:
        """Open the row under the cursor."""
        if self.current is not None:
            self.post_message(self.Opened(self, self.current))

    # ---- drawing -----------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Draw one line of the view."""
        width = self.size.width
        index = y + int(self.scroll_offset.y)
        if not self.rows:
            lines = self.empty_text.wrap(max(width - 2, 1)) if self.empty_text.plain else []
            top = min(1, max(self.size.height - len(lines), 0))
            if top <= y < top + len(lines):
                return self._strip(Content(" ").append(lines[y - top]), width, None)
            return Strip.blank(width, self.visual_style.rich_style)
        if index >= len(self.rows):
            return Strip.blank(width, self.visual_style.rich_style)
        row = self.rows[index]
        at_cursor = index == self.cursor and self.can_choose(row)
        bar = (
            Content.assemble(("▌", "$primary" if self.has_focus else "$quiet"))
            if at_cursor
            else Content(" ")
        )
        component = None
        if at_cursor:
            component = "line-list--cursor" if self.has_focus else "line-list--cursor-blurred"
        return self._strip(bar.append(self.draw(row, width - 2)), width, component)

    def _strip(self, content: Content, width: int, component: str | None) -> Strip:
        style = self.get_visual_style(component) if component else self.visual_style
        content = content.truncate(width, ellipsis=True)
        strips = Visual.to_strips(self, content, width, 1, style, pad=True)
        return strips[0] if strips else Strip.blank(width, style.rich_style)

    def on_focus(self) -> None:
        """Draw the cursor as the one that keys move."""
        self.refresh()

    def on_blur(self) -> None:
        """Draw the cursor as one that waits."""
        self.refresh()

    async def on_click(self, event: events.Click) -> None:
        """Choose the row under the mouse; a second click opens it."""
        index = event.y - self.gutter.top + int(self.scroll_offset.y)
        if 0 <= index < len(self.rows) and self.can_choose(self.rows[index]):
            if event.chain >= 2 and index == self.cursor:
                self.do_open_row()
            self.cursor = index
