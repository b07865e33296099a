"""The end of a log, following it until the reader moves up.

Draws only the lines in view. Invariant: while the reader reads, new lines move nothing; how many
came in is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.visual import Visual

from workbench.tui import keys

if TYPE_CHECKING:
    from collections import deque

    from workbench.tui.drawn import LogLine

_LONGEST = 2000


class LogView(ScrollView, can_focus=True):
    """Lines of a log; ``follows`` while its end is in view."""

    KEY_SCOPES = ("pane",)
    BINDINGS = keys.bindings("list", "pane")
    DEFAULT_CSS = """
    LogView { scrollbar-size-vertical: 1; overflow-x: hidden; }
    """

    @dataclass
    class FollowChanged(Message):
        """The view began or ceased to follow."""

        follows: bool

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.follows = True
        self.empty_text = "No output yet."
        self._lines: deque[LogLine] | Sequence[LogLine] = ()
        self._num_total = 0
        self._num_when_left = 0

    @property
    def num_new(self) -> int:
        """Lines that came in since the view ceased to follow."""
        return 0 if self.follows else max(self._num_total - self._num_when_left, 0)

    def show(self, lines: "deque[LogLine] | Sequence[LogLine]", num_total: int) -> None:
        """Show these lines; ``num_total`` counts also those that were dropped at the front."""
        is_other = lines is not self._lines
        num_dropped_before = self._num_total - self.virtual_size.height
        self._lines = lines
        if is_other:
            self.follows = True
        grown = (num_total - len(lines)) - num_dropped_before
        self._num_total = num_total
        self.virtual_size = Size(0, len(lines))
        if self.follows:
            self.scroll_end(animate=False, immediate=True, force=True, x_axis=False)
        elif grown > 0 and not is_other:
            # Lines were dropped in front of what is being read: it stays where it is.
            self.scroll_to(y=max(self.scroll_offset.y - grown, 0), animate=False, force=True)
        self.refresh()

    def _move(self, to: float) -> None:
        last = max(self.virtual_size.height - self.size.height, 0)
        to = min(max(to, 0), last)
        follows = to >= last
        if follows != self.follows:
            self.follows = follows
            self._num_when_left = self._num_total
            self.post_message(self.FollowChanged(follows))
        self.scroll_to(y=to, animate=False, force=True)

    def do_move_down(self) -> None:
        """Move one line down; the end follows again."""
        self._move(self.scroll_offset.y + 1)

    def do_move_up(self) -> None:
        """Move one line up; following ends."""
        self._move(self.scroll_offset.y - 1)

    def do_page_down(self) -> None:
        """Move one page down."""
        self._move(self.scroll_offset.y + max(self.size.height - 1, 1))

    def do_page_up(self) -> None:
        """Move one page up."""
        self._move(self.scroll_offset.y - max(self.size.height - 1, 1))

    def do_move_first(self) -> None:
        """Move to the oldest line."""
        self._move(0)

    def do_move_last(self) -> None:
        """Move to the end and follow it."""
        self._move(self.virtual_size.height)

    def on_mouse_scroll_up(self) -> None:
        """The wheel ends following as well."""
        self._move(self.scroll_offset.y - 3)

    def on_mouse_scroll_down(self) -> None:
        """The wheel reaches the end as well."""
        self._move(self.scroll_offset.y + 3)

    def on_resize(self) -> None:
        """Keep the end in view while following."""
        if self.follows:
            self.call_after_refresh(
                self.scroll_end, animate=False, immediate=True, force=True, x_axis=False
            )

    def render_line(self, y: int) -> Strip:
        """Draw one line of the view."""
        width, style = self.size.width, self.visual_style
        index = y + int(self.scroll_offset.y)
        if not self._lines:
            text = self.empty_text if y == 0 else ""
            content = Content.assemble((f" {text}", "$quiet"))
        elif index >= len(self._lines):
            content = Content("")
        else:
            line = self._lines[index]
            text = line.text[:_LONGEST]
            content = Content.assemble((f" {text}", "$quiet" if line.kind == "note" else ""))
        strips = Visual.to_strips(
            self, content.truncate(width, ellipsis=True), width, 1, style, pad=True
        )
        return strips[0] if strips else Strip.blank(width, style.rich_style)
