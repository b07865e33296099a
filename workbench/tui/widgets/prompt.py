"""The field where a message is written."""

from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.widgets import TextArea

from workbench.tui import keys


class Prompt(TextArea, inherit_bindings=False):
    """Several lines; one key sends, another begins a new line."""

    KEY_SCOPES = ("chat",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("chat"),
        *keys.without_banned(TextArea.BINDINGS),
    ]
    DEFAULT_CSS = """
    Prompt, Prompt:focus { border: none; padding: 0 1; background: $background; height: 1fr; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            compact=True,
            highlight_cursor_line=False,
            show_line_numbers=False,
        )
        self.cursor_blink = False

    async def _on_key(self, event: events.Key) -> None:
        """Leave the key that sends to the table; a text area would take it as a new line."""
        if event.key in (*keys.BY_ID["send"].keys, *keys.BY_ID["newline"].keys):
            event.prevent_default()

    def do_newline(self) -> None:
        """Begin a new line."""
        self.insert("\n")
