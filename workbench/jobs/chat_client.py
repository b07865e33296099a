"""Chat with an OpenAI-compatible server: our own over its Unix socket, any other by its URL.

Knows the protocol, not the server. Invariant: closing the iterator of ``stream`` closes the
connection, and with our server that stops the generation.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from workbench.control.address import check_folder
from workbench.errors import ControlError, WorkbenchError

# A reply may wait long for its turn, but whoever listens accepts at once.
_TIMEOUT = httpx.Timeout(None, connect=10.0)

# At 1.0, the servers' usual default, small models lose their thread.
SUGGESTED_TEMPERATURE = 0.7


class ChatError(WorkbenchError):
    """A request that the server refused, or could not complete."""


@dataclass(frozen=True)
class ChatTurn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatSettings:
    """How the reply is made; what is None is not sent, and the server decides."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompt and of the reply."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Piece:
    """Some more of a reply; one of the last says why it ended, and one what it used."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Reply:
    """A whole reply."""

    text: str
    finish_reason: str | None
    usage: Usage | None
    model: str


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _ErrorContent(msgspec.Struct):
    message: str = "no reason given"


class _Event(msgspec.Struct):
    """One event of a stream: a chunk or an error. Other servers send more, which is skipped."""

    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: _ErrorContent | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorContent


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class ChatClient:
    """Speaks with one server; holds no connection between requests.

    Args:
        address: path of a Unix socket, or a URL with or without its ``/v1``.
        token: sent as bearer token, if any.
        model: which to ask for; None takes the first that the server has.
    """

    def __init__(
        self, address: Path | str, *, token: str | None = None, model: str | None = None
    ) -> None:
        self._socket = address if isinstance(address, Path) else None
        self._base_url = "http://workbench/v1" if self._socket else _with_version(str(address))
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._model = model

    @property
    def where(self) -> str:
        """The server's address, for messages."""
        return str(self._socket or self._base_url)

    async def model(self) -> str:
        """Give the name of the model that answers.

        Raises:
            ControlError: the server cannot be reached.
            ChatError: the server refuses, or serves no model.
        """
        if self._model is None:
            async with self._connected() as http:
                answer = await http.get("/models")
                await self._check(answer)
                names = [entry.id for entry in _decode(answer.content, _ModelList, self.where).data]
            if not names:
                raise ChatError(
                    "it serves no model", where=self.where, remedy="load one, or name another URL"
                )
            self._model = names[0]
        return self._model

    async def stream(
        self, turns: Sequence[ChatTurn], settings: ChatSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Give the reply as it grows; use it in ``contextlib.aclosing``.

        Args:
            turns: the conversation up to the reply.
            settings: how to make it.

        Raises:
            ControlError: the server cannot be reached.
            ChatError: it refuses the request, fails while it answers, or goes away.
        """
        chosen = asdict(settings or ChatSettings())
        body: dict[str, Any] = {
            "model": await self.model(),
            "messages": [asdict(turn) for turn in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{key: value for key, value in chosen.items() if value is not None},
        }
        has_ended = False
        async with (
            self._connected() as http,
            http.stream("POST", "/chat/completions", json=body) as answer,
        ):
            await self._check(answer)
            async for line in answer.aiter_lines():
                content = line.removeprefix("data:").strip()
                if not line.startswith("data:") or not content:
                    continue
                if content == "[DONE]":
                    has_ended = True
                    break
                yield self._piece(content)
        if not has_ended:
            raise ChatError("the answer ended in the middle", where=self.where, remedy="ask again")

    async def reply(self, turns: Sequence[ChatTurn], settings: ChatSettings | None = None) -> Reply:
        """Wait for the whole reply; raises as ``stream`` does."""
        text, finish_reason, usage = "", None, None
        async with aclosing(self.stream(turns, settings)) as pieces:
            async for piece in pieces:
                text += piece.text
                finish_reason = piece.finish_reason or finish_reason
                usage = piece.usage or usage
        return Reply(text, finish_reason, usage, await self.model())

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._socket is not None:
            check_folder(self._socket.parent)
            transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        else:
            transport = httpx.AsyncHTTPTransport()
        try:
            async with httpx.AsyncClient(
                transport=transport,
                base_url=self._base_url,
                headers=self._headers,
                timeout=_TIMEOUT,
            ) as http:
                yield http
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise ControlError(
                f"no server can be reached: {error}",
                where=self.where,
                remedy="start one: workbench serve -m MODEL",
            ) from error
        except httpx.HTTPError as error:
            raise ChatError(
                f"the connection broke: {error or type(error).__name__}",
                where=self.where,
                remedy="see whether the server still runs, then ask again",
            ) from error

    async def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        content = await answer.aread()
        try:
            message = msgspec.json.decode(content, type=_ErrorAnswer).error.message
        except msgspec.DecodeError:
            message = answer.reason_phrase
        remedy = "change the request"
        if answer.status_code in (401, 403):
            remedy = "set WORKBENCH_TOKEN to the server's token"
        elif answer.status_code >= 500:
            remedy = "see the server's log"
        raise ChatError(f"{answer.status_code}, {message}", where=self.where, remedy=remedy)

    def _piece(self, content: str) -> Piece:
        event = _decode(content.encode(), _Event, self.where)
        if event.error is not None:
            raise ChatError(event.error.message, where=self.where, remedy="see the server's log")
        choice = event.choices[0] if event.choices else _Choice()
        return Piece(choice.delta.content or "", choice.finish_reason, event.usage)


def _with_version(url: str) -> str:
    """Add ``/v1`` where a URL has no path: people paste either."""
    parsed = httpx.URL(url)
    return url if parsed.path.strip("/") else f"{url.rstrip('/')}/v1"


def _decode(content: bytes, kind: Any, where: str) -> Any:  # noqa: ANN401 - any answer
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ChatError(
            f"the answer is not of OpenAI's form: {error}",
            where=where,
            remedy="name an OpenAI-compatible server",
        ) from error
