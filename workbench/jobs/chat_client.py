"""Talk to an OpenAI-compatible server: our own over its Unix socket, any other by its URL.

Knows the protocol, not the server. Invariant: closing the iterator of ``stream`` or of
``completion`` closes the connection, and with our server that stops the generation.
"""

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec

from workbench.control.address import check_folder, serve_address
from workbench.errors import ConfigError, ControlError, WorkbenchError
from workbench.jobs.chat_settings import ChatSettings

# A reply may wait long for its turn, but whoever listens accepts at once.
_TIMEOUT = httpx.Timeout(None, connect=10.0)

# Where `workbench serve` listens when nothing else is asked for.
DEFAULT_PORT = 8000

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ChatError(WorkbenchError):
    """A request that the server refused, or could not complete."""


@dataclass(frozen=True)
class ChatTurn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the prompt and of the reply."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Piece:
    """Some more of a reply; one of the last says why it ended, and one what it used.

    ``notice`` is what our server has to say of the request, such as what of it was left out.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Reply:
    """A whole reply."""

    text: str
    finish_reason: str | None
    usage: Usage | None
    model: str
    notice: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    """A chat's choice has a delta, a completion's has a text."""

    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None


class _ErrorContent(msgspec.Struct):
    message: str = "no reason given"


class _Event(msgspec.Struct):
    """One event of a stream: a chunk or an error. Other servers send more, which is skipped."""

    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    notice: str | None = None
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

    Raises:
        ConfigError: the URL is none, or the token cannot stand in a header.
    """

    def __init__(
        self, address: Path | str, *, token: str | None = None, model: str | None = None
    ) -> None:
        self._socket = address if isinstance(address, Path) else None
        self._base_url = "http://workbench/v1" if self._socket else _with_version(str(address))
        self._headers = {"authorization": f"Bearer {_checked_token(token)}"} if token else {}
        self._model = model

    @property
    def where(self) -> str:
        """The server's address, for messages."""
        return str(self._socket or self._base_url)

    async def models(self) -> list[str]:
        """Give the names of all models that the server has.

        Raises:
            ControlError: the server cannot be reached.
            ChatError: the server refuses.
        """
        async with self._connected() as http:
            answer = await http.get("/models")
            await self._check(answer)
            return [entry.id for entry in _decode(answer.content, _ModelList, self.where).data]

    async def model(self) -> str:
        """Give the name of the model that answers.

        Raises:
            ControlError: the server cannot be reached.
            ChatError: the server refuses, or serves no model.
        """
        if self._model is None:
            names = await self.models()
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
        messages = [asdict(turn) for turn in turns]
        async with aclosing(
            self._pieces("/chat/completions", {"messages": messages}, settings)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def completion(
        self, prompt: str, settings: ChatSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Give what follows a text, without template, as it grows; use it in ``aclosing``.

        Args:
            prompt: the text to go on with; it is not part of the pieces.
            settings: how to go on.

        Raises:
            ControlError: the server cannot be reached.
            ChatError: it refuses the request, fails while it answers, or goes away.
        """
        async with aclosing(self._pieces("/completions", {"prompt": prompt}, settings)) as pieces:
            async for piece in pieces:
                yield piece

    async def reply(self, turns: Sequence[ChatTurn], settings: ChatSettings | None = None) -> Reply:
        """Wait for the whole reply; raises as ``stream`` does."""
        return await self.whole(self.stream(turns, settings))

    async def whole(
        self, stream: AsyncGenerator[Piece, None], show: Callable[[str], None] | None = None
    ) -> Reply:
        """Read a stream of this client to its end.

        Args:
            stream: what ``stream`` or ``completion`` gave.
            show: is told each piece of text as it comes.

        Raises:
            WorkbenchError: as the stream does; what has been shown stays shown.
        """
        text, finish_reason, usage, notice = "", None, None, None
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                text += piece.text
                finish_reason = piece.finish_reason or finish_reason
                usage = piece.usage or usage
                notice = piece.notice or notice
                if show is not None and piece.text:
                    show(piece.text)
        return Reply(text, finish_reason, usage, await self.model(), notice)

    async def _pieces(
        self, path: str, asked: dict[str, Any], settings: ChatSettings | None
    ) -> AsyncGenerator[Piece, None]:
        chosen = asdict(settings or ChatSettings())
        _encode(asked)  # what cannot be sent is told before anything is
        body: dict[str, Any] = {
            "model": await self.model(),
            **asked,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{key: value for key, value in chosen.items() if value is not None},
        }
        has_ended = False
        async with (
            self._connected() as http,
            http.stream(
                "POST",
                path,
                content=_encode(body),
                headers={"content-type": "application/json"},
            ) as answer,
        ):
            await self._check(answer)
            async for line in _lines(answer):
                content = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or not content:
                    continue
                if content == b"[DONE]":
                    has_ended = True
                    break
                yield self._piece(content)
        if not has_ended:
            raise ChatError("the answer ended in the middle", where=self.where, remedy="ask again")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[httpx.AsyncClient]:
        # Without a transport of ours, the proxies of the environment are used.
        transport: httpx.AsyncHTTPTransport | None = None
        if self._socket is not None:
            check_folder(self._socket.parent)
            # There is no TLS to a socket; certificates to check it by take 20 ms to read.
            transport = httpx.AsyncHTTPTransport(uds=str(self._socket), verify=False)
        elif httpx.URL(self._base_url).host in _LOOPBACK:
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
            remedy = "set WORKBENCH_TOKEN, or OPENAI_API_KEY, to the server's token"
        elif answer.status_code == 404:
            remedy = "name a model that it has, or a server that can do this"
        elif answer.status_code >= 500:
            remedy = "see the server's log"
        raise ChatError(f"{answer.status_code}, {message}", where=self.where, remedy=remedy)

    def _piece(self, content: bytes) -> Piece:
        event = _decode(content, _Event, self.where)
        if event.error is not None:
            raise ChatError(event.error.message, where=self.where, remedy="see the server's log")
        choice = event.choices[0] if event.choices else _Choice()
        text = choice.delta.content or choice.text or ""
        return Piece(text, choice.finish_reason, event.usage, event.notice)


def running_server() -> Path:
    """Give the socket of the server that ``workbench serve`` has started.

    With several, the one on the usual port is meant.

    Raises:
        ControlError: none runs, or several on other ports.
    """
    usual = serve_address(DEFAULT_PORT)
    running = [path for path in sorted(usual.parent.glob("serve-*.sock")) if _is_answered(path)]
    if usual in running or len(running) == 1:
        return usual if usual in running else running[0]
    if not running:
        raise ControlError(
            "no server runs here",
            where=str(usual),
            remedy="name a model with -m, a server with --url, or start one: workbench serve",
        )
    raise ControlError(
        f"{len(running)} servers run here: {', '.join(path.name for path in running)}",
        where=str(usual.parent),
        remedy=f"name one: --url {running[0]}",
    )


def _is_answered(address: Path) -> bool:
    """Tell a socket that is listened to from one that a killed server has left behind."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(address))
        except OSError:
            return False
    return True


def _with_version(url: str) -> str:
    """Add ``/v1`` where a URL has no path: people paste either."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(
            f"is no URL: {error}", where=url, remedy="write it as http://HOST:PORT"
        ) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("is no URL of a server", where=url, remedy="write it as http://HOST:PORT")
    return url if parsed.path.strip("/") else f"{url.rstrip('/')}/v1"


def _checked_token(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(
            "the token holds a character that no header takes",
            where="the server's token",
            remedy="set WORKBENCH_TOKEN, or OPENAI_API_KEY, to the token alone",
        )
    return token


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise ConfigError(
            "holds bytes that are no UTF-8", where="the text", remedy="convert it to UTF-8"
        ) from error


async def _lines(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Give the lines of an event stream, which end at line feeds and nowhere else.

    ``aiter_lines`` breaks them at U+2028 and U+0085 too, which a model may well say.
    """
    rest = b""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _decode(content: bytes, kind: Any, where: str) -> Any:  # noqa: ANN401 - any answer
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ChatError(
            f"the answer is not of OpenAI's form: {error}",
            where=where,
            remedy="name an OpenAI-compatible server",
        ) from error
