"""A conversation with a model: turns, and the branches that asking again and editing make.

Every turn hangs under the one it answers, so a message has as many answers as were made and an
answer as many messages as were tried after it; one of each is shown, and what is shown from the
first message on is the path that the model is told. Knows no screen and starts no server.
Invariant: the path changes at its turns from message to answer and back, whatever is edited,
dropped or shown.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workbench.errors import WorkbenchError
from workbench.jobs.chat_client import ChatTurn, Piece, Usage
from workbench.jobs.chat_settings import ChatSettings

Role = Literal["user", "assistant"]

# How an answer ended: what the server says (stop, length, …), or one of these.
STOPPED = "stopped"
BROKEN_OFF = "broken off"
EDITED = "edited"


class AnsweringClient(Protocol):
    """What a conversation needs of ``chat_client.ChatClient``."""

    def stream(
        self, turns: list[ChatTurn], settings: ChatSettings | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Give the reply as it grows."""


@dataclass(eq=False)
class Turn:
    """One message or one answer, with everything that was said after it.

    Attributes:
        role: who speaks.
        text: what is said; of an answer what has come so far.
        time: seconds since the epoch at which it began.
        before: the turn that this one answers; None begins the conversation.
        after: what was said next, each another branch.
        shown: which of ``after`` counts.
        model: name of what answered; "" of a message.
        seed: with which it was asked for, None where the server chose.
        settings: how it was asked for; None of a message.
        num_tokens: of an answer, as far as known.
        seconds: how long the answer took.
        ended: why the answer ended; "" of a message, and of an answer that is being made.
    """

    role: Role
    text: str
    time: float
    before: "Turn | None" = field(default=None, repr=False)
    after: list["Turn"] = field(default_factory=list, repr=False)
    shown: int = 0
    model: str = ""
    seed: int | None = None
    settings: ChatSettings | None = None
    num_tokens: int = 0
    seconds: float = 0.0
    ended: str = ""

    @property
    def next(self) -> "Turn | None":
        """The turn after it on the path."""
        return self.after[self.shown] if self.after else None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of an answer, None while it cannot be said."""
        return self.num_tokens / self.seconds if self.num_tokens and self.seconds > 0 else None

    @property
    def is_whole(self) -> bool:
        """The model, or the person who edited it, ended it; nothing cut it off."""
        return self.ended in ("stop", EDITED)


class Conversation:
    """Turns under a system prompt, with branches.

    Args:
        system: instruction before the first message; "" is none.
        clock: gives seconds since the epoch.
    """

    def __init__(self, system: str = "", *, clock: Callable[[], float] = time.time) -> None:
        self.id = secrets.token_hex(6)
        self.system = system
        self.usage: Usage | None = None
        """Tokens of the newest answer and of all that led to it."""
        self._clock = clock
        # Stands before the first message, and is no turn of the conversation.
        self._beginning = Turn("assistant", "", 0.0)

    # ---- the path --------------------------------------------------------------------------

    @property
    def path(self) -> list[Turn]:
        """The turns that are shown, the first message first."""
        return list(_path_behind(self._beginning))

    @property
    def last(self) -> Turn | None:
        """The turn at the end of the path."""
        path = self.path
        return path[-1] if path else None

    @property
    def question(self) -> Turn | None:
        """The last message of the path, answered or not."""
        return next((turn for turn in reversed(self.path) if turn.role == "user"), None)

    def told(self, question: Turn) -> list[ChatTurn]:
        """Give what the model is told to answer a message: system prompt, and the way to it.

        Args:
            question: a message of this conversation, on the path or not.
        """
        assert question.role == "user", question
        return [*_system_turn(self.system), *(_said(turn) for turn in self.way_to(question))]

    def way_to(self, turn: Turn) -> list[Turn]:
        """Give the turns from the first message to this one."""
        way: list[Turn] = []
        step: Turn | None = turn
        while step is not None and step is not self._beginning:
            way.append(step)
            step = step.before
        return way[::-1]

    def ways(self) -> list[list[Turn]]:
        """Give every branch from its first message to its end, in the order of their making."""
        return [self.way_to(turn) for turn in self._all() if not turn.after]

    def siblings(self, turn: Turn) -> list[Turn]:
        """Give the turns that answer the same one, this one among them."""
        return self._parent(turn).after

    # ---- saying ----------------------------------------------------------------------------

    def say(self, text: str) -> Turn:
        """Add a message at the end of the path.

        Args:
            text: what is said.

        Returns:
            The message, which has no answer yet.
        """
        last = self.last
        assert last is None or last.role == "assistant", "the last message has no answer yet"
        return self._grow(last or self._beginning, Turn("user", text, self._clock()))

    def begin_answer(self, question: Turn, *, model: str = "", seed: int | None = None) -> Turn:
        """Add an empty answer beside those that the message has, and show it."""
        assert question.role == "user", question
        self.show(question)
        return self._grow(
            question, Turn("assistant", "", self._clock(), model=model, seed=seed, ended="")
        )

    def edit(self, turn: Turn, text: str) -> Turn:
        """Say a turn in other words: a branch beside it, which is shown.

        What was said after the turn stays in its own branch. An answer that was edited counts as
        whole.

        Returns:
            The new turn.
        """
        other = Turn(turn.role, text, self._clock(), model=turn.model)
        if turn.role == "assistant":
            other.ended = EDITED
        self.show(turn)
        return self._grow(self._parent(turn), other)

    def drop(self, turn: Turn) -> None:
        """Take a turn away with everything that was said after it.

        The branch made before it is shown then, or else the one after; a message whose last answer
        goes stays, unanswered.
        """
        parent = self._parent(turn)
        place = parent.after.index(turn)
        del parent.after[place]
        if parent.shown >= place:
            parent.shown = max(parent.shown - 1, 0)
        turn.before = None

    def show(self, turn: Turn) -> None:
        """Lead the path through a turn."""
        way = self.way_to(turn)
        for before, after in zip([self._beginning, *way], way, strict=False):
            before.shown = before.after.index(after)

    def show_beside(self, turn: Turn, by: int) -> Turn:
        """Show the turn that stands so many places after this one among its siblings.

        Returns:
            The turn that is shown; at either end the one there.
        """
        siblings = self.siblings(turn)
        place = min(max(siblings.index(turn) + by, 0), len(siblings) - 1)
        self.show(siblings[place])
        return siblings[place]

    def branch(self, turn: Turn) -> "Conversation":
        """Begin another conversation with a copy of the way to a turn; this one stays as it is."""
        other = Conversation(self.system, clock=self._clock)
        end = other._beginning
        for each in self.way_to(turn):
            copy = Turn(each.role, each.text, each.time)
            copy.model, copy.seed, copy.ended = each.model, each.seed, each.ended
            copy.settings = each.settings
            copy.num_tokens, copy.seconds = each.num_tokens, each.seconds
            end = other._grow(end, copy)
        return other

    def clear(self) -> None:
        """Forget every turn; the system prompt stays, and the conversation is a new one."""
        self.id = secrets.token_hex(6)
        self.usage = None
        self._beginning = Turn("assistant", "", 0.0)

    # ---- answering -------------------------------------------------------------------------

    async def answer(
        self,
        question: Turn,
        client: AnsweringClient,
        settings: ChatSettings,
        *,
        model: str = "",
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> AsyncGenerator[Piece, None]:
        """Make one more answer to a message; use it in ``contextlib.aclosing``.

        The answer is on the path from the first piece on. Closing the iterator, or cancelling who
        reads it, stops the generation; what came stays, as ``stopped``. So it does when the answer
        breaks off, unless nothing had come: then the answer is gone, and the message stays.

        Args:
            question: the message.
            client: who is asked.
            settings: how to answer.
            model: what answers, for the record.
            stopwatch: gives seconds, from any beginning.

        Raises:
            WorkbenchError: as the client's stream does.
        """
        told = self.told(question)
        answer = self.begin_answer(question, model=model, seed=settings.seed)
        answer.settings = settings
        began = stopwatch()
        reason: str | None = None
        try:
            async with aclosing(client.stream(told, settings)) as pieces:
                async for piece in pieces:
                    answer.text += piece.text
                    answer.num_tokens += 1 if piece.text else 0
                    answer.seconds = stopwatch() - began
                    reason = piece.finish_reason or reason
                    if piece.usage is not None:
                        answer.num_tokens = piece.usage.completion_tokens
                        self.usage = piece.usage
                    yield piece
        except (GeneratorExit, asyncio.CancelledError):
            # The reason may have come already; only the goodbye of the server has not.
            answer.ended = reason or STOPPED
            raise
        except (WorkbenchError, OSError):
            answer.ended = BROKEN_OFF
            if not answer.text:
                self.drop(answer)
            raise
        answer.ended = reason or "stop"

    # ---- inside ----------------------------------------------------------------------------

    def _parent(self, turn: Turn) -> Turn:
        assert turn.before is not None, "the turn has been dropped"
        return turn.before

    def _grow(self, parent: Turn, turn: Turn) -> Turn:
        turn.before = parent
        parent.after.append(turn)
        parent.shown = len(parent.after) - 1
        return turn

    def _all(self) -> Iterator[Turn]:
        waiting = list(reversed(self._beginning.after))
        while waiting:
            turn = waiting.pop()
            yield turn
            waiting += reversed(turn.after)


def _path_behind(turn: Turn) -> Iterator[Turn]:
    after = turn.next
    while after is not None:
        yield after
        after = after.next


def _system_turn(system: str) -> list[ChatTurn]:
    return [ChatTurn("system", system)] if system.strip() else []


def _said(turn: Turn) -> ChatTurn:
    return ChatTurn(turn.role, turn.text)
