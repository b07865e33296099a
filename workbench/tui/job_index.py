"""The jobs and runs that are known: registry and run folders, read by a thread once a second."""

from typing import TYPE_CHECKING

from workbench.tui.surroundings import Surroundings

if TYPE_CHECKING:
    from workbench.tui.app import WorkbenchApp


class JobIndex:
    """What the registry says, without opening run folders on the loop."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self.num_unseen_failures = 0

    def has_entries(self):
        return False

    def begin(self, app: "WorkbenchApp") -> None:
        pass

    def running(self):
        return []

    def in_a_line(self):
        return ""

    def last_run_of(self, name):
        return "", "", ""
