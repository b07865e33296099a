"""Start and stop an inference server: a child that ends with this process, however that ends.

Knows the command line and the lines on stdout of ``python -m workbench.inference``, no torch.
Invariant: when ``start_server`` raises or is cancelled, no server is left behind.
"""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import msgspec

from workbench import errors
from workbench.control.address import new_address
from workbench.errors import ControlError, WorkbenchError

_LINES_OF_STDERR = 40
# Longer than a token takes on any device; a server that has not ended by then hangs.
_STOP_SECONDS = 10.0


class _Said(msgspec.Struct, frozen=True):
    """A line on the server's stdout."""


class Progress(_Said, frozen=True, tag="progress"):
    """What the server is doing before it is ready; ``bytes`` are those it is about to read."""

    stage: str
    bytes: int | None = None


class ServedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the server has."""

    model: str
    path: str
    context: int
    device: str
    dtype: str
    engine: str
    stop: list[str]


class Ready(_Said, frozen=True, kw_only=True, tag="ready"):
    """The server answers.

    ``models`` are all that it has; the fields beside it are those of the first. ``token`` is what
    TCP wants, if it was made and not taken from WORKBENCH_TOKEN; ``url`` is None without TCP.
    """

    model: str
    path: str
    context: int
    device: str
    dtype: str
    stop: list[str]
    socket: str
    url: str | None
    token: str | None
    models: list[ServedEntry] = []


class _Failed(_Said, frozen=True, kw_only=True, tag="error"):
    kind: str
    what: str
    where: str
    remedy: str
    exit_status: int


_decoder: msgspec.json.Decoder[Progress | Ready | _Failed] = msgspec.json.Decoder(
    Progress | Ready | _Failed
)


@dataclass(frozen=True)
class ServerOptions:
    """What to serve, and how.

    Args:
        model: run folder (its newest complete checkpoint), checkpoint or model folder.
        socket: None draws a name, or with a port takes the name that belongs to it.
        port: None serves no TCP; 0 takes a free port.
        template: name or file; None takes the model's own.
        stop: texts that end every reply.
        others: further models to serve beside it, each ``PATH`` or ``NAME=PATH``.
        name: of the first; None takes its folder's.
        overflow: what becomes of a prompt that is longer than the context.
        engine: ``auto`` is vLLM where that is installed and there is a GPU.
        parallel: replies that are made at the same time; None: as many as the server likes.
        memory_gib: weights of a model take no more of the device; None: as much as is free.
    """

    model: Path
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    template: str | None = None
    stop: tuple[str, ...] = ()
    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    others: tuple[str, ...] = ()
    name: str | None = None
    overflow: Literal["refuse", "truncate"] = "refuse"
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    parallel: int | None = None
    memory_gib: float | None = None

    def command(self) -> list[str]:
        """Write the command line; a socket is drawn where neither it nor a port is given."""
        command = [sys.executable, "-m", "workbench.inference", "--parent-pipe"]
        first = str(self.model) if self.name is None else f"{self.name}={self.model}"
        for model in (first, *self.others):
            command += ["--model", model]
        command += ["--device", self.device, "--dtype", self.dtype]
        command += ["--overflow", self.overflow, "--engine", self.engine]
        if self.parallel is not None:
            command += ["--parallel", str(self.parallel)]
        if self.memory_gib is not None:
            command += ["--memory", str(self.memory_gib)]
        if self.template is not None:
            command += ["--template", self.template]
        for text in self.stop:
            command.append(f"--stop={text}")
        if self.port is not None:
            command += ["--host", self.host, "--port", str(self.port)]
        if self.socket is not None or self.port is None:
            command += ["--socket", str(self.socket or new_address())]
        return command


class InferenceProcess:
    """A server that this process has started; ``start_server`` makes a ready one."""

    def __init__(self, process: asyncio.subprocess.Process, keeps_stderr: bool) -> None:
        self._process = process
        self._last_lines: deque[str] = deque(maxlen=_LINES_OF_STDERR)
        self._reading_stderr = asyncio.create_task(self._read_stderr()) if keeps_stderr else None
        self._ready: Ready | None = None

    @classmethod
    async def spawn(cls, options: ServerOptions, *, inherit_stderr: bool = False) -> Self:
        """Start the process; it is not ready yet.

        Args:
            options: what to serve.
            inherit_stderr: the server's log goes where ours goes; else its end is kept for errors.

        Raises:
            ControlError: the folder for its socket is not safe.
        """
        process = await asyncio.create_subprocess_exec(
            *options.command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if inherit_stderr else asyncio.subprocess.PIPE,
            # Ctrl-C in the terminal is for us; the server ends when we close its stdin.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        return cls(process, keeps_stderr=not inherit_stderr)

    @property
    def ready(self) -> Ready:
        """What it serves; only once it is ready."""
        assert self._ready is not None, "the server is not ready"
        return self._ready

    @property
    def socket(self) -> Path:
        """Where it answers."""
        return Path(self.ready.socket)

    @property
    def model(self) -> str:
        """The name of what it serves."""
        return self.ready.model

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together."""
        return self.ready.context

    @property
    def has_ended(self) -> bool:
        """The process is gone."""
        return self._process.returncode is not None

    async def updates(self) -> AsyncGenerator[Progress, None]:
        """Give what it does until it is ready.

        Raises:
            WorkbenchError: it cannot serve, of the kind and with the words that it said.
        """
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                said = _decoder.decode(line)
            except msgspec.DecodeError:
                # A library that prints does not spoil the start.
                self._last_lines.append(line.decode(errors="replace").rstrip())
                continue
            match said:
                case Progress():
                    yield said
                case Ready():
                    self._ready = said
                    return
                case _Failed():
                    await self.stop()
                    raise _rebuilt(said)
        await self.stop()
        ending = "\n".join(self._last_lines)
        raise ControlError(
            f"it ended with status {self._process.returncode} before it was ready"
            + (f":\n{ending}\n" if ending else ""),
            where="the inference server",
            remedy="mend what it says, then start it again",
        )

    async def wait(self) -> int:
        """Wait until the process is gone; give its exit status, negative for a signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the server and wait until it is gone; doing it twice is harmless."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._kill()
            await self._process.wait()
        except asyncio.CancelledError:
            self._kill()
            raise
        if self._reading_stderr is not None:
            with suppress(asyncio.CancelledError):
                await self._reading_stderr

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._last_lines.append(line.decode(errors="replace").rstrip())


async def spawn_server(model: Path) -> InferenceProcess:
    """Begin to serve a model; whoever reads ``updates`` to their end has it ready.

    Raises:
        ControlError: the folder for its socket is not safe.
    """
    return await InferenceProcess.spawn(ServerOptions(model))


async def start_server(
    model: Path | str,
    *,
    device: str = "auto",
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    template: str | None = None,
    stop: Sequence[str] = (),
) -> InferenceProcess:
    """Serve a model on a Unix socket of its own; return when it answers.

    Whoever wants to show progress meanwhile uses ``InferenceProcess.spawn`` and ``updates``.

    Raises:
        WorkbenchError: it cannot serve, of the kind and with the words that it said.
    """
    options = ServerOptions(Path(model), device, dtype, template, tuple(stop))
    server = await InferenceProcess.spawn(options)
    try:
        async for _ in server.updates():
            pass
    except BaseException:
        await server.stop()
        raise
    return server


def _rebuilt(said: _Failed) -> WorkbenchError:
    """Give the error of the kind that the server raised."""
    kind = getattr(errors, said.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, WorkbenchError)):
        kind = WorkbenchError
    return kind(said.what, where=said.where, remedy=said.remedy)
