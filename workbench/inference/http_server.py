"""HTTP on sockets that are bound already: a Unix socket for this user, TCP for others.

Knows connections, not what is asked on them. Invariants: a peer of the Unix socket that is another
user is hung up on before a byte is read, and so is one that connects and asks nothing.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from workbench.control.address import peer_uid

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    try:
        # Written in C: a quarter of a millisecond less until the first token.
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

logger = logging.getLogger(__name__)

# For the lines that say what is asked; nobody types them.
_ASKING_SECONDS = 30.0
_IDLE_SECONDS = 75


class _CheckedProtocol(Protocol):
    """HTTP that hangs up on peers of a Unix socket that are other users, and on silent ones."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the peer before a byte is read."""
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX and (uid := peer_uid(connection)) != os.getuid():
            logger.warning("refused a connection of user %d", uid)
            transport.abort()
            return
        super().connection_made(transport)
        self.loop.call_later(_ASKING_SECONDS, self._hang_up_on_silence)

    def _hang_up_on_silence(self) -> None:
        if self.cycle is None:
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves an application on sockets that are already bound; signals are the caller's business.

    Args:
        app: what answers.
    """

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - an ASGI application
        super().__init__(
            uvicorn.Config(
                app,
                http=_CheckedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=2,
                # Longer than clients keep a connection for: else it may close under a request.
                timeout_keep_alive=_IDLE_SECONDS,
            )
        )
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so."""
        await super().startup(sockets)
        self.is_listening.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield
