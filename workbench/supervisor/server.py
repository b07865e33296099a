"""The socket of one job: peer check, hello, viewers, the publisher.

Every connection has a reader that puts typed messages into one inbox; what they mean is decided by
``life``, one after the other. Invariant: a line that is not a message of the protocol is answered
by ``failed`` naming the field, and the connection closes.
"""

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from workbench import __version__
from workbench.control.address import peer_uid
from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import (
    PROTOCOL_VERSION,
    Abort,
    Failed,
    FromPublisher,
    FromSupervisor,
    Hello,
    StatusRequest,
    Stop,
    Topic,
    ToPublisher,
    ToSupervisor,
)
from workbench.errors import ControlError
from workbench.runs.job_file import this_host

logger = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
LARGEST_BACKLOG_BYTES = 512 << 10
"""News for a viewer with more than this unread are dropped; it reads the files instead."""

_from_viewer = msgspec.json.Decoder(ToSupervisor)
_from_publisher = msgspec.json.Decoder(FromPublisher)
_any_version = StatusRequest | Stop | Abort


class Peer:
    """One connection. ``role`` is unknown until its hello."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.role: Literal["viewer", "publisher"] | None = None
        self.protocol = PROTOCOL_VERSION
        self.pid = 0
        self.topics: set[Topic] = set()

    def send(self, message: FromSupervisor | ToPublisher) -> None:
        """Send an answer or a command; dropped only when the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    def offer(self, topic: Topic, news: FromSupervisor) -> None:
        """Send news unless the viewer did not subscribe or has much unread."""
        if topic not in self.topics or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > LARGEST_BACKLOG_BYTES:
            return
        with contextlib.suppress(ControlError):
            self._writer.write(encode(news))

    async def drained(self) -> None:
        """Wait until the other end has read most of what it was sent."""
        await self._writer.drain()

    def close(self) -> None:
        """Close once everything sent has gone out."""
        self._writer.close()

    def cut(self) -> None:
        """Close at once, whatever has not gone out yet."""
        self._writer.transport.abort()


@dataclass(frozen=True)
class Received:
    """A message of a peer that has said hello."""

    peer: Peer
    message: ToSupervisor | FromPublisher


@dataclass(frozen=True)
class Closed:
    """A peer that had said hello is gone."""

    peer: Peer


class LineReader(asyncio.StreamReader):
    """Reads to the last line that came, also where the other end left without reading its own.

    A rank that dies with a command unread resets the connection. A plain reader then raises at
    once, and what the rank had said of its end would be lost.
    """

    def set_exception(self, exc: Exception) -> None:
        """Take a connection that broke for one that ended."""
        if isinstance(exc, ConnectionError):
            self.feed_eof()
        else:
            super().set_exception(exc)


