"""Config files in the user's editor, and what reading them again has found.

Invariant: no editor draws over the screens, and none is ended with them.
"""

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App

from workbench.errors import RunError
from workbench.tui import words
from workbench.tui.widgets.message_row import Severity

if TYPE_CHECKING:
    from workbench.config.load import ConfigListing
    from workbench.jobs.editor import EditorCommand

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class ToEdit:
    """Files for one call of the editor; ``line`` is of the first, None for wherever it opens."""

    files: tuple[Path, ...]
    line: int | None = None


@dataclass(frozen=True)
class Edited:
    """What became of files in the editor.

    Attributes:
        files: that were open.
        num_changed: those of them that are not what they were.
        broken_before: names of the configs that had mistakes already.
        beside: what else is to be told of the editor; None where nothing is.
    """

    files: tuple[Path, ...]
    num_changed: int
    broken_before: frozenset[str]
    beside: str | None


def contents_of(files: Sequence[Path]) -> list[bytes | None]:
    """Read files, None for one that cannot be read."""
    found: list[bytes | None] = []
    for file in files:
        try:
            found.append(file.read_bytes())
        except OSError:
            found.append(None)
    return found


def judge(
    edited: Edited, listings: "Sequence[ConfigListing]", project: Path
) -> tuple[str, Severity]:
    """Read every config again that a file is part of; say the first mistake, or that there is none.

    A mistake in a file that was not edited is told only of a config that had none before.

    Args:
        edited: the files.
        listings: all configs.
        project: from where paths are shown.
    """
    from workbench.config.inherit import FileCache
    from workbench.config.load import ConfigProblems, files_of, resolve

    cache = FileCache()
    concerned = [
        listing
        for listing in listings
        if not set(edited.files).isdisjoint((listing.path, *files_of(listing.path, cache)))
    ]
    mistakes: dict[str, None] = {}
    for listing in concerned:
        try:
            resolve(listing.name, project=project)
        except ConfigProblems as error:
            is_new = listing.name not in edited.broken_before
            told = [each for each in error.problems if is_new or each.file in edited.files]
            mistakes.update((str(problem), None) for problem in told)
    if mistakes:
        first, *others = (words.from_project(mistake, project) for mistake in mistakes)
        more = f" (and {words.number_of(len(others), 'more mistake')})" if others else ""
        return first + more, "error"
    changed = words.number_of(edited.num_changed, "file") if edited.num_changed else "nothing"
    is_sound = not any(listing.problem for listing in concerned)
    said = (
        f"{changed} changed; {words.number_of(len(concerned), 'config')} read again, "
        f"no {'' if is_sound else 'new '}mistake"
    )
    return (f"{said}; {edited.beside}", "note") if edited.beside else (said, "done")


async def edit(app: App[Any], command: "EditorCommand") -> int:
    """Open files and come back when the editor's process has ended; give its exit status.

    An editor in the terminal gets the terminal, and the screens stand still meanwhile. One with a
    window of its own runs beside them.

    Raises:
        RunError: it cannot be started.
    """
    from workbench.jobs.editor import run_editor

    if command.is_graphical:
        return await _beside(command)
    # Without a terminal, as in a test, there is none to hand over.
    with contextlib.nullcontext() if app.is_headless else app.suspend():
        return run_editor(command)


async def _beside(command: "EditorCommand") -> int:
    try:
        # A session of its own: closing this terminal must not close a window with unsaved text.
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(
            f"cannot be started: {error.strerror or error}",
            where=command.argv[0],
            remedy="set EDITOR to another one",
        ) from error
    # asyncio's own child processes would be killed when the screens are left.
    while (status := process.poll()) is None:
        await asyncio.sleep(_LOOK_SECONDS)
    return status
