"""Past messages, the newest first."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from workbench.tui import keys, words
from workbench.tui.screens.frame import Dialog
from workbench.tui.widgets.message_row import Said, said_line


class MessagesDialog(Dialog):
    """What was said in this window."""

    BINDINGS = keys.bindings("dialog")

    def __init__(self, history: Sequence[Said]) -> None:
        super().__init__()
        self._history = history

    def compose(self) -> ComposeResult:
        """Draw a line for each message."""
        lines = []
        for said in reversed(self._history):
            time = Content.assemble((words.clock(said.time), "$quiet"))
            lines.append(time.append(said_line(said)))
            if said.detail:
                lines.append(Content.assemble((f"        {said.detail}", "$quiet")))
        with VerticalScroll(classes="box") as box:
            box.border_title = Content(f"Messages · {len(self._history)}")
            box.border_subtitle = f"{keys.hint('close')} close"
            yield Static(Content("\n").join(lines) if lines else Content("Nothing was said yet."))
