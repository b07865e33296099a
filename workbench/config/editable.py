"""Which config files and chat templates are the user's own to change.

Knows no editor. Invariant: nothing is written here.
"""

import os
from pathlib import Path

from workbench.config.find import shipped_configs, shipped_templates
from workbench.config.inherit import absolute
from workbench.config.problems import seen_from_here
from workbench.errors import RefusedError, RunError


def comes_with_workbench(path: Path) -> bool:
    """Say whether a file belongs to an installed workbench: the next update would undo a change."""
    folders = (shipped_configs(), shipped_templates())
    is_installed = folders[0].parent.name == "shipped"
    return is_installed and any(path.is_relative_to(folder) for folder in folders)


def check_editable(path: Path, project: Path | None) -> None:
    """Refuse a file that cannot or should not be written, before any editor opens.

    Raises:
        RefusedError: it comes with an installed workbench.
        RunError: it cannot be written.
    """
    if comes_with_workbench(path):
        is_template = path.is_relative_to(shipped_templates())
        folder = shipped_templates() if is_template else shipped_configs()
        name = path.relative_to(folder).with_suffix("").as_posix()
        beside = seen_from_here(absolute((project or Path()) / "chat_templates"))
        raise RefusedError(
            "comes with workbench, so that its next update would undo what you change",
            where=str(path),
            remedy=f"copy it into {beside}, which comes first, and edit it there"
            if is_template
            else f"make one of your own: workbench new -t {name} NAME",
        )
    if not os.access(path, os.W_OK):
        raise RunError(
            "cannot be written",
            where=str(path),
            remedy="change its permissions, or edit a copy: workbench new -t CONFIG NAME",
        )
