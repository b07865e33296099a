"""OpenAI's protocol: what may be asked, and who may ask it.

Knows how to speak, not how to generate, nor the sockets it speaks on. Invariants: ``/health``
always answers; a reply whose client has gone is cancelled; a prompt is never logged, only its
length.
"""

import asyncio
import bisect
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workbench import __version__
from workbench.errors import DataError, RefusedError, WorkbenchError
from workbench.inference.answers import Answer, ChatAnswer, Receive, TextAnswer
from workbench.inference.openai_types import (
    ChatRequest,
    CompletionRequest,
    ErrorAnswer,
    ErrorContent,
    ModelEntry,
    ModelList,
    describe_validation,
)
from workbench.inference.prompt import PromptWriter
from workbench.inference.reply import ReplyMaker
from workbench.inference.sampling import Sampling

Body = TypeVar("Body", ChatRequest, CompletionRequest)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Far more than any context holds. From the second on, reading takes longer than a token.
_MOST_BODY_BYTES = 32 << 20
_LONG_BODY_BYTES = 32 << 10
_BODY_SECONDS = 60.0
# Texts with more characters, and with more of them for each token of the context, are not even
# turned into tokens: that alone would take minutes.
_MOST_CHARACTERS, _CHARACTERS_PER_TOKEN = 1 << 20, 64


@dataclass(frozen=True)
class ServedModel:
    """What the server offers: a name, a context of so many tokens, and how to write and read.

    ``truncates``: the oldest part of a prompt that is too long is left out, with a notice; else
    the request is refused.
    """

    name: str
    context: int
    engine: ReplyMaker
    prompts: PromptWriter
    created: int
    truncates: bool = False


