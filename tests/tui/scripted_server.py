"""An OpenAI-compatible server that says what a test wants, over HTTP on a real Unix socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from workbench.control.address import new_address
from workbench.jobs.inference_process import Progress, Ready


class ScriptedServer:
    """Answers every chat request piece by piece, each when the test lets it go.

    Attributes:
        requests: bodies that came in.
        closed: how many clients went away before their answer was complete.
        fails: answer the next request with 500.
    """

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.requests: list[dict[str, object]] = []
        self.go_on = asyncio.Semaphore(0)
        self.num_closed = 0
        self.fails = False
        self.num_started = 0
        self.num_stopped = 0
        self._address = new_address()
        self._server: asyncio.Server | None = None

    # ---- what the chat screen uses --------------------------------------------------------

    async def start(self, path: Path) -> "ScriptedServer":
        """Take the place of ``spawn``."""
        self.path = path
        self.num_started += 1
        self._server = await asyncio.start_unix_server(self._serve, self._address)
        return self

    async def updates(self) -> AsyncIterator[Progress]:
        yield Progress(stage="loading weights", bytes=5 << 20)

    @property
    def ready(self) -> Ready:
        return Ready(
            model=self.model,
            path=str(self.path),
            context=512,
            device="cpu",
            dtype="float32",
            stop=["<|im_end|>"],
            socket=str(self.socket),
            url=None,
            token=None,
            models=[],
        )

    @property
    def socket(self) -> Path:
        return self._address

    @property
    def model(self) -> str:
        return "quick-1"

    @property
    def has_ended(self) -> bool:
        return self._server is None

    async def stop(self) -> None:
        self.num_stopped += 1
        if self._server is not None:
            self._server.close()
            self._server = None

    # ---- the server ------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                int(line.split(":")[1])
                for line in head.lower().splitlines()
                if line.startswith("content-length:")
            )
            self.requests.append(json.loads(await reader.readexactly(length)))
            if self.fails:
                body = json.dumps({"error": {"message": "the model fell over"}})
                writer.write(
                    f"HTTP/1.1 500 Internal Server Error\r\ncontent-length: {len(body)}\r\n"
                    f"content-type: application/json\r\n\r\n{body}".encode()
                )
                return
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            )
            await self._stream(reader, writer)
        finally:
            writer.close()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.create_task(reader.read())
        try:
            for piece in self.pieces:
                allowed = asyncio.create_task(self.go_on.acquire())
                await asyncio.wait({gone, allowed}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    allowed.cancel()
                    self.num_closed += 1
                    return
                self._say(writer, {"choices": [{"delta": {"content": piece}}]})
                await writer.drain()
            self._say(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 20, "completion_tokens": len(self.pieces)}
            self._say(writer, {"choices": [], "usage": usage})
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        finally:
            gone.cancel()

    @staticmethod
    def _say(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
        writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class ScriptedServers:
    """A server for each checkpoint, by its name."""

    def __init__(self, **servers: ScriptedServer) -> None:
        self._servers = servers

    async def start(self, path: Path) -> ScriptedServer:
        """Take the place of ``spawn``."""
        return await self._servers[path.name.replace("-", "_")].start(path)
