"""A few lines about the selected job; what does not fit is dropped from the end."""

from collections.abc import Callable, Sequence

from textual.content import Content
from textual.widget import Widget


class JobDetail(Widget, can_focus=False):
    """Lines that somebody else writes for the width there is."""

    DEFAULT_CSS = """
    JobDetail { height: 1fr; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._write: Callable[[int], Sequence[Content]] = lambda width: ()

    def show(self, write: Callable[[int], Sequence[Content]]) -> None:
        """Draw what ``write`` gives for the width in cells."""
        self._write = write
        self.refresh()

    def render(self) -> Content:
        """Draw the lines that fit."""
        width = self.size.width
        lines = self._write(width)[: self.size.height]
        return Content("\n").join([line.truncate(width, ellipsis=True) for line in lines])
