"""One key of a config: its meaning, its value, and everyone who set it."""

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from workbench.tui import keys
from workbench.tui.screens.frame import Dialog
from workbench.tui.widgets.origin_table import KeyLine, value_text


class KeyDetails(Dialog):
    """The whole chain of a key, one file a line."""

    BINDINGS = keys.bindings("dialog")

    def __init__(self, line: KeyLine) -> None:
        super().__init__()
        self._line = line

    def compose(self) -> ComposeResult:
        """Draw meaning, value and chain, the oldest statement first."""
        from workbench.config.schema.keys import key_at

        leaf = self._line.leaf
        schema_key = key_at(self._line.key.split("."))
        steps = [
            *((each.value, each.origin) for each in reversed(leaf.overrode)),
            (leaf.value, leaf.origin),
        ]
        width = max(len(value_text(value)) for value, _ in steps)
        lines = [
            Content(schema_key.description if schema_key else ""),
            Content(""),
            *(
                Content.assemble(
                    ("→ " if index else "  ", "$quiet"),
                    (
                        value_text(value).ljust(min(width, 40)),
                        "bold" if index == len(steps) - 1 else "",
                    ),
                    "  ",
                    (origin.source, "$secondary"),
                )
                for index, (value, origin) in enumerate(steps)
            ),
        ]
        with VerticalScroll(classes="box") as box:
            box.border_title = Content(self._line.key)
            box.border_subtitle = f"{keys.hint('close')} close"
            yield Static(Content("\n").join(lines))
