"""The live link to one supervisor: catch up from files, news in, commands out, reconnect.

For programs with an event loop; ``link`` is for one question and its answer. The files are the
truth: news only say that it is time to read on in one of them. Invariant: every record of the files
is given exactly once, whether the supervisor answers, dies or comes back.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from workbench.control.address import check_address, peer_uid
from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import (
    PROTOCOL_VERSION,
    Abort,
    Accepted,
    CommandName,
    Done,
    Evaluate,
    Event,
    Failed,
    FromSupervisor,
    Log,
    Metrics,
    Pause,
    Resume,
    Save,
    Status,
    StatusRequest,
    Stop,
    Subscribe,
    Topic,
    ToSupervisor,
)
from workbench.control.states import END_STATES
from workbench.errors import ControlError, RunError
from workbench.jobs.follow import (
    LOG_HISTORY_BYTES,
    EndedUpdate,
    EventUpdate,
    FileReader,
    LinkUpdate,
    StatusUpdate,
    Update,
)
from workbench.jobs.link import ANSWER_SECONDS, check_greeting, hello, other_protocol
from workbench.runs.catalog import last_known
from workbench.runs.events import ExitEvent
from workbench.runs.job_file import JobFile, read_job_file, this_host
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome
from workbench.runs.registry import entry_of, liveness, outcome_of

STATUS_SECONDS = 2.0
RETRY_SECONDS = 1.0
LOOK_SECONDS = 0.5
"""Between two looks at the files while nobody answers."""

# The outcome is written right after its event; the files are read once more by then.
_OUTCOME_SECONDS = 0.02

_TOPICS: list[Topic] = ["events", "metrics", "log"]
_COMMANDS: dict[CommandName, type[Save | Evaluate | Pause | Resume | Stop | Abort]] = {
    "save": Save,
    "evaluate": Evaluate,
    "pause": Pause,
    "resume": Resume,
    "stop": Stop,
    "abort": Abort,
}
_from_supervisor: msgspec.json.Decoder[FromSupervisor] = msgspec.json.Decoder(FromSupervisor)


class CommandHandle:
    """A command on its way; answers arrive while somebody iterates the connection's updates."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[Accepted | Failed] = loop.create_future()
        self._result: asyncio.Future[Done | Failed] = loop.create_future()

    async def accepted(self) -> Accepted | Failed:
        """Wait until the command is numbered, or refused.

        Raises:
            ControlError: the supervisor went away.
        """
        return await asyncio.shield(self._accepted)

    async def result(self) -> Done | Failed:
        """Wait for the outcome: the effect is on disk, or nothing changed.

        Raises:
            ControlError: the supervisor went away.
        """
        return await asyncio.shield(self._result)

    def _answer(self, message: Accepted | Done | Failed) -> bool:
        """Take an answer; tell whether it was the last."""
        if not self._accepted.done() and not isinstance(message, Done):
            self._accepted.set_result(message)
        if isinstance(message, Accepted):
            return False
        if not self._result.done():
            self._result.set_result(message)
        return True

    def _lose(self, error: ControlError) -> None:
        for future in (self._accepted, self._result):
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting: that is no mistake of theirs.
                future.exception()


