"""Replies on their way into one response: whole or as events, as a chat's or as a text's.

Knows the forms of OpenAI's protocol and asyncio, no model. Invariant: a response whose client has
gone, or that ends for any reason, cancels every reply that was made for it.
"""

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from workbench.errors import WorkbenchError
from workbench.inference.openai_types import (
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    Choice,
    ChunkChoice,
    Delta,
    ErrorAnswer,
    ErrorContent,
    ReplyMessage,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TopLogprob,
    Usage,
)
from workbench.inference.prompt import PromptWriter
from workbench.inference.reply import FinishReason, Generation, Piece
from workbench.inference.sampling import TokenLogprob

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

NOTICE_HEADER = "x-workbench-notice"


class Answer(ABC):
    """The replies to one request.

    Args:
        generations: one for each choice, in order of their index.
        model: its name.
        prompts: spells tokens.
        num_prompt_tokens: of all prompts, each counted once.
        notice: what was left out of the prompt, for people.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        model: str,
        prompts: PromptWriter,
        num_prompt_tokens: int,
        notice: str | None = None,
    ) -> None:
        self._generations = generations
        self._prompts = prompts
        self._num_prompt_tokens = num_prompt_tokens
        self._notice = notice
        self._head: dict[str, Any] = {
            "id": f"{self._prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @property
    @abstractmethod
    def _prefix(self) -> str:
        """What ids begin with."""

    @abstractmethod
    def _completion(self, replies: Sequence["_Whole"]) -> BaseModel:
        """Write the whole answer."""

    @abstractmethod
    def _first_choices(self) -> list[dict[str, Any]]:
        """Give the choices of the events before any text."""

    @abstractmethod
    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Write what a piece adds to a choice."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return {} if self._notice is None else {NOTICE_HEADER: self._notice}

    async def whole(self, receive: Receive) -> Response:
        """Wait for all replies.

        Raises:
            GenerationError: one of them failed.
        """
        replies = [_Whole() for _ in self._generations]
        async with (
            _cancelled_with_client(self._generations, receive),
            aclosing(merged(self._generations)) as pieces,
        ):
            async for index, piece in pieces:
                reply = replies[index]
                reply.text += piece.text
                reply.logprobs += piece.logprobs
                reply.finish_reason = piece.finish_reason
        if any(reply.finish_reason is None for reply in replies):
            # The client has gone: nobody reads this.
            return Response(status_code=499)
        content = self._completion(replies).model_dump()
        if self._notice is None:
            content.pop("notice")
        return JSONResponse(content, headers=self.headers)

    async def events(self, receive: Receive, *, with_usage: bool) -> AsyncIterator[str]:
        """Give the server-sent events of the replies as they grow."""
        async with _cancelled_with_client(self._generations, receive):
            for number, choice in enumerate(self._first_choices()):
                notice = self._notice if number == 0 else None
                yield self._event([choice], **({"notice": notice} if notice else {}))
            try:
                async with aclosing(merged(self._generations)) as pieces:
                    async for index, piece in pieces:
                        if piece.text or piece.logprobs:
                            shown = Piece(piece.text, piece.num_tokens, None, piece.logprobs)
                            yield self._event([self._choice(index, shown)])
                        if piece.finish_reason is not None:
                            last = Piece("", piece.num_tokens, piece.finish_reason)
                            yield self._event([self._choice(index, last)])
            except WorkbenchError as error:
                # The status has gone out already: the error is an event, and no [DONE] follows.
                answer = ErrorAnswer(error=ErrorContent(message=str(error), type="server_error"))
                yield f"data: {answer.model_dump_json()}\n\n"
                return
            if with_usage:
                yield self._event([], usage=self._usage().model_dump())
            yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: object) -> str:
        content = {**self._head, "object": self._object, "choices": choices, **more}
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

    @property
    @abstractmethod
    def _object(self) -> str:
        """What an event says it is."""

    def _usage(self) -> Usage:
        num_made = sum(generation.num_tokens for generation in self._generations)
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=num_made,
            total_tokens=self._num_prompt_tokens + num_made,
        )


@dataclass
class _Whole:
    """A reply as far as it has come."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class ChatAnswer(Answer):
    """Replies to a conversation."""

    _prefix = "chatcmpl"
    _object = "chat.completion.chunk"

    def _completion(self, replies: Sequence[_Whole]) -> BaseModel:
        choices = [
            Choice(
                index=index,
                message=ReplyMessage(content=reply.text),
                finish_reason=reply.finish_reason or "length",
                logprobs=self._logprobs(index, reply.logprobs),
            )
            for index, reply in enumerate(replies)
        ]
        return ChatCompletion(
            **self._head, choices=choices, usage=self._usage(), notice=self._notice
        )

    def _first_choices(self) -> list[dict[str, Any]]:
        delta = Delta(role="assistant", content="")
        return [
            _without_gaps(ChunkChoice(index=index, delta=delta))
            for index in range(len(self._generations))
        ]

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return _without_gaps(
            ChunkChoice(
                index=index,
                delta=Delta(content=piece.text or None),
                finish_reason=piece.finish_reason,
                logprobs=self._logprobs(index, piece.logprobs) if piece.logprobs else None,
            )
        )

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if self._generations[index].sampling.num_top is None:
            return None
        content = []
        for entry in entries:
            top = entry.top
            own, *texts = self._prompts.spelled([entry.token_id, *(number for number, _ in top)])
            likely = [
                TopLogprob(token=text, logprob=log, bytes=_bytes_of(text))
                for text, (_, log) in zip(texts, top, strict=True)
            ]
            content.append(
                ChatTokenLogprob(
                    token=own, logprob=entry.logprob, bytes=_bytes_of(own), top_logprobs=likely
                )
            )
        return ChatLogprobs(content=content)


