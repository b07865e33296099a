"""One question to a supervisor and its answer: the greeting of both, and a blocking link.

``JobConnection`` greets the same way and then stays. Invariant: nothing is asked before the right
supervisor has answered the greeting.
"""

import os
import socket
from pathlib import Path

import msgspec

from workbench import __version__
from workbench.control.address import check_address, peer_uid
from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import (
    PROTOCOL_VERSION,
    Abort,
    Accepted,
    Command,
    Done,
    Failed,
    FromSupervisor,
    Hello,
    Status,
    StatusRequest,
    Stop,
    ToSupervisor,
)
from workbench.errors import ControlError, RefusedError
from workbench.runs.job_file import JobFile, this_host
from workbench.runs.layout import RunFolder
from workbench.runs.registry import entry_of, liveness, outcome_of

ANSWER_SECONDS = 10.0
"""A supervisor answers at once, whatever its ranks do; one that takes longer is not there."""

_from_supervisor: msgspec.json.Decoder[FromSupervisor] = msgspec.json.Decoder(FromSupervisor)


def hello() -> Hello:
    """Introduce this program as a viewer."""
    return Hello(
        protocol=PROTOCOL_VERSION,
        role="viewer",
        program=f"workbench {__version__}",
        host=this_host(),
        pid=os.getpid(),
    )


def check_greeting(line: bytes, job_file: JobFile) -> int:
    """Make sure that the right supervisor has answered our hello; give the protocol it speaks.

    Raises:
        ControlError: it is another job's, or refuses.
    """
    where = job_file.job
    try:
        answer = _from_supervisor.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ControlError(
            f"the supervisor's greeting is not understood: {error}",
            where=where,
            remedy="use the version of workbench that started the job",
        ) from error
    match answer:
        case Hello(protocol=protocol, job=job):
            if job != job_file.job:
                raise ControlError(
                    f"another job answers: {job}", where=where, remedy="see: workbench control list"
                )
            return protocol
        case Failed(message=message, remedy=remedy):
            raise ControlError(message, where=where, remedy=remedy)
        case _:
            raise ControlError(
                "the supervisor did not say hello", where=where, remedy="start the job again"
            )


def other_protocol(protocol: int, job_file: JobFile) -> ControlError:
    """Make the error for a supervisor of another version; status, stop and abort are left."""
    return ControlError(
        f"the supervisor speaks protocol {protocol}, this program {PROTOCOL_VERSION}",
        where=job_file.job,
        remedy="use the version of workbench that started the job; status, stop and abort work",
    )


class Link:
    """A blocking connection to a supervisor, for commands that ask once and leave."""

    def __init__(self, job_file: JobFile, seconds: float = ANSWER_SECONDS) -> None:
        """Connect and say hello; every answer that is due at once is waited for so long.

        Raises:
            ControlError: nobody answers, or it is not this job's supervisor.
        """
        self._job, self._seconds = job_file, seconds
        if job_file.host != this_host():
            raise ControlError(
                f"the job runs on host {job_file.host}", where=job_file.job, remedy="ask there"
            )
        address = Path(job_file.socket)
        check_address(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(os.fspath(address))
            if peer_uid(self._socket) != os.getuid():
                raise ControlError(
                    "somebody else listens there", where=str(address), remedy="remove the socket"
                )
            self._socket.sendall(encode(hello()))
            self._protocol = check_greeting(self._read_line(seconds), job_file)
        except OSError as error:
            self._socket.close()
            raise self._gone(str(error) or "no answer") from error
        except BaseException:
            self._socket.close()
            raise

    def status(self) -> Status:
        """Ask where the job stands.

        Raises:
            ControlError: the supervisor went away.
        """
        self._send(StatusRequest(id=1))
        while True:
            message = self._receive(self._seconds)
            if isinstance(message, Status):
                return message

    def command(self, command: Command) -> Accepted | Failed:
        """Send a command and wait until it is numbered, or refused.

        Raises:
            ControlError: the supervisor went away before it answered.
        """
        if self._protocol != PROTOCOL_VERSION and not isinstance(command, (Stop, Abort)):
            raise other_protocol(self._protocol, self._job)
        self._send(command)
        while True:
            message = self._receive(self._seconds)
            if isinstance(message, (Accepted, Failed)) and message.id in (command.id, None):
                return message

    def result(self, command: Command) -> Done | Failed:
        """Wait for the outcome of an accepted command, however long that takes.

        Raises:
            ControlError: the supervisor went away before it answered.
        """
        while True:
            message = self._receive(None)
            if isinstance(message, (Done, Failed)) and message.id == command.id:
                return message

    def close(self) -> None:
        """Leave; the job does not notice."""
        self._socket.close()

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, message: ToSupervisor) -> None:
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise self._gone(str(error) or "no answer") from error

    def _receive(self, seconds: float | None) -> FromSupervisor:
        try:
            return _from_supervisor.decode(self._read_line(seconds))
        except OSError as error:
            raise self._gone(str(error) or "no answer") from error
        except msgspec.MsgspecError as error:
            raise self._gone(f"it speaks otherwise: {error}") from error

    def _read_line(self, seconds: float | None) -> bytes:
        self._socket.settimeout(seconds)
        while (end := self._buffer.find(b"\n")) < 0:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._buffer += data
            if len(self._buffer) > 2 * MAX_LINE_BYTES:
                raise ConnectionAbortedError("it sends a line without end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _gone(self, why: str) -> ControlError:
        return ControlError(
            f"the supervisor does not answer: {why}",
            where=self._job.job,
            remedy="see: workbench control status",
        )


def link_to(run: RunFolder, job_file: JobFile) -> Link:
    """Connect to the supervisor of a job that has not ended.

    Raises:
        RefusedError: the job has ended.
        ControlError: it was lost, runs elsewhere, or does not answer.
    """
    entry = entry_of(job_file, run)
    match liveness(entry):
        case "ended":
            outcome = outcome_of(entry)
            state = outcome.state if outcome is not None else "started again since"
            raise RefusedError(
                f"the job has ended: {state}", where=job_file.job, remedy="start it again"
            )
        case "lost":
            raise ControlError(
                "the job was lost: no outcome, and its supervisor is gone",
                where=job_file.job,
                remedy="tidy up (workbench control cleanup), then start it again",
            )
        case "elsewhere":
            raise ControlError(
                f"the job runs on host {job_file.host}", where=job_file.job, remedy="ask there"
            )
    return Link(job_file)


def request_status(job_file: JobFile, *, seconds: float = ANSWER_SECONDS) -> Status:
    """Ask a supervisor once where its job stands; wait so long for the answer.

    Raises:
        ControlError: nobody answers.
    """
    with Link(job_file, seconds) as link:
        return link.status()
