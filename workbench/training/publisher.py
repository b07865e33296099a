"""Rank 0's line to the supervisor: one thread, which touches a queue and a snapshot only.

The main thread puts messages in and goes on; commands come out of another queue. When the line
breaks, the queue of commands gets None, once, and every later message is dropped: what matters is
on disk already. Invariant: nothing here ever makes the main thread wait, save for the last words.
"""

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from dataclasses import dataclass

import msgspec

from workbench import __version__
from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import (
    PROTOCOL_VERSION,
    FromPublisher,
    Hello,
    Leaving,
    Progress,
    ToPublisher,
)
from workbench.control.states import RunningState
from workbench.errors import ControlError
from workbench.training.control_point import Wish

_PROGRESS_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
_LAST_WORDS_SECONDS = 10.0


@dataclass
class Snapshot:
    """Where the main thread stands; it alone writes, the publisher's thread reads."""

    state: RunningState = "loading"
    step: int = 0
    max_steps: int | None = None
    last_beat: float = 0.0  # time.monotonic() when the main thread last came by


class Publisher:
    """The connection of rank 0 to its supervisor.

    Args:
        socket_path: the supervisor's Unix socket, from job.json.
        job: job id.
        wishes: where commands are put.

    Raises:
        ControlError: there is no supervisor at that socket, or it is not of this job.
    """

    def __init__(self, socket_path: str, job: str, wishes: "queue.SimpleQueue[Wish]") -> None:
        self._wishes = wishes
        self._messages: queue.SimpleQueue[FromPublisher] = queue.SimpleQueue()
        self._snapshot = Snapshot(last_beat=time.monotonic())
        self._lines = _Lines(_connect(socket_path))
        try:
            self._greet(socket_path, job)
        except ControlError:
            self._lines.socket.close()
            raise
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def at(self, state: RunningState, step: int, max_steps: int | None) -> None:
        """Say where the main thread stands; a change is told at once, the rest every 2 s."""
        snapshot = self._snapshot
        is_change = (snapshot.state, snapshot.max_steps) != (state, max_steps)
        snapshot.state, snapshot.step, snapshot.max_steps = state, step, max_steps
        snapshot.last_beat = time.monotonic()
        if is_change:
            self.send(self._progress())

    def send(self, message: FromPublisher) -> None:
        """Queue a message; returns at once."""
        self._messages.put(message)
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_writer, b"!")

    def leave(self, leaving: Leaving) -> None:
        """Send the last message and close; waits some seconds at most."""
        self.send(leaving)
        self._thread.join(timeout=_LAST_WORDS_SECONDS)

    def _greet(self, socket_path: str, job: str) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            role="publisher",
            program=f"workbench {__version__}",
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job,
        )
        try:
            self._lines.write(encode(hello))
            answer, *more = self._lines.read()
        except (OSError, EOFError, msgspec.DecodeError) as error:
            raise _unreachable(socket_path, str(error) or "it closed the connection") from error
        if not isinstance(answer, Hello) or answer.job != job:
            raise _unreachable(socket_path, f"it answered {answer}")
        for wish in more:
            self._wishes.put(wish)
        # From here on a supervisor that is slow holds up this thread and nobody else.
        self._lines.socket.settimeout(None)

    def _progress(self) -> Progress:
        snapshot = self._snapshot
        return Progress(
            state=snapshot.state,
            step=snapshot.step,
            max_steps=snapshot.max_steps,
            idle_seconds=round(time.monotonic() - snapshot.last_beat, 3),
        )

    def _run(self) -> None:
        """Write messages and progress, read commands, until the last words or a broken line."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._lines.socket, selectors.EVENT_READ)
                selector.register(self._wake_reader, selectors.EVENT_READ)
                self._serve(selector)
        except (OSError, EOFError, msgspec.DecodeError):
            self._wishes.put(None)
        finally:
            self._lines.socket.close()

    def _serve(self, selector: selectors.BaseSelector) -> None:
        next_progress = 0.0
        while True:
            now = time.monotonic()
            if now >= next_progress:
                self._lines.write(encode(self._progress()))
                next_progress = now + _PROGRESS_SECONDS
            for key, _ in selector.select(next_progress - now):
                if key.fileobj == self._wake_reader:
                    os.read(self._wake_reader, 4096)
                else:
                    for wish in self._lines.read():
                        self._wishes.put(wish)
            if self._flush():
                return

    def _flush(self) -> bool:
        """Write what is queued; true after the last words."""
        while True:
            try:
                message = self._messages.get_nowait()
            except queue.Empty:
                return False
            self._lines.write(encode(message))
            if isinstance(message, Leaving):
                return True


class _Lines:
    """Whole lines over a connected socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._rest = b""
        self._decoder: msgspec.json.Decoder[ToPublisher] = msgspec.json.Decoder(ToPublisher)

    def write(self, line: bytes) -> None:
        self.socket.sendall(line)

    def read(self) -> list[ToPublisher]:
        """Give the messages of all complete lines, waiting for the first.

        Raises:
            EOFError: the other end closed, or sends a line without end.
        """
        while b"\n" not in self._rest:
            data = self.socket.recv(1 << 16)
            if not data or len(self._rest) > MAX_LINE_BYTES:
                raise EOFError
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [self._decoder.decode(line) for line in lines]


def _connect(socket_path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_SECONDS)
    try:
        connection.connect(socket_path)
    except OSError as error:
        connection.close()
        raise _unreachable(socket_path, str(error)) from error
    return connection


def _unreachable(socket_path: str, why: str) -> ControlError:
    return ControlError(
        f"the supervisor cannot be reached: {why}",
        where=socket_path,
        remedy="start the run again",
    )
