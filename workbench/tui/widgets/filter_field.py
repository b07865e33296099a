"""The one-line field that filters a list; hidden until it is asked for."""

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import BindingType
from textual.message import Message
from textual.widgets import Input

from workbench.tui import keys


class FilterField(Input, inherit_bindings=False):
    """Tells every change; leaving it empty hides it."""

    KEY_SCOPES = ("field",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("field"),
        *keys.without_banned(Input.BINDINGS),
    ]
    DEFAULT_CSS = """
    FilterField, FilterField:focus {
        border: none; height: 1; padding: 0 1; background: $panel; display: none;
    }
    FilterField.-shown { display: block; }
    """

    @dataclass
    class Typed(Message):
        """The text of the filter changed."""

        text: str

    @dataclass
    class Left(Message):
        """The field gives the focus back."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(placeholder="filter", id=id, select_on_focus=False, compact=True)
        self.cursor_blink = False

    def open(self) -> None:
        """Show the field and type into it."""
        self.add_class("-shown")
        self.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Tell the new text."""
        event.stop()
        self.post_message(self.Typed(self.value))

    def do_keep_filter(self) -> None:
        """Go to the list and leave the filter as it is."""
        self.set_class(bool(self.value), "-shown")
        self.post_message(self.Left())

    def do_leave_field(self) -> None:
        """Clear the filter and go to the list."""
        self.clear()
        self.remove_class("-shown")
        self.post_message(self.Left())
