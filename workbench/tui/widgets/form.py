"""A form of a few lines: texts to type and values to choose among, one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Static

from workbench.tui import keys


class FormField(Input, inherit_bindings=False):
    """A text of the form."""

    KEY_SCOPES = ("form",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("form"),
        *keys.without_banned(Input.BINDINGS),
    ]

    def __init__(self, value: str, *, id: str, placeholder: str = "") -> None:
        super().__init__(value, placeholder=placeholder, id=id, select_on_focus=False, compact=True)
        self.cursor_blink = False


class ChoiceField(Widget, can_focus=True):
    """Some values in a line, of which one is chosen: it stands in brackets."""

    KEY_SCOPES = ("choice", "form")
    BINDINGS = keys.bindings("choice", "form")
    DEFAULT_CSS = """
    ChoiceField { height: 1; width: 1fr; padding: 0 1; }
    ChoiceField:focus { background: $panel; }
    """

    chosen: reactive[int] = reactive(0)

    @dataclass
    class Changed(Message):
        """Another value is chosen."""

        field: "ChoiceField"

    def __init__(self, values: Sequence[str], chosen: str, *, id: str) -> None:
        super().__init__(id=id)
        self._values = list(values)
        self.set_reactive(ChoiceField.chosen, self._values.index(chosen))

    @property
    def value(self) -> str:
        """What is chosen."""
        return self._values[self.chosen]

    def watch_chosen(self) -> None:
        """Tell it."""
        self.post_message(self.Changed(self))

    def render(self) -> Content:
        """Draw all values."""
        parts = []
        for index, value in enumerate(self._values):
            is_chosen = index == self.chosen
            style = ("bold $primary" if self.has_focus else "bold") if is_chosen else "$quiet"
            parts.append(Content.assemble((f"[{value}]" if is_chosen else f" {value} ", style)))
        return Content(" ").join(parts)

    def do_next_choice(self) -> None:
        """Choose the next value, behind the last the first."""
        self.chosen = (self.chosen + 1) % len(self._values)

    def do_previous_choice(self) -> None:
        """Choose the value before."""
        self.chosen = (self.chosen - 1) % len(self._values)


class FormLine(Horizontal):
    """A name and its field."""

    DEFAULT_CSS = """
    FormLine { height: 1; width: 100%; }
    FormLine > .form-name { width: 14; color: $quiet; }
    FormLine > FormField { width: 1fr; }
    """

    def __init__(self, name: str, field: FormField | ChoiceField) -> None:
        super().__init__()
        self._said, self._field = name, field

    def compose(self) -> ComposeResult:
        """Lay out the name before the field."""
        yield Static(Content(self._said), classes="form-name")
        yield self._field