class TextAnswer(Answer):
    """Continuations of one or more texts.

    Args:
        generations: as in ``Answer``.
        model: its name.
        prompts: spells tokens.
        num_prompt_tokens: of all prompts.
        notice: what was left out.
        echoes: for each choice the prompt, which stands before what is made; "" where it does not.
    """

    _prefix = "cmpl"
    _object = "text_completion"

    def __init__(
        self,
        generations: Sequence[Generation],
        model: str,
        prompts: PromptWriter,
        num_prompt_tokens: int,
        notice: str | None = None,
        *,
        echoes: Sequence[str],
    ) -> None:
        super().__init__(generations, model, prompts, num_prompt_tokens, notice)
        self._echoes = list(echoes)
        self._is_echoed = [not echo for echo in echoes]
        self._offsets = [0 for _ in echoes]

    def _completion(self, replies: Sequence[_Whole]) -> BaseModel:
        choices = []
        for index, reply in enumerate(replies):
            piece = Piece(reply.text, 0, reply.finish_reason, reply.logprobs)
            choices.append(self._text_choice(index, piece))
        return TextCompletion(
            **self._head, choices=choices, usage=self._usage(), notice=self._notice
        )

    def _first_choices(self) -> list[dict[str, Any]]:
        return []

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._text_choice(index, piece).model_dump()

    def _text_choice(self, index: int, piece: Piece) -> TextChoice:
        echo = "" if self._is_echoed[index] else self._echoes[index]
        of_prompt = bool(echo) and self._generations[index].sampling.of_prompt
        self._is_echoed[index] = True
        logprobs = None
        if self._generations[index].sampling.num_top is not None:
            logprobs = self._logprobs(index, piece.logprobs, echo=echo, of_prompt=of_prompt)
        return TextChoice(
            index=index,
            text=echo + piece.text,
            finish_reason=piece.finish_reason,
            logprobs=logprobs if logprobs is None or logprobs.tokens else None,
        )

    def _logprobs(
        self, index: int, entries: Sequence[TokenLogprob], *, echo: str, of_prompt: bool
    ) -> TextLogprobs:
        generation = self._generations[index]
        listed: list[tuple[int, TokenLogprob | None]] = []
        if of_prompt:
            listed.append((generation.prompt_ids[0], None))
            listed += [(entry.token_id, entry) for entry in generation.prompt_logprobs]
        elif echo:
            self._offsets[index] += len(echo)
        listed += [(entry.token_id, entry) for entry in entries]
        found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token_id, entry in listed:
            top = () if entry is None else entry.top
            own, *texts = self._prompts.spelled([token_id, *(number for number, _ in top)])
            found.tokens.append(own)
            found.token_logprobs.append(None if entry is None else entry.logprob)
            found.top_logprobs.append(
                None
                if entry is None
                else {text: log for text, (_, log) in zip(texts, top, strict=True)}
            )
            found.text_offset.append(self._offsets[index])
            self._offsets[index] += len(own)
        return found


async def merged(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Give the pieces of several replies as they come, each with the place of its reply.

    Raises:
        GenerationError: the first that failed; the others are left as they are.
    """
    if len(generations) == 1:
        async with aclosing(generations[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | WorkbenchError | None] = asyncio.Queue()

    async def follow(index: int, generation: Generation) -> None:
        try:
            async for piece in generation.pieces():
                arrived.put_nowait((index, piece))
        except WorkbenchError as error:
            arrived.put_nowait(error)
        arrived.put_nowait(None)

    tasks = [asyncio.create_task(follow(*pair)) for pair in enumerate(generations)]
    num_open = len(tasks)
    try:
        while num_open:
            found = await arrived.get()
            if found is None:
                num_open -= 1
            elif isinstance(found, WorkbenchError):
                raise found
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _cancelled_with_client(
    generations: Sequence[Generation], receive: Receive
) -> AsyncIterator[None]:
    """Cancel the replies when their client disconnects, or the response ends for any reason."""

    def cancel_all() -> None:
        for generation in generations:
            generation.cancel()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel_all()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        cancel_all()
        watching.cancel()


def _without_gaps(choice: ChunkChoice) -> dict[str, Any]:
    content = choice.model_dump(exclude_none=True)
    content.setdefault("finish_reason", None)
    return content


def _bytes_of(text: str) -> list[int] | None:
    """Give a token's bytes; None for a part of a character, whose bytes the text does not tell."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
