"""Asks once for a yes; enter is not a yes."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from workbench.tui import keys
from workbench.tui.screens.frame import Dialog


class Confirm(Dialog):
    """Gives back True for yes, None otherwise."""

    SCOPES = ("confirm", "dialog")
    BINDINGS = keys.bindings("confirm", "dialog")

    def __init__(self, question: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._question, self._lines = question, lines

    def compose(self) -> ComposeResult:
        """Draw what is asked about."""
        with VerticalScroll(classes="box") as box:
            box.border_title = Content(self._question)
            box.border_subtitle = (
                f"{keys.hint('confirm_yes')} go on · {keys.hint('confirm_no')} go back"
            )
            yield Static(Content("\n".join(self._lines)))

    def do_confirm_yes(self) -> None:
        """Go on."""
        self.dismiss(True)

    def do_confirm_no(self) -> None:
        """Go back."""
        self.dismiss(None)
