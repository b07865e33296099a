"""One reply: what was asked, its tokens as they are made, and its text on the way to who asked.

Knows ids, texts and stops, neither model nor HTTP. Invariant: a piece never holds half a character
or a part of what may become a stop, and a token's log probability comes with the token's text.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from workbench.errors import WorkbenchError
from workbench.inference.detokenizer import Detokenizer
from workbench.inference.sampling import Sampling, TokenLogprob
from workbench.inference.stop import StopDetector, TextPart

FinishReason = Literal["stop", "length"]

# No eye sees more pieces than a hundred in a second, and each costs an event of HTTP.
_SECONDS_BETWEEN = 0.01


@dataclass(frozen=True)
class Piece:
    """Some more text of a reply; the last piece has a finish reason.

    ``num_tokens`` counts what the model has made so far, the stop token included. ``logprobs`` are
    those of the tokens whose text begins in this piece, where they were asked for.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationError(WorkbenchError):
    """A reply that could not be completed."""


class Generation:
    """One reply on its way from the engine's thread to the event loop that asked for it."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.num_tokens = 0
        """Tokens made so far, the stop token included; counted by the engine's thread."""
        self.prompt_logprobs: list[TokenLogprob] = []
        """Of the prompt from its second token on, where asked for; there with the first piece."""
        self._is_cancelled = threading.Event()
        self._when_cancelled: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Piece | WorkbenchError] = deque()
        self._news = asyncio.Event()
        self._is_waited_for = False

    @property
    def is_cancelled(self) -> bool:
        """Nobody waits for this reply any more."""
        return self._is_cancelled.is_set()

    def when_cancelled(self, act: Callable[[], None]) -> None:
        """Say what to do at the first ``cancel``, where nobody looks at every token."""
        self._when_cancelled = act

    def cancel(self) -> None:
        """Stop within one token; ``pieces`` ends. Call it from the event loop, also twice."""
        if self.is_cancelled:
            return
        self._is_cancelled.set()
        self._news.set()
        if self._when_cancelled is not None:
            self._when_cancelled()

    def put(self, piece: Piece | WorkbenchError) -> None:
        """Hand a piece, or what went wrong, to the event loop; called by the engine's thread."""
        self._arrived.append(piece)
        is_last = isinstance(piece, WorkbenchError) or piece.finish_reason is not None
        # Waking the loop costs as much as a small model's token does: not for each of them.
        if self._is_waited_for or is_last:
            self._is_waited_for = False
            self._loop.call_soon_threadsafe(self._news.set)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Give the pieces as they come, the last one with a finish reason.

        The first comes at once; what is made faster than ``_SECONDS_BETWEEN`` comes together.
        After ``cancel`` it ends without a last one.

        Raises:
            GenerationError: the model failed, or the server is ending.
        """
        while not self.is_cancelled:
            self._is_waited_for = True
            if not self._arrived:
                await self._news.wait()
            self._is_waited_for = False
            self._news.clear()
            arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
            pieces = [piece for piece in arrived if isinstance(piece, Piece)]
            if self.is_cancelled:
                return
            if pieces:
                yield _joined(pieces)
                if pieces[-1].finish_reason is not None:
                    return
            if len(pieces) < len(arrived):
                raise next(piece for piece in arrived if isinstance(piece, WorkbenchError))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _SECONDS_BETWEEN)


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        pieces[-1].num_tokens,
        pieces[-1].finish_reason,
        tuple(entry for piece in pieces for entry in piece.logprobs),
    )


class ReplyMaker(Protocol):
    """What the server wants of an engine."""

    @property
    def device(self) -> str:
        """Where the model is, once loaded."""

    @property
    def dtype(self) -> str:
        """Precision of the weights, once loaded."""

    @property
    def is_busy(self) -> bool:
        """A reply is being generated at this moment."""

    @property
    def num_running(self) -> int:
        """Replies that are being generated at this moment."""

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""

    @property
    def num_tokens_made(self) -> int:
        """Tokens of all replies since the start."""

    async def start(self) -> None:
        """Load the model; return when it can generate."""

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[Generation]:
        """Queue several replies, all of them or none; call from the loop that reads them."""

    def cancel_all(self) -> None:
        """End all replies, each with an error; take no more."""

    def close(self) -> bool:
        """End everything; tell whether it has ended."""


class ReplyText:
    """Turns the tokens of one generation into its pieces, and finds where it ends.

    Args:
        generation: takes the pieces.
        decode: ids to text, special tokens left out.
        special_texts: the text of each special token by id.
    """

    def __init__(
        self,
        generation: Generation,
        decode: Callable[[Sequence[int]], str],
        special_texts: Mapping[int, str],
    ) -> None:
        self._generation = generation
        self._detokenizer = Detokenizer(decode, special_texts)
        sampling = generation.sampling
        self._stop = StopDetector(sampling.stop_ids, sampling.stop_strings)
        self._num_said = 0
        # Log probabilities of tokens whose text is held back, with where in the text it begins.
        self._held: list[tuple[int, TokenLogprob]] = []
        self.how_it_ended: str | None = None

    @property
    def has_ended(self) -> bool:
        """Nothing more may be taken."""
        return self.how_it_ended is not None

    def begin(self) -> None:
        """Say that the prompt has been read; a reply that wants no token ends here."""
        if self._generation.sampling.max_tokens == 0:
            self._send("", "length")

    def take(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the next token, and pass on the text that is safe to show."""
        generation = self._generation
        generation.num_tokens += 1
        if self._stop.is_stop_id(token_id):
            text = self._stop.finish(self._said(self._detokenizer.finish()), stop_id=token_id)
        else:
            if logprob is not None:
                self._held.append((self._num_said, logprob))
            text = self._stop.feed(self._said(self._detokenizer.feed(token_id)))
        if self._stop.has_stopped:
            self._send(text, "stop")
        elif generation.num_tokens >= generation.sampling.max_tokens:
            # Text that was held back may turn out to hold a stop string after all.
            text += self._stop.finish(self._said(self._detokenizer.finish()))
            self._send(text, "stop" if self._stop.has_stopped else "length", is_whole=True)
        else:
            self._send(text, None)

    def fail(self, error: WorkbenchError) -> None:
        """End without a last piece."""
        self.how_it_ended = "failed"
        self._generation.put(error)

    def _said(self, parts: list[TextPart]) -> list[TextPart]:
        self._num_said += sum(len(part.text) for part in parts)
        return parts

    def _send(
        self, text: str, finish_reason: FinishReason | None, *, is_whole: bool = False
    ) -> None:
        if not text and finish_reason is None:
            return
        num_given = self._stop.num_given
        is_whole = is_whole and not self._stop.has_stopped
        ready = [entry for begin, entry in self._held if begin < num_given or is_whole]
        del self._held[: len(ready)]
        if finish_reason is not None:
            self.how_it_ended = "stopped" if finish_reason == "stop" else "cut at its limit"
        self._generation.put(Piece(text, self._generation.num_tokens, finish_reason, tuple(ready)))