class JobConnection:
    """Everything one run says, from its first record on, and the way to command its job."""

    def __init__(self, run: RunFolder, *, log_history_bytes: int = LOG_HISTORY_BYTES) -> None:
        self._run = run
        self._files = FileReader(run, log_history_bytes)
        self._writer: asyncio.StreamWriter | None = None
        self._last_id = 0
        self._handles: dict[int, CommandHandle] = {}
        self._link: LinkUpdate | None = None

    @property
    def is_connected(self) -> bool:
        """The supervisor has said hello and is there."""
        return self._writer is not None

    async def command(self, name: CommandName, **fields: Any) -> CommandHandle:  # noqa: ANN401
        """Send a command.

        Args:
            name: save, evaluate, pause, resume, stop or abort.
            fields: ``save=False`` for a stop that keeps nothing.

        Raises:
            ControlError: nobody answers at the moment.
        """
        handle = CommandHandle()
        self._last_id += 1
        self._handles[self._last_id] = handle
        try:
            await self._send(_COMMANDS[name](id=self._last_id, **fields))
        except ControlError:
            del self._handles[self._last_id]
            raise
        return handle

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Give what the files hold, then what happens, until the job has ended.

        Raises:
            RunError: the folder holds no run that was ever started.
        """
        try:
            while True:
                job_file = self._job_file()
                for found in self._files.read():
                    yield found
                if (ended := await asyncio.to_thread(_end_of, self._run, job_file)) is not None:
                    # What was written between the two looks belongs before the end.
                    for found in self._files.read():
                        yield found
                    yield EndedUpdate(ended)
                    return
                try:
                    reader = await self._connect(job_file)
                except (OSError, ControlError) as error:
                    reason = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
                    if (news := self._say_link(False, reason)) is not None:
                        yield news
                    async with contextlib.aclosing(self._look_for(RETRY_SECONDS)) as tail:
                        async for update in tail:
                            yield update
                    continue
                if (news := self._say_link(True, "")) is not None:
                    yield news
                async with contextlib.aclosing(self._listen(reader)) as news_of_link:
                    async for update in news_of_link:
                        yield update
                self._lose("the supervisor closed the connection")
        finally:
            self._lose("the connection was closed")

    async def close(self) -> None:
        """Leave; the job does not notice."""
        self._lose("the connection was closed")

    def _job_file(self) -> JobFile:
        job_file = read_job_file(self._run.job)
        if job_file is None:
            raise RunError(
                "the run was never started",
                where=str(self._run.path),
                remedy="start it: workbench train --output-dir DIR",
            )
        return job_file

    async def _connect(self, job_file: JobFile) -> asyncio.StreamReader:
        if job_file.host != this_host():
            raise ControlError(
                f"the job runs on host {job_file.host}",
                where=job_file.job,
                remedy="command it from there; its files are shown here",
            )
        address = Path(job_file.socket)
        check_address(address)
        # Not wait_for: until Python 3.12 it loses a cancellation that comes with the answer.
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(
                os.fspath(address), limit=MAX_LINE_BYTES * 2
            )
        try:
            if peer_uid(writer.get_extra_info("socket")) != os.getuid():
                raise ControlError(
                    "somebody else listens there", where=str(address), remedy="remove the socket"
                )
            writer.write(encode(hello()))
            async with asyncio.timeout(ANSWER_SECONDS):
                line = await reader.readline()
            if (protocol := check_greeting(line, job_file)) != PROTOCOL_VERSION:
                raise other_protocol(protocol, job_file)
        except BaseException:
            writer.close()
            raise
        self._writer = writer
        return reader

    async def _listen(self, reader: asyncio.StreamReader) -> AsyncGenerator[Update, None]:
        """Subscribe, catch up, then give the news until the other end closes."""
        self._last_id += 1
        asks_status_at = 0.0
        has_ended = False
        try:
            await self._send(Subscribe(id=self._last_id, topics=_TOPICS))
            waiting: asyncio.Task[bytes] | None = None
            try:
                while True:
                    now = time.monotonic()
                    if now >= asks_status_at:
                        asks_status_at = now + STATUS_SECONDS
                        self._last_id += 1
                        await self._send(StatusRequest(id=self._last_id))
                    if waiting is None:
                        waiting = asyncio.create_task(reader.readline())
                    await asyncio.wait({waiting}, timeout=asks_status_at - now)
                    if not waiting.done():
                        continue
                    line, waiting = waiting.result(), None
                    if not line.endswith(b"\n"):
                        return
                    for update in self._understand(_from_supervisor.decode(line)):
                        has_ended = has_ended or _tells_the_end(update)
                        yield update
                    # The supervisor waits for us to leave; whoever asked is answered first.
                    if has_ended and not self._handles:
                        await asyncio.sleep(_OUTCOME_SECONDS)
                        return
            finally:
                if waiting is not None:
                    waiting.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError, ValueError):
                        await waiting
        except (OSError, ValueError, ControlError, msgspec.MsgspecError):
            # Gone, or it speaks otherwise: the files say the rest.
            return

    def _understand(self, message: FromSupervisor) -> list[Update]:
        match message:
            case Status():
                return [StatusUpdate(message)]
            case Event():
                return list(self._files.read("events"))
            case Metrics():
                return list(self._files.read("metrics"))
            case Log():
                return list(self._files.read("log"))
            case Done(id=request) | Accepted(id=request):
                handle = self._handles.get(request)
                if handle is not None and handle._answer(message):
                    del self._handles[request]
                elif handle is None and isinstance(message, Done):
                    # Subscribed: what came into the files before that moment is read now.
                    return list(self._files.read())
            case Failed(id=request) if request is not None:
                handle = self._handles.pop(request, None)
                if handle is not None:
                    handle._answer(message)
        return []

    async def _look_for(self, seconds: float) -> AsyncGenerator[Update, None]:
        """Tail the files for a while."""
        deadline = time.monotonic() + seconds
        while True:
            for update in self._files.read():
                yield update
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _send(self, message: ToSupervisor) -> None:
        if self._writer is None or self._writer.is_closing():
            reason = self._link.reason if self._link is not None else "not connected yet"
            raise ControlError(
                f"the supervisor does not answer: {reason}",
                where=self._run.name,
                remedy="wait until it does, or see: workbench control status",
            )
        self._writer.write(encode(message))
        try:
            await self._writer.drain()
        except OSError as error:
            raise ControlError(
                f"the supervisor went away: {error}",
                where=self._run.name,
                remedy="see: workbench control status",
            ) from error

    def _say_link(self, connected: bool, reason: str) -> LinkUpdate | None:
        """Give the news of a change of the link, None where there is no change."""
        if self._link is not None and (self._link.connected, self._link.reason) == (
            connected,
            reason,
        ):
            return None
        was_down = self._link is not None and not self._link.connected
        since = self._link.since if was_down and not connected and self._link else time.time()
        self._link = LinkUpdate(connected, reason, since)
        return self._link

    def _lose(self, reason: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        error = ControlError(
            reason, where=self._run.name, remedy="see how it ended: workbench control status"
        )
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle._lose(error)


def _tells_the_end(update: Update) -> bool:
    match update:
        case EventUpdate(event=ExitEvent()):
            return True
        case StatusUpdate(status=status):
            return status.state in END_STATES
        case _:
            return False


def _end_of(run: RunFolder, job_file: JobFile) -> Outcome | None:
    """Give the outcome of a start, a made-up one for a lost job, None while it goes on."""
    entry = entry_of(job_file, run)
    outcome = outcome_of(entry)
    if outcome is not None or liveness(entry) != "lost":
        return outcome
    step, checkpoint = last_known(run)
    return Outcome(
        attempt=job_file.attempt,
        state="lost",
        step=step,
        time=time.time(),
        message="there is no outcome, and its supervisor is gone",
        checkpoint=checkpoint,
    )
