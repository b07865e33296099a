"""The commands of a job: number, admit or refuse, join duplicates, answer, fail what is left.

Knows nothing of sockets: whoever asked is somebody to whom an answer can be sent. Invariant: every
request is answered by ``accepted`` and later ``done`` or ``failed``, or at once by ``failed``.
"""

import time
from dataclasses import dataclass, field
from typing import Protocol, assert_never, cast

import msgspec

from workbench.control.messages import (
    Abort,
    Accepted,
    AnyResult,
    Command,
    CommandName,
    Done,
    Evaluate,
    Failed,
    FromSupervisor,
    Pause,
    Pending,
    Refusal,
    Resume,
    Save,
    Stop,
)
from workbench.control.states import JobState, refusal, when_acted_on

REFUSAL_REMEDIES: dict[str, str] = {
    "stopping": "wait for its end; start it again afterwards",
    "not_paused": "pause it first",
    "ended": "start it again: workbench train in the same run folder",
    "protocol": "use the version of workbench that started the job",
    "not_rank_0": "ask on the host of rank 0",
}


class Asker(Protocol):
    """Somebody who asked and can be answered."""

    def send(self, message: FromSupervisor) -> None:
        """Send an answer; answers are never dropped while the other end is there."""


@dataclass
class PendingCommand:
    """An accepted command; ``askers`` are all who asked for it, with the ids of their requests."""

    number: int
    name: CommandName
    command: Command
    since: float
    askers: list[tuple[Asker, int]] = field(default_factory=list)

    def accept(self, asker: Asker, request: int, state: JobState) -> None:
        """Take one more asker and tell them the number."""
        self.askers.append((asker, request))
        when = when_acted_on(self.name, state)
        asker.send(Accepted(id=request, command=self.number, when=when))

    def for_publisher(self) -> Save | Evaluate | Pause | Resume | Stop | None:
        """Give what rank 0 is told: the command with its number as id; None for abort."""
        match self.command:
            case Save():
                return Save(id=self.number)
            case Evaluate():
                return Evaluate(id=self.number)
            case Pause():
                return Pause(id=self.number)
            case Resume():
                return Resume(id=self.number)
            case Stop(save=save):
                return Stop(id=self.number, save=save)
            case Abort():
                return None
            case _:
                assert_never(self.command)


class Commands:
    """The numbered commands of one start of a job."""

    def __init__(self) -> None:
        self._last_number = 0
        self._pending: dict[int, PendingCommand] = {}

    @property
    def pending(self) -> list[PendingCommand]:
        """Every accepted command without an answer, oldest first."""
        return list(self._pending.values())

    def summary(self) -> list[Pending]:
        """Give the pending commands as status tells them."""
        return [
            Pending(command=entry.number, name=entry.name, since=entry.since)
            for entry in self.pending
        ]

    def awaits(self, name: CommandName) -> bool:
        """Tell whether a command of this name has not been answered yet."""
        return any(entry.name == name for entry in self.pending)

    def joinable(self, command: Command) -> PendingCommand | None:
        """Find the pending command that means the same, so that both share a number."""
        for entry in self.pending:
            if type(entry.command) is not type(command):
                continue
            if isinstance(command, Stop) and isinstance(entry.command, Stop):
                return entry if entry.command.save == command.save else None
            return entry
        return None

    def refused(self, command: Command, state: JobState, step: int) -> Failed | None:
        """Say why a command is refused now, or None where it is allowed."""
        name = name_of(command)
        if name != "abort" and self.awaits("abort"):
            reason, message = "stopping", "the job is being aborted"
        elif name != "abort" and self.awaits("stop"):
            reason, message = "stopping", f"the job is stopping at step {step}"
        elif found := refusal(name, state):
            reason, message = found
        else:
            return None
        return Failed(
            id=command.id,
            reason=cast("Refusal", reason),
            message=message,
            remedy=REFUSAL_REMEDIES[reason],
        )

    def number(self, command: Command) -> PendingCommand:
        """Enter a new command under the next number."""
        self._last_number += 1
        entry = PendingCommand(
            number=self._last_number, name=name_of(command), command=command, since=time.time()
        )
        self._pending[entry.number] = entry
        return entry

    def take(self, number: int | None) -> PendingCommand | None:
        """Take out the command that is about to be answered, None where there is none."""
        return self._pending.pop(number, None) if number is not None else None


def name_of(command: Command) -> CommandName:
    """Give the word of a command."""
    match command:
        case Save():
            return "save"
        case Evaluate():
            return "evaluate"
        case Pause():
            return "pause"
        case Resume():
            return "resume"
        case Stop():
            return "stop"
        case Abort():
            return "abort"
        case _:
            assert_never(command)


def answer_done(entry: PendingCommand, result: AnyResult) -> None:
    """Tell everyone who asked that the effect is there."""
    for asker, request in entry.askers:
        asker.send(Done(id=request, command=entry.number, result=result))


def answer_failed(entry: PendingCommand, failed: Failed) -> None:
    """Tell everyone who asked that nothing changed, and why."""
    for asker, request in entry.askers:
        asker.send(msgspec.structs.replace(failed, id=request, command=entry.number))