class _RequestError(Exception):
    """A request that is answered with an error of OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def create_app(models: Sequence[ServedModel], token: str | None) -> AsgiApp:
    """Make the application.

    Args:
        models: at least one, loaded; the first answers requests that name none.
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
        engines = [served.engine for served in models]
        return {
            "status": "ok",
            "model": models[0].name,
            "models": [served.name for served in models],
            "context": models[0].context,
            "busy": any(engine.is_busy for engine in engines),
            "running": sum(engine.num_running for engine in engines),
            "waiting": sum(engine.num_waiting for engine in engines),
            "tokens_made": sum(engine.num_tokens_made for engine in engines),
        }

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[_model_entry(served) for served in models])

    @app.get("/v1/models/{name:path}")
    async def look_up_model(name: str) -> ModelEntry:
        return _model_entry(_model_named(name, models))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body, is_long = await _body(ChatRequest, request)
        served = _model_named(body.model, models)
        fitted = await _aside(is_long, _fitted_chat, body, served)
        sampling = _chat_sampling(body, len(fitted.ids), served)
        generations = served.engine.submit_all(
            [(fitted.ids, rules) for rules in _copies(sampling, body.n or 1)]
        )
        answer = ChatAnswer(
            generations, served.name, served.prompts, len(fitted.ids), fitted.notice
        )
        return await _responded(answer, body, request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body, is_long = await _body(CompletionRequest, request)
        served = _model_named(body.model, models)
        wanted: list[tuple[list[int], Sampling]] = []
        echoes, notices, num_prompt_tokens = [], [], 0
        for prompt in body.prompt:
            fitted = await _aside(is_long, _fitted_text, prompt, body, served)
            num_prompt_tokens += len(fitted.ids)
            sampling = _text_sampling(body, len(fitted.ids), served)
            rules = _copies(sampling, body.n or 1)
            wanted += [(fitted.ids, rule) for rule in rules]
            echoes += [_echo(prompt, fitted, served) if body.echo else ""] * len(rules)
            notices += [fitted.notice] if fitted.notice else []
        answer = TextAnswer(
            served.engine.submit_all(wanted),
            served.name,
            served.prompts,
            num_prompt_tokens,
            notices[0] if notices else None,
            echoes=echoes,
        )
        return await _responded(answer, body, request)

    return _TokenGate(app, token)


def _model_entry(served: ServedModel) -> ModelEntry:
    return ModelEntry(id=served.name, created=served.created, context_length=served.context)


def _model_named(name: str | None, models: Sequence[ServedModel]) -> ServedModel:
    """Find the model that a request wants; the first, where it names none."""
    if name is None:
        return models[0]
    found = next((served for served in models if served.name == name), None)
    if found is None:
        names = " or ".join(repr(served.name) for served in models)
        raise _RequestError(
            404,
            f"the model {name!r} is not served here; ask for {names}",
            param="model",
            code="model_not_found",
        )
    return found


# ---- bodies --------------------------------------------------------------------------------------


async def _body(kind: type[Body], request: Request) -> tuple[Body, bool]:
    """Read the body; say beside it whether it is so long that work on it would hold others up.

    FastAPI would read it too, with three times the code on the way to a first token.

    Raises:
        _RequestError: it is too large, no JSON, or not what may be asked.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > _MOST_BODY_BYTES:
                    raise _RequestError(
                        413, f"the body has more than {_MOST_BODY_BYTES >> 20} MiB; shorten it"
                    )
    except ClientDisconnect:
        raise _RequestError(400, "the body ends early") from None
    except TimeoutError:
        raise _RequestError(408, "the body takes too long to arrive; send it again") from None
    is_long = len(content) > _LONG_BODY_BYTES
    return await _aside(is_long, _parsed, kind, content), is_long


def _parsed(kind: type[Body], content: bytearray) -> Body:
    try:
        return kind.model_validate(json.loads(content))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        message, param, code = describe_validation(problems)
        raise _RequestError(400, message, param=param, code=code) from error
    except (ValueError, RecursionError) as error:
        raise _RequestError(
            400, f"the body is no JSON that can be read: {error}", code="invalid_json"
        ) from error


async def _aside(
    is_long: bool,
    work: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Result:
    """Do what may take seconds in a thread, and what takes none where we are."""
    if is_long:
        return await asyncio.to_thread(work, *arguments, **named)
    return work(*arguments, **named)


# ---- prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fitted:
    """A prompt that leaves room for a reply, and what was left out of it."""

    ids: list[int]
    notice: str | None = None


def _fitted_chat(body: ChatRequest, served: ServedModel) -> _Fitted:
    turns = [(message.role, message.text) for message in body.messages]

    def written(left_out: int) -> list[int]:
        kept = turns[:num_system] + turns[num_system + left_out :]
        try:
            return served.prompts.ids(kept)
        except DataError as error:
            raise _RequestError(
                400, f"the template refuses these messages: {error.what}", param="messages"
            ) from error

    _check_characters("messages", sum(len(text) for _, text in turns), served)
    num_system = next((at for at, (role, _) in enumerate(turns) if role != "system"), len(turns))
    ids = written(0)
    limit = _longest_prompt(body, body.max_completion_tokens or body.max_tokens, served)
    if len(ids) <= limit:
        return _Fitted(ids)
    if is_truncated(body, served):
        # A conversation goes on with a person's turn; the last of them is what is asked.
        cuts = [
            at for at in range(1, len(turns) - num_system) if turns[num_system + at][0] == "user"
        ]
        at = bisect.bisect_left(cuts, True, key=lambda cut: len(written(cut)) <= limit)
        left_out = cuts[min(at, len(cuts) - 1)] if cuts else 0
        shorter = written(left_out)
        if left_out and len(shorter) < served.context:
            return _Fitted(
                shorter,
                f"the oldest {left_out} turns ({len(ids) - len(shorter):,} tokens) were left out:"
                f" the context holds {served.context:,} tokens with the reply",
            )
    if len(ids) < served.context:
        return _Fitted(ids)
    raise _too_long("messages", len(ids), served, "shorten the conversation")


def _fitted_text(prompt: str | list[int], body: CompletionRequest, served: ServedModel) -> _Fitted:
    if isinstance(prompt, str):
        _check_characters("prompt", len(prompt), served)
        ids = served.prompts.text_ids(prompt)
    else:
        ids = prompt
        if max(ids) >= served.prompts.vocabulary_size:
            raise _RequestError(
                400,
                f"the vocabulary ends at {served.prompts.vocabulary_size - 1}, and"
                f" {max(ids)} is no token",
                param="prompt",
            )
    if not ids:
        raise _RequestError(
            400, "an empty text has no token to continue; write something", param="prompt"
        )
    limit = _longest_prompt(body, body.max_tokens, served)
    if len(ids) <= limit:
        return _Fitted(ids)
    if is_truncated(body, served):
        # What every text begins with is no part of it.
        begin = ids[:1] if ids[0] == served.prompts.begin_id else []
        kept = [*begin, *ids[len(begin) - limit :]]
        return _Fitted(
            kept,
            f"the first {len(ids) - limit:,} tokens were left out: the context holds"
            f" {served.context:,} tokens with the reply",
        )
    raise _too_long("prompt", len(ids), served, "shorten it")


def _echo(prompt: str | list[int], fitted: _Fitted, served: ServedModel) -> str:
    """Give the prompt as it was written, or what is left of it."""
    if isinstance(prompt, str) and fitted.notice is None:
        return prompt
    return served.prompts.decode(fitted.ids)


def _check_characters(param: str, number: int, served: ServedModel) -> None:
    if number > max(_MOST_CHARACTERS, _CHARACTERS_PER_TOKEN * served.context):
        raise _RequestError(
            400,
            f"the {param} has {number:,} characters, many times what the context of"
            f" {served.context:,} tokens holds; shorten it",
            param=param,
            code="context_length_exceeded",
        )


def is_truncated(body: ChatRequest | CompletionRequest, served: ServedModel) -> bool:
    """Say whether a prompt that is too long is cut, as the request or else the server says."""
    if body.truncation is not None:
        return body.truncation == "auto"
    return served.truncates


def _longest_prompt(
    body: ChatRequest | CompletionRequest, max_tokens: int | None, served: ServedModel
) -> int:
    """Give the tokens a prompt may have: one more has room, and if it is cut, a reply."""
    if max_tokens == 0:
        return served.context
    if not is_truncated(body, served):
        return served.context - 1
    wanted = served.context // 4 if max_tokens is None else max_tokens
    return served.context - max(1, min(wanted, served.context // 2))


def _too_long(param: str, num_tokens: int, served: ServedModel, remedy: str) -> _RequestError:
    return _RequestError(
        400,
        f"the {param} has {num_tokens:,} tokens, the context holds {served.context:,} with the"
        f' reply; {remedy}, or let what is oldest be left out: "truncation": "auto"',
        param=param,
        code="context_length_exceeded",
    )


# ---- rules ---------------------------------------------------------------------------------------


def _chat_sampling(body: ChatRequest, num_prompt_tokens: int, served: ServedModel) -> Sampling:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise _RequestError(
            400, "give max_tokens or max_completion_tokens, not both", param="max_tokens"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise _RequestError(400, "wants logprobs: true beside it", param="top_logprobs")
    return Sampling(
        max_tokens=_room(body.max_completion_tokens or body.max_tokens, num_prompt_tokens, served),
        stop_ids=served.prompts.stop_ids | frozenset(body.stop_token_ids or ()),
        stop_strings=(*served.prompts.stop_strings, *(body.stop or ())),
        num_top=body.top_logprobs or 0 if body.logprobs else None,
        **_chosen(body),
    )


def _text_sampling(
    body: CompletionRequest, num_prompt_tokens: int, served: ServedModel
) -> Sampling:
    return Sampling(
        max_tokens=_room(body.max_tokens, num_prompt_tokens, served),
        stop_ids=served.prompts.end_ids | frozenset(body.stop_token_ids or ()),
        stop_strings=(*served.prompts.added_stops, *(body.stop or ())),
        num_top=body.logprobs,
        of_prompt=body.echo and body.logprobs is not None,
        **_chosen(body),
    )


def _room(max_tokens: int | None, num_prompt_tokens: int, served: ServedModel) -> int:
    room = served.context - num_prompt_tokens
    return room if max_tokens is None else min(max_tokens, room)


def _chosen(body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    return body.model_dump(
        include={"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"},
        exclude_none=True,
    )


def _copies(sampling: Sampling, number: int) -> list[Sampling]:
    """Ask for so many replies: the first has the seed as given, the others those behind it."""
    if sampling.seed is None:
        return [sampling] * number
    return [replace(sampling, seed=sampling.seed + copy) for copy in range(number)]


async def _responded(
    answer: Answer, body: ChatRequest | CompletionRequest, request: Request
) -> Response:
    """Begin to answer, as events or at once."""
    if body.stream:
        return StreamingResponse(
            answer.events(request.receive, with_usage=body.wants_usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", **answer.headers},
        )
    return await answer.whole(request.receive)


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(_RequestError)
    async def refuse(_: Request, error: _RequestError) -> Response:
        return _error_response(
            error.status, error.message, "invalid_request_error", error.param, error.code
        )

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
