"""The settings of the next answers as fields: what is typed holds at once, what is wrong is said.

Invariant: ``settings`` is always something that the server takes; a field that is wrong leaves the
value that was there before.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from workbench.errors import ConfigError
from workbench.jobs.chat_settings import FIELDS, ChatSettings, SettingsField
from workbench.tui import keys


class SettingInput(Input, inherit_bindings=False):
    """Where one setting is typed."""

    KEY_SCOPES = ("settings",)
    TAKES_TEXT = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *keys.bindings("settings"),
        *keys.without_banned(Input.BINDINGS),
    ]

    def __init__(self, field: SettingsField, settings: ChatSettings) -> None:
        super().__init__(
            field.written(settings),
            placeholder=field.unset,
            id=f"set-{field.name}",
            compact=True,
            select_on_focus=False,
        )
        self.field = field
        self.cursor_blink = False


class SettingsForm(Vertical):
    """A field for each setting; below them what the focused one does."""

    DEFAULT_CSS = """
    SettingsForm { height: 1fr; }
    SettingsForm .fields {
        height: auto; max-height: 1fr; scrollbar-size-vertical: 1; padding: 0 1;
    }
    SettingsForm .line { height: 1; }
    SettingsForm .label { width: 14; color: $quiet; }
    SettingsForm .line.-here .label { color: $heading; text-style: bold; }
    SettingsForm Input.-textual-compact, SettingsForm Input.-textual-compact:focus {
        width: 1fr; border: none; height: 1; padding: 0 1; background: $panel;
    }
    SettingsForm Input.-textual-compact:focus { background: $cursor-row; }
    SettingsForm .wrong { height: auto; display: none; color: $bad; }
    SettingsForm .wrong.-shown { display: block; }
    SettingsForm .about-field {
        height: auto; min-height: 4; margin-top: 1; padding: 0 1; color: $quiet;
    }
    """

    @dataclass
    class Changed(Message):
        """What was typed makes other settings."""

        settings: ChatSettings

    @dataclass
    class Left(Message):
        """The form gives the focus back; ``wrong`` says what was typed and is not taken."""

        wrong: tuple[str, ...]

    def __init__(self, settings: ChatSettings, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.settings = settings
        self._wrong: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        """Lay out the fields."""
        with VerticalScroll(classes="fields", can_focus=False):
            for field in FIELDS:
                with Horizontal(classes="line"):
                    yield Static(field.label, classes="label")
                    yield SettingInput(field, self.settings)
                yield Static(id=f"wrong-{field.name}", classes="wrong")
        yield Static(classes="about-field")

    def begin(self, settings: ChatSettings) -> None:
        """Show settings as they are, and take the typing."""
        self.settings = settings
        for each in self.query(SettingInput):
            with self.prevent(Input.Changed):
                each.value = each.field.written(settings)
            self._say_wrong(each.field, "")
        self.query(SettingInput).first().focus()

    def show_seed(self, settings: ChatSettings) -> None:
        """Show a seed that was locked or unlocked meanwhile."""
        self.settings = replace(self.settings, seed=settings.seed)
        for each in self.query(SettingInput):
            if each.field.name == "seed":
                with self.prevent(Input.Changed):
                    each.value = each.field.written(settings)
                self._say_wrong(each.field, "")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        field = event.input
        assert isinstance(field, SettingInput)
        name = field.field.name
        try:
            value: Any = field.field.read(field.value)
        except ConfigError as error:
            held = field.field.shown(self.settings)
            self._say_wrong(field.field, f"{error.what}; {held} stays")
            return
        self._say_wrong(field.field, "")
        if value != getattr(self.settings, name):
            self.settings = replace(self.settings, **{name: value})
            self.post_message(self.Changed(self.settings))

    def _say_wrong(self, field: SettingsField, text: str) -> None:
        self._wrong[field.name] = text
        line = self.query_one(f"#wrong-{field.name}", Static)
        line.set_class(bool(text), "-shown")
        line.update(Content.assemble(("✗ ", "bold"), text) if text else "")

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Say what the field under the cursor does, and what it takes."""
        field = event.widget
        for line in self.query(".line"):
            line.set_class(line is field.parent, "-here")
        if isinstance(field, SettingInput):
            self.query_one(".about-field", Static).update(
                f"{field.field.help} Takes {field.field.limits}."
            )

    def on_descendant_blur(self) -> None:
        """No field is the one that is typed into."""
        self.query(".line").remove_class("-here")

    def do_next_setting(self) -> None:
        """Go to the next field."""
        self._move(1)

    def do_previous_setting(self) -> None:
        """Go to the field before."""
        self._move(-1)

    def _move(self, by: int) -> None:
        fields = list(self.query(SettingInput))
        at = next((index for index, each in enumerate(fields) if each.has_focus), 0)
        # At once: what is typed behind this key is for the next field already.
        self.screen.set_focus(fields[(at + by) % len(fields)])

    def do_leave_settings(self) -> None:
        """Give the focus back."""
        labels = {each.name: each.label for each in FIELDS}
        wrong = [f"{labels[name]}: {text}" for name, text in self._wrong.items() if text]
        self.post_message(self.Left(tuple(wrong)))
