"""The row above the footer: what just happened, for three seconds or until it is dismissed."""

from dataclasses import dataclass
from typing import Literal

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

Severity = Literal["done", "working", "note", "error"]

_LOOKS: dict[Severity, tuple[str, str]] = {
    "done": ("✓", "$good"),
    "working": ("◐", "$busy"),
    "note": ("!", "$note"),
    "error": ("✗", "$bad"),
}


@dataclass(frozen=True)
class Said:
    """One message: when, how grave, what; ``detail`` is shown in the history only."""

    time: float
    severity: Severity
    text: str
    detail: str = ""


def said_line(said: Said) -> Content:
    """Draw a message with its mark in front."""
    mark, colour = _LOOKS[said.severity]
    return Content.assemble((f" {mark} ", f"bold {colour}"), said.text)


class MessageRow(Widget):
    """One row that is blank when there is nothing to say."""

    DEFAULT_CSS = """
    MessageRow { height: 1; }
    """

    said: reactive[Said | None] = reactive(None)

    def render(self) -> Content:
        """Draw the message, or nothing."""
        if self.said is None:
            return Content("")
        return said_line(self.said).truncate(self.size.width, ellipsis=True)
