"""One sentence in place of a screen that cannot be drawn, with the sizes and the jobs."""

from collections.abc import Callable

from textual.content import Content
from textual.widget import Widget

MIN_WIDTH, MIN_HEIGHT = 60, 16


class TooSmall(Widget):
    """Covers a screen whose window is under the smallest size."""

    DEFAULT_CSS = """
    TooSmall { width: 100%; height: 1fr; display: none; padding: 0 1; }
    """

    def __init__(self, jobs_in_a_line: Callable[[], str]) -> None:
        super().__init__()
        self._jobs_in_a_line = jobs_in_a_line

    def render(self) -> Content:
        """Say both sizes, and how the jobs are."""
        size = self.app.size
        return Content(
            f"Needs {MIN_WIDTH}×{MIN_HEIGHT}, this window is {size.width}×{size.height}. "
            f"Jobs are not affected.\n{self._jobs_in_a_line()}"
        )
