"""The server of this window: a child that serves one model and ends with the program.

Knows no screen. Invariant: one server at a time; a load that fails or is cancelled leaves none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.tui import words
from workbench.tui.widgets.model_list import ModelRow

if TYPE_CHECKING:
    from workbench.jobs.chat_client import ChatClient
    from workbench.jobs.inference_process import Progress, Ready
    from workbench.jobs.side_by_side import Server, Start


async def spawn(path: Path) -> "Server":
    """Start a server of this program's own for a model."""
    from workbench.jobs.inference_process import spawn_server

    return await spawn_server(path)


class ModelServer:
    """What is served, and where; empty until something has been loaded.

    Args:
        start: starts a server, which is ready at the end of its ``updates``.
    """

    def __init__(self, start: "Start" = spawn) -> None:
        self.start = start
        self.row: ModelRow | None = None
        self.client: ChatClient | None = None
        self._server: Server | None = None

    @property
    def ready(self) -> "Ready | None":
        """What the server said of itself, None while nothing is loaded."""
        return None if self._server is None else self._server.ready

    @property
    def name(self) -> str:
        """The name under which the server knows the model."""
        return "" if self._server is None else self._server.model

    @property
    def has_ended(self) -> bool:
        """A server was loaded and is gone."""
        return self._server is not None and self._server.has_ended

    def serves(self, path: Path) -> bool:
        """Whether this model is loaded and answers."""
        is_loaded = self._server is not None and not self._server.has_ended
        return is_loaded and self.row is not None and self.row.path == path

    async def load(self, row: ModelRow, say: Callable[[str], None]) -> None:
        """Serve a model in the place of what is served.

        Args:
            row: the model.
            say: is told how far loading is.

        Raises:
            WorkbenchError: it cannot be served.
        """
        await self.stop()
        say(f"starting a server for {row.name}…")
        server = await self.start(row.path)
        try:
            async for progress in server.updates():
                say(stage_of(progress))
        except BaseException:
            await server.stop()
            raise
        self.take(server, row)

    def take(self, server: "Server", row: ModelRow) -> None:
        """Serve with a server that is ready."""
        from workbench.jobs.chat_client import ChatClient

        self._server, self.row = server, row
        self.client = ChatClient(server.socket, model=server.model)

    def give(self) -> "Server | None":
        """Give the server away, where one answers; what was served is still known."""
        server, self._server, self.client = self._server, None, None
        return server if server is not None and not server.has_ended else None

    async def stop(self) -> None:
        """Serve nothing."""
        server, self._server, self.client, self.row = self._server, None, None, None
        if server is not None:
            await server.stop()


def stage_of(progress: "Progress") -> str:
    """Say how far loading is: loading weights 13.5 GiB…."""
    amount = f" {words.size(progress.bytes)}" if progress.bytes else ""
    return f"{progress.stage}{amount}…"
