"""OpenAI's chat protocol over HTTP: a Unix socket for this user, TCP for holders of the token.

Knows how to speak, not how to generate. Invariants: ``/health`` always answers; a reply whose
client has gone is cancelled; a prompt is never logged, only its length.
"""

import asyncio
import hmac
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from workbench import __version__
from workbench.control.address import peer_uid
from workbench.errors import DataError, RefusedError, WorkbenchError
from workbench.inference.generate import Engine
from workbench.inference.openai_types import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
    ErrorAnswer,
    ErrorContent,
    ModelEntry,
    ModelList,
    ReplyMessage,
    Usage,
)
from workbench.inference.prompt import PromptWriter
from workbench.inference.reply import FinishReason, Generation
from workbench.inference.sampling import Sampling

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class ServedModel:
    """What the server offers: a name, a context of so many tokens, and how to write and read."""

    name: str
    context: int
    engine: Engine
    prompts: PromptWriter
    created: int


class _RequestError(Exception):
    """A request that is answered with an error of OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def create_app(served: ServedModel, token: str | None) -> AsgiApp:
    """Make the application.

    Args:
        served: the model, loaded.
        token: what requests over TCP must bear, or None where only a Unix socket is served. There
            the peer's user has been checked and no token is asked for.
    """
    app = FastAPI(
        title="workbench", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )
    _add_error_handlers(app)

    @app.get("/health")
    async def health(request: Request) -> dict[str, object]:
        # Anybody may ask whether the server lives, but not what it serves.
        if not is_admitted(request.scope, token):
            return {"status": "ok"}
        engine = served.engine
        return {
            "status": "ok",
            "model": served.name,
            "context": served.context,
            "busy": engine.is_busy,
            "waiting": engine.num_waiting,
            "tokens_made": engine.num_tokens_made,
        }

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[_model_entry(served)])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelEntry:
        _check_model_name(name, served)
        return _model_entry(served)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        _check_model_name(body.model, served)
        prompt_ids = _prompt_ids(body, served)
        generation = served.engine.submit(prompt_ids, _sampling(body, len(prompt_ids), served))
        answer = _Answer(generation, served.name)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(
                answer.events(request.receive, with_usage),
                media_type="text/event-stream",
                headers={"cache-control": "no-cache"},
            )
        return await answer.whole(request.receive)

    return _TokenGate(app, token)


class _Answer:
    """One reply on its way into one response."""

    def __init__(self, generation: Generation, model: str) -> None:
        self._generation = generation
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self, receive: Receive) -> Response:
        """Wait for the whole reply."""
        text = ""
        async with _cancelled_with_client(self._generation, receive):
            async for piece in self._generation.pieces():
                text += piece.text
                if piece.finish_reason is not None:
                    choice = Choice(
                        message=ReplyMessage(content=text), finish_reason=piece.finish_reason
                    )
                    completion = ChatCompletion(
                        id=self._id,
                        created=self._created,
                        model=self._model,
                        choices=[choice],
                        usage=self._usage(),
                    )
                    return JSONResponse(completion.model_dump())
        # The client has gone: nobody reads this.
        return Response(status_code=499)

    async def events(self, receive: Receive, with_usage: bool) -> AsyncIterator[str]:
        """Give the server-sent events of the reply as it grows."""
        async with _cancelled_with_client(self._generation, receive):
            yield self._event(Delta(role="assistant", content=""))
            try:
                async with aclosing(self._generation.pieces()) as pieces:
                    async for piece in pieces:
                        if piece.text:
                            yield self._event(Delta(content=piece.text))
                        if piece.finish_reason is not None:
                            yield self._event(Delta(), piece.finish_reason)
            except WorkbenchError as error:
                # The status has gone out already: the error is an event, and no [DONE] follows.
                answer = ErrorAnswer(error=ErrorContent(message=str(error), type="server_error"))
                yield f"data: {answer.model_dump_json()}\n\n"
                return
            if with_usage:
                yield self._event(None, usage=self._usage())
            yield "data: [DONE]\n\n"

    def _event(
        self,
        delta: Delta | None,
        finish_reason: FinishReason | None = None,
        usage: Usage | None = None,
    ) -> str:
        choices = [] if delta is None else [ChunkChoice(delta=delta, finish_reason=finish_reason)]
        chunk = ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
        content = chunk.model_dump(exclude_none=True)
        for choice in content["choices"]:
            choice.setdefault("finish_reason", None)
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

    def _usage(self) -> Usage:
        num_prompt = len(self._generation.prompt_ids)
        num_made = self._generation.num_tokens
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_made,
            total_tokens=num_prompt + num_made,
        )


@asynccontextmanager
async def _cancelled_with_client(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Cancel the generation when its client disconnects, or the response ends for any reason."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        generation.cancel()
        watching.cancel()


def _model_entry(served: ServedModel) -> ModelEntry:
    return ModelEntry(id=served.name, created=served.created, context_length=served.context)


def _check_model_name(name: str | None, served: ServedModel) -> None:
    if name is not None and name != served.name:
        raise _RequestError(
            404,
            f"the model {name!r} is not served here; ask for {served.name!r}",
            param="model",
            code="model_not_found",
        )


def _prompt_ids(body: ChatRequest, served: ServedModel) -> list[int]:
    try:
        ids = served.prompts.ids([(message.role, message.text) for message in body.messages])
    except DataError as error:
        raise _RequestError(
            400, f"the template refuses these messages: {error.what}", param="messages"
        ) from error
    if len(ids) >= served.context:
        raise _RequestError(
            400,
            f"the messages have {len(ids):,} tokens, the context holds {served.context:,} with the"
            " reply; shorten the conversation",
            param="messages",
            code="context_length_exceeded",
        )
    return ids


def _sampling(body: ChatRequest, num_prompt_tokens: int, served: ServedModel) -> Sampling:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise _RequestError(
            400, "give max_tokens or max_completion_tokens, not both", param="max_tokens"
        )
    room = served.context - num_prompt_tokens
    chosen = body.model_dump(
        include={"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"},
        exclude_none=True,
    )
    return Sampling(
        max_tokens=min(body.max_completion_tokens or body.max_tokens or room, room),
        stop_ids=served.prompts.stop_ids | frozenset(body.stop_token_ids or ()),
        stop_strings=(*served.prompts.stop_strings, *(body.stop or ())),
        **chosen,
    )


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(_RequestError)
    async def refuse(_: Request, error: _RequestError) -> Response:
        return _error_response(
            error.status, error.message, "invalid_request_error", error.param, error.code
        )

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> Response:
        message, param, code = describe_validation(error.errors())
        return _error_response(400, message, "invalid_request_error", param, code)

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _error_response(error.status_code, message, "invalid_request_error")

    @app.exception_handler(WorkbenchError)
    async def fail(_: Request, error: WorkbenchError) -> Response:
        status = 503 if isinstance(error, RefusedError) else 500
        return _error_response(status, str(error), "server_error")

    @app.exception_handler(Exception)
    async def fail_unforeseen(_: Request, __: Exception) -> Response:
        # Starlette raises it again behind this answer, and the server logs it.
        return _error_response(500, "the server failed; see its log", "server_error")


def describe_validation(problems: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """Say everything that is wrong with a request: sentence, first parameter, code.

    Args:
        problems: pydantic's errors, with type, loc and msg.
    """
    unknown = [_parameter(problem) for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown)
        plural = "s" if len(unknown) > 1 else ""
        return (
            f"unknown parameter{plural}, not honoured here: {names}",
            unknown[0],
            ("unknown_parameter"),
        )
    messages = {_parameter(problem): problem["msg"] for problem in problems}
    sentence = "; ".join(f"{name}: {message}" for name, message in messages.items())
    return sentence, next(iter(messages), None), "invalid_value"


def _parameter(problem: Any) -> str:  # noqa: ANN401 - pydantic's error
    """Write a place in the body as clients know it: ``messages[0].role``."""
    name = ""
    for part in problem["loc"][1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else part
    return name or "body"


def _error_response(
    status: int,
    message: str,
    kind: Literal["invalid_request_error", "authentication_error", "server_error"],
    param: str | None = None,
    code: str | None = None,
) -> Response:
    content = ErrorContent(message=message, type=kind, param=param, code=code)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(ErrorAnswer(error=content).model_dump(), status, headers)


class _TokenGate:
    """Lets nothing but /health through to holders of no token, except over a Unix socket."""

    def __init__(self, app: AsgiApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["path"] == "/health"
        if is_open or is_admitted(scope, self._token):
            await self._app(scope, receive, send)
            return
        refusal = _error_response(
            401,
            "this server wants its token: Authorization: Bearer TOKEN",
            "authentication_error",
            code="invalid_api_key",
        )
        await refusal(scope, receive, send)


def is_admitted(scope: Scope, token: str | None) -> bool:
    """Tell whether a request may be answered: over a Unix socket always, else with the token."""
    _, port = scope["server"] or (None, 0)
    if port is None:
        return True
    if token is None:
        return False
    given = dict(scope["headers"]).get(b"authorization", b"")
    return hmac.compare_digest(given, b"Bearer " + token.encode())


class _CheckedProtocol(H11Protocol):
    """HTTP that hangs up on peers of a Unix socket that are other users."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the peer before a byte is read."""
        connection = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX and (uid := peer_uid(connection)) != os.getuid():
            logger.warning("refused a connection of user %d", uid)
            transport.abort()
            return
        super().connection_made(transport)


class HttpServer(uvicorn.Server):
    """Serves an application on sockets that are already bound; signals are the caller's business.

    Args:
        app: what answers.
    """

    def __init__(self, app: AsgiApp) -> None:
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
