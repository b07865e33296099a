"""The settings of the next answers in a box, for windows without room for them at the side."""

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from workbench.jobs.chat_settings import ChatSettings
from workbench.tui import keys
from workbench.tui.chat.settings_form import SettingsForm
from workbench.tui.screens.frame import Dialog


class ChatSettingsDialog(Dialog):
    """Gives back the settings, with what was typed and is not taken."""

    SCOPES = ("settings",)

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self._settings = settings

    def compose(self) -> ComposeResult:
        """Draw the fields."""
        with Vertical(classes="box settings") as box:
            box.border_title = Content("Settings of the next answers")
            box.border_subtitle = (
                f"{keys.hint('next_setting')} next · {keys.hint('leave_settings')} close"
            )
            yield SettingsForm(self._settings)

    def on_mount(self) -> None:
        """Begin to count, and take the typing."""
        super().on_mount()
        self.query_one(SettingsForm).begin(self._settings)

    @on(SettingsForm.Left)
    def _left(self, event: SettingsForm.Left) -> None:
        self.dismiss((self.query_one(SettingsForm).settings, event.wrong))
