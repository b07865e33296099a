"""What connections report, as typed Textual messages at the pace of the screen.

One task per watched run folds its updates into a ``JobPicture`` at once; the screens are told at
most a few times a second which pictures have changed. Invariant: a task that fails ends only the
watching of its run, and says so.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from workbench.control.messages import CommandName, Done, Ended, Evaluated, Failed, Held, Saved
from workbench.errors import WorkbenchError
from workbench.tui import words
from workbench.tui.job_picture import JobPicture, Part
from workbench.tui.surroundings import Surroundings

if TYPE_CHECKING:
    from workbench.jobs.connection import JobConnection
    from workbench.tui.job_index import KnownRun

logger = logging.getLogger(__name__)

_UPDATES_AT_ONCE = 200


@dataclass
class RunsListed(Message):
    """Registry and run folders were read."""

    runs: "tuple[KnownRun, ...]"


@dataclass
class JobsChanged(Message):
    """Pictures have changed since the last message, by run folder."""

    changed: dict[Path, frozenset[Part]]


@dataclass
class CommandSaid(Message):
    """A command of this window was accepted, done, or refused."""

    path: Path
    name: CommandName
    text: str
    phase: str  # accepted, done, failed


class Watch:
    """A run that is followed: its picture, its connection, its task."""

    def __init__(self, path: Path, picture: JobPicture) -> None:
        self.path = path
        self.picture = picture
        self.connection: JobConnection | None = None
        self.task: asyncio.Task[None] | None = None


class Watches:
    """Follows runs and commands them."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._watches: dict[Path, Watch] = {}
        self._dirty: dict[Path, set[Part]] = {}
        self._has_ended = False
        self.faults: list[tuple[str, BaseException]] = []

    def picture(self, path: Path) -> JobPicture | None:
        """Give the picture of a run that is followed."""
        watch = self._watches.get(path)
        return watch.picture if watch else None

    def follow(self, path: Path, name: str, attempt: int = 0) -> JobPicture:
        """Begin to follow a run, or go on; a new attempt is followed anew.

        Args:
            path: the run folder.
            name: how the run is shown.
            attempt: the attempt that the registry tells of; 0 where it does not.
        """
        watch = self._watches.get(path)
        is_over = watch is not None and watch.task is not None and watch.task.done()
        if watch is not None and not (is_over and attempt > watch.picture.attempt):
            return watch.picture
        watch = Watch(path, JobPicture(name))
        if self._has_ended:
            return watch.picture  # a list that was read before the end came after it
        self._watches[path] = watch
        watch.task = asyncio.create_task(self._fold(watch), name=f"watch {name}")
        watch.task.add_done_callback(self._report_fault)
        return watch.picture

    def forget_all_but(self, paths: Iterable[Path]) -> None:
        """Stop following runs that nobody looks at."""
        kept = set(paths)
        for path in [path for path in self._watches if path not in kept]:
            task = self._watches.pop(path).task
            if task is not None:
                task.cancel()

    async def end(self) -> None:
        """Stop following; the jobs do not notice."""
        self._has_ended = True
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def take_dirty(self) -> dict[Path, frozenset[Part]]:
        """Give what has changed since the last call."""
        changed = {path: frozenset(parts) for path, parts in self._dirty.items()}
        self._dirty.clear()
        return changed

    def _report_fault(self, task: asyncio.Task[None]) -> None:
        """Tell of a fault of our own; the other watches live on."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            logger.error("%s ended", task.get_name(), exc_info=fault)
            self.faults.append((task.get_name(), fault))

    async def _fold(self, watch: Watch) -> None:
        from workbench.jobs.connection import JobConnection
        from workbench.jobs.follow import (
            EndedUpdate,
            EventUpdate,
            LinkUpdate,
            LogUpdate,
            MetricsUpdate,
            StatusUpdate,
        )
        from workbench.runs.layout import RunFolder

        picture = watch.picture
        watch.connection = JobConnection(RunFolder(watch.path))
        num_updates = 0
        try:
            async with contextlib.aclosing(watch.connection.updates()) as updates:
                async for update in updates:
                    match update:
                        case MetricsUpdate():
                            picture.take_metrics(update.record)
                            part: Part = "metrics"
                        case EventUpdate():
                            picture.take_event(update.event)
                            part = "events"
                        case LogUpdate():
                            picture.take_log(update.text)
                            part = "log"
                        case StatusUpdate():
                            picture.take_status(update.status, self._surroundings.clock())
                            part = "state"
                        case LinkUpdate():
                            picture.take_link(update.connected, update.reason, update.since)
                            part = "state"
                        case EndedUpdate():
                            picture.take_outcome(update.outcome)
                            part = "state"
                    self._dirty.setdefault(watch.path, set()).add(part)
                    num_updates += 1
                    if num_updates % _UPDATES_AT_ONCE == 0:
                        await asyncio.sleep(0)  # a long history must not hold up the keys
        except (WorkbenchError, OSError) as error:
            logger.warning("%s is not followed any more: %s", watch.path, error)
            picture.take_link(False, str(error), self._surroundings.clock())
            self._dirty.setdefault(watch.path, set()).add("state")

    # ---- commands ----------------------------------------------------------------------

    async def command(
        self, path: Path, name: CommandName, post: Callable[[CommandSaid], None], **fields: bool
    ) -> None:
        """Send a command and tell its two answers: accepted, then done or failed."""
        watch = self._watches.get(path)
        if watch is None or watch.connection is None:
            post(CommandSaid(path, name, f"{name}: the job is not connected", "failed"))
            return
        try:
            handle = await watch.connection.command(name, **fields)
            accepted = await handle.accepted()
            if isinstance(accepted, Failed):
                post(
                    CommandSaid(
                        path, name, refused_text(watch.picture.name, name, accepted), "failed"
                    )
                )
                return
            post(
                CommandSaid(
                    path, name, accepted_text(watch.picture.name, name, accepted.when), "accepted"
                )
            )
            answer = await handle.result()
        except WorkbenchError as error:
            post(CommandSaid(path, name, f"{watch.picture.name}: {name}: {error}", "failed"))
            return
        if isinstance(answer, Failed):
            post(CommandSaid(path, name, refused_text(watch.picture.name, name, answer), "failed"))
        else:
            post(CommandSaid(path, name, done_text(watch.picture.name, answer), "done"))


_DOING: dict[CommandName, str] = {
    "save": "saving",
    "evaluate": "evaluating",
    "pause": "pausing",
    "resume": "resuming",
    "stop": "stopping",
    "abort": "aborting",
}


def accepted_text(name: str, command: CommandName, when: str) -> str:
    """Say that a command was accepted: ``default-6: saving at the next step…``."""
    moment = {"now": "", "next step": " at the next step", "first step": " after the first step"}
    return f"{name}: {_DOING[command]}{moment.get(when, '')}…"


def refused_text(name: str, command: CommandName, failed: Failed) -> str:
    """Say why a command was refused or failed, and what to do."""
    return f"{name}: {command} failed: {failed.message}" + (
        f"; {failed.remedy}" if failed.remedy else ""
    )


def done_text(name: str, done: Done) -> str:
    """Say what a command achieved: ``default-6: saved checkpoint-412, 1.2 GiB in 21 s``."""
    match done.result:
        case Saved() as saved:
            return (
                f"{name}: saved {Path(saved.path).name}, {words.size(saved.bytes)} "
                f"in {words.duration(saved.seconds)}"
            )
        case Evaluated() as evaluated:
            return f"{name}: evaluated at step {evaluated.step}: loss {words.loss(evaluated.loss)}"
        case Held(paused=True) as held:
            return f"{name}: paused at step {held.step}"
        case Held() as held:
            return f"{name}: goes on from step {held.step}"
        case Ended() as ended:
            killed = f", {ended.killed} processes had to be killed" if ended.killed else ""
            return f"{name}: {ended.state} at step {ended.step}{killed}"
        case _:
            return f"{name}: done"
