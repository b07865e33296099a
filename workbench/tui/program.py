"""What screens and dialogs use of the program they are part of."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from workbench.control.messages import CommandName
    from workbench.errors import WorkbenchError
    from workbench.tui.job_events import Watches
    from workbench.tui.job_index import JobIndex
    from workbench.tui.remembered import Remembered
    from workbench.tui.surroundings import Surroundings
    from workbench.tui.widgets.message_row import Severity


class Program(Protocol):
    """The program as its screens know it.

    Attributes:
        surroundings: clock, host, folders, manners.
        remembered: choices that outlive the program.
        under_way: commands of this window that are not answered yet, by run folder.
        wanted_job: run folder that the jobs screen is to select as soon as it is listed.
    """

    surroundings: "Surroundings"
    remembered: "Remembered"
    under_way: "dict[Path, list[CommandName]]"
    wanted_job: Path | None

    @property
    def index(self) -> "JobIndex":
        """The jobs and runs that are known."""

    @property
    def watches(self) -> "Watches":
        """The runs that are followed."""

    def say(self, text: str, severity: "Severity" = "done", detail: str = "") -> None:
        """Show a line above the footer and keep it in the history."""

    def say_error(self, prefix: str, error: "WorkbenchError | OSError") -> None:
        """Say a mistake: what and what to do in the row, where in the history."""

    def clear_said(self) -> bool:
        """Dismiss the message that is shown; False where there is none."""

    def show(self, mode: str) -> None:
        """Switch to a screen."""

    def talk_to(self, path: Path, name: str) -> None:
        """Show the chat, and let it load a model."""

    def refresh_frame(self) -> None:
        """Bring header and footer up to date."""

    def follow_jobs(self, selected: Path | None) -> None:
        """Follow every running job and the one that is looked at."""

    def send_command(self, path: Path, name: "CommandName", **fields: bool) -> None:
        """Send a command to a job; what becomes of it is said when it is known."""

    def shown_path(self, path: Path) -> str:
        """Write a path as seen from the project."""

    def jobs_in_a_line(self) -> str:
        """Say the running jobs in one line."""