class Server:
    """Listens at one address and reads from every peer into the inbox."""

    def __init__(self, job: str, inbox: "asyncio.Queue[Received | Closed]") -> None:
        self._job = job
        self._inbox = inbox
        self._server: asyncio.Server | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self.viewers: set[Peer] = set()
        self.publisher: Peer | None = None

    async def listen(self, address: Path) -> None:
        """Bind the socket, open to this user alone, and serve it from now on.

        Raises:
            OSError: the address is taken, or the folder cannot be written.
        """
        loop = asyncio.get_running_loop()

        def new_connection() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(LineReader(MAX_LINE_BYTES), self._serve)

        self._server = await loop.create_unix_server(new_connection, path=os.fspath(address))
        address.chmod(0o600)

    async def close(self) -> None:
        """Take no more connections and drop those that are there."""
        if self._server is not None:
            self._server.close()
        for peer in (*self.viewers, self.publisher):
            if peer is not None:
                peer.cut()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._readers.add(task)
        peer = Peer(writer)
        try:
            if peer_uid(writer.get_extra_info("socket")) == os.getuid():
                await self._read(reader, peer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            # The other end went away or never spoke, or this end is closing: usual ends, all.
            pass
        finally:
            self._readers.discard(task)
            self.viewers.discard(peer)
            if peer is self.publisher:
                self.publisher = None
            peer.close()
            if peer.role is not None:
                self._inbox.put_nowait(Closed(peer))

    async def _read(self, reader: asyncio.StreamReader, peer: Peer) -> None:
        line = await asyncio.wait_for(next_line(reader), HELLO_SECONDS)
        if not await self._admitted(peer, line):
            return
        decode = _from_publisher.decode if peer.role == "publisher" else _from_viewer.decode
        while True:
            try:
                line = await next_line(reader)
                if not line:
                    return
                message = decode(line)
                if isinstance(message, Hello):
                    raise msgspec.ValidationError("hello was said already - at `$.type`")
            except (ValueError, msgspec.MsgspecError) as error:
                peer.send(_unreadable(line, error))
                return
            if peer.protocol != PROTOCOL_VERSION and not isinstance(message, _any_version):
                peer.send(_other_version(message, peer.protocol))
                continue
            await self._inbox.put(Received(peer, message))
            await peer.drained()

    async def _admitted(self, peer: Peer, line: bytes) -> bool:
        """Check the first line of a peer and answer it."""
        if not line:
            return False
        try:
            hello = msgspec.json.decode(line, type=Hello)
        except (ValueError, msgspec.MsgspecError) as error:
            peer.send(_unreadable(line, error))
            return False
        problem = self._problem_with(hello)
        if problem is not None:
            peer.send(Failed(reason="protocol", message=problem, remedy="connect as a viewer"))
            return False
        peer.protocol, peer.pid = hello.protocol, hello.pid
        if hello.role == "publisher":
            peer.role = "publisher"
            self.publisher = peer
        else:
            peer.role = "viewer"
            self.viewers.add(peer)
        peer.send(
            Hello(
                protocol=PROTOCOL_VERSION,
                role="supervisor",
                program=f"workbench {__version__}",
                host=this_host(),
                pid=os.getpid(),
                job=self._job,
            )
        )
        if peer.role == "publisher":
            await self._inbox.put(Received(peer, hello))
        return True

    def _problem_with(self, hello: Hello) -> str | None:
        match hello.role:
            case "viewer":
                if hello.job is not None and hello.job != self._job:
                    return f"this is job {self._job}, not {hello.job}"
            case "supervisor":
                return "a supervisor cannot connect to a supervisor"
            case "publisher":
                if hello.job != self._job:
                    return f"this is job {self._job}, not {hello.job}"
                if hello.protocol != PROTOCOL_VERSION:
                    return f"rank 0 speaks protocol {hello.protocol}, this is {PROTOCOL_VERSION}"
                if self.publisher is not None:
                    return "rank 0 is connected already"
        return None


async def next_line(reader: asyncio.StreamReader) -> bytes:
    """Read a line, empty at the end; half a line before the end is not one.

    Raises:
        ValueError: it is longer than a line may be.
    """
    line = await reader.readline()
    return line if line.endswith(b"\n") else b""


def _unreadable(line: bytes, error: Exception) -> Failed:
    request: int | None = None
    with contextlib.suppress(ValueError, msgspec.MsgspecError):
        request = msgspec.json.decode(line, type=_Numbered).id
    what = str(error)
    if not isinstance(error, msgspec.MsgspecError):
        what = f"a line is longer than {MAX_LINE_BYTES:,} bytes"
    return Failed(
        id=request,
        reason="protocol",
        message=what,
        remedy="speak the messages of protocol version 1; the connection closes",
    )


def _other_version(message: ToSupervisor | FromPublisher, protocol: int) -> Failed:
    return Failed(
        id=getattr(message, "id", None),
        reason="protocol",
        message=f"you speak protocol {protocol}, this job {PROTOCOL_VERSION}: "
        "only hello, status, stop and abort are understood",
        remedy="read the run folder's files, or use the version that started the job",
    )


class _Numbered(msgspec.Struct):
    id: int
