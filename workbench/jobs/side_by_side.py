"""Two models that are told the same: same prompt, settings and seed, each in its own conversation.

Where memory holds both, both answer at once. Where it is short, they answer one after the other,
each loaded when its turn comes; whoever is loaded already begins, so that a message costs one load
and not two. Invariants: when memory is short no two servers run at a time; one side's failure does
not end the other's answer; after ``close`` no server is left.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workbench.config.weight_files import find_weight_files
from workbench.errors import WorkbenchError
from workbench.jobs.chat_client import ChatClient, Piece
from workbench.jobs.chat_settings import ChatSettings
from workbench.jobs.conversation import Conversation, Turn
from workbench.jobs.fit import usable_gpus
from workbench.jobs.inference_process import Progress, Ready, spawn_server
from workbench.runs.checkpoints import checkpoint_folder
from workbench.runs.host_memory import available_host_memory

# The libraries and CUDA's own context of a process; keys and values of a conversation.
_BYTES_OF_A_SERVER = 2 << 30
_SHARE_FOR_THE_CACHE = 0.2

SIDES = (0, 1)


class Server(Protocol):
    """What a side needs of a server: ``inference_process.InferenceProcess``."""

    @property
    def ready(self) -> Ready:
        """What it serves, once it is ready."""

    @property
    def socket(self) -> Path:
        """Where it answers."""

    @property
    def model(self) -> str:
        """The name of what it serves."""

    @property
    def has_ended(self) -> bool:
        """The process is gone."""

    def updates(self) -> AsyncIterator[Progress]:
        """Give what it does until it is ready."""

    async def stop(self) -> None:
        """End it."""


Start = Callable[[Path], Awaitable[Server]]


@dataclass(frozen=True)
class Heard:
    """Something that one of the two sides did.

    Attributes:
        side: 0 or 1.
        piece: some more of its answer.
        failure: why it gives no answer, or no whole one; nothing more comes of this side.
        progress: its model is being loaded, and how far that is.
    """

    side: int
    piece: Piece | None = None
    failure: WorkbenchError | OSError | None = None
    progress: Progress | None = None


class SideBySide:
    """Two models and what has been said with each.

    Args:
        models: run, checkpoint or model folder of either side.
        at_once: both may be loaded at the same time; None looks at the memory that is free.
        system: instruction before both conversations; "" is none.
        start: starts a server, which is ready at the end of its ``updates``.
        clock: gives seconds since the epoch.
        stopwatch: gives seconds, from any beginning.
    """

    def __init__(
        self,
        models: tuple[Path, Path],
        *,
        at_once: bool | None = None,
        system: str = "",
        start: Start = spawn_server,
        clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = models
        self.conversations = (
            Conversation(system, clock=clock),
            Conversation(system, clock=clock),
        )
        self._at_once = at_once
        self._start = start
        self._stopwatch = stopwatch
        self._servers: list[Server | None] = [None, None]
        self._loading = asyncio.Lock()
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._busy: set[int] = set()

    @property
    def answers_at_once(self) -> bool | None:
        """Both are loaded together; None until the first message has decided it."""
        return self._at_once

    def is_busy(self, side: int) -> bool:
        """Whether a side still has something to say, or waits for its turn to say it."""
        return side in self._busy

    def adopt(self, side: int, server: Server) -> None:
        """Let a side use a server that is ready; it is this one's to end from here on."""
        assert self._servers[side] is None, "the side has a server"
        self._servers[side] = server

    def release(self, side: int) -> Server | None:
        """Take a side's server away from this one, ``close`` no longer ends it; None: no server."""
        server, self._servers[side] = self._servers[side], None
        return server if server is not None and not server.has_ended else None

    async def say(self, message: str, settings: ChatSettings) -> AsyncGenerator[Heard, None]:
        """Tell both the same and give what they answer; use it in ``contextlib.aclosing``.

        Closing the iterator stops both answers. A side that failed before it said a word has
        forgotten the message when the next one comes.

        Raises:
            WorkbenchError: a folder holds no model.
        """
        questions = []
        for conversation in self.conversations:
            last = conversation.last
            if last is not None and last.role == "user":
                conversation.drop(last)
            questions.append(conversation.say(message))
        async with aclosing(self._ask(questions, settings)) as heard:
            async for each in heard:
                yield each

    async def say_again(self, settings: ChatSettings) -> AsyncGenerator[Heard, None]:
        """Let both answer their last message once more, beside the answers before."""
        questions = [conversation.question for conversation in self.conversations]
        asked = [question for question in questions if question is not None]
        assert len(asked) == len(questions), "nothing was said yet"
        async with aclosing(self._ask(asked, settings)) as heard:
            async for each in heard:
                yield each

    def stop(self, side: int) -> None:
        """Stop one side's answer, or its turn if that has not come; the other side goes on."""
        self._busy.discard(side)
        if side in self._answering:
            self._answering[side].cancel()

    async def close(self) -> None:
        """End both servers; doing it twice is harmless."""
        for side in SIDES:
            await self._unload(side)

    async def _ask(
        self, questions: Sequence[Turn], settings: ChatSettings
    ) -> AsyncGenerator[Heard, None]:
        if self._at_once is None:
            missing = [self.models[side] for side in SIDES if not self._is_loaded(side)]
            self._at_once = not missing or await asyncio.to_thread(fit_together, missing)
        news: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._busy = set(SIDES)
        # The side that is loaded begins: the other one's turn ends it.
        order = sorted(SIDES, key=lambda side: not self._is_loaded(side))
        answering = asyncio.create_task(self._answer_all(order, questions, settings, news))
        answering.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (heard := await news.get()) is not None:
                yield heard
            await answering
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
            self._busy.clear()

    async def _answer_all(
        self,
        order: Sequence[int],
        questions: Sequence[Turn],
        settings: ChatSettings,
        news: "asyncio.Queue[Heard | None]",
    ) -> None:
        turns = [order] if self._at_once else [[side] for side in order]
        for sides in turns:
            # A task of its own for each side: one that is stopped does not end the group.
            async with asyncio.TaskGroup() as group:
                for side in sides:
                    if not self._at_once and side in self._busy:
                        await self._unload(1 - side)
                    if side in self._busy:
                        answer = self._answer(side, questions[side], settings, news)
                        self._answering[side] = group.create_task(answer)

    async def _answer(
        self,
        side: int,
        question: Turn,
        settings: ChatSettings,
        news: "asyncio.Queue[Heard | None]",
    ) -> None:
        try:
            server = await self._loaded(side, news)
            client = ChatClient(server.socket, model=server.model)
            pieces = self.conversations[side].answer(
                question, client, settings, model=server.model, stopwatch=self._stopwatch
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    news.put_nowait(Heard(side, piece))
        except (WorkbenchError, OSError) as error:
            news.put_nowait(Heard(side, failure=error))
        finally:
            self._busy.discard(side)
            self._answering.pop(side, None)

    async def _loaded(self, side: int, news: "asyncio.Queue[Heard | None]") -> Server:
        # Two that load at a time would each find the memory that the other is about to take.
        async with self._loading:
            server = self._servers[side]
            if server is not None and not server.has_ended:
                return server
            await self._unload(side)
            news.put_nowait(Heard(side, progress=Progress(stage="starting a server")))
            server = await self._start(self.models[side])
            try:
                async for progress in server.updates():
                    news.put_nowait(Heard(side, progress=progress))
            except BaseException:
                await server.stop()
                raise
            self._servers[side] = server
            return server

    async def _unload(self, side: int) -> None:
        server, self._servers[side] = self._servers[side], None
        if server is not None:
            await server.stop()

    def _is_loaded(self, side: int) -> bool:
        server = self._servers[side]
        return server is not None and not server.has_ended


def fit_together(models: Sequence[Path], free_bytes: int | None = None) -> bool:
    """Say whether memory holds these models at the same time.

    Args:
        models: run, checkpoint or model folder of each.
        free_bytes: what they may take; None looks: at the GPU that servers take, else at the host.

    Returns:
        False also where nothing says how much is free: loading one after the other always works.

    Raises:
        WorkbenchError: a folder holds no model.
    """
    if free_bytes is None:
        free_bytes = _free_bytes()
    if free_bytes is None:
        return False
    return sum(_needed_bytes(model) for model in models) <= free_bytes


def _needed_bytes(model: Path) -> int:
    files = find_weight_files(checkpoint_folder(model)).files
    weights = sum(file.stat().st_size for file in files)
    return int(weights * (1 + _SHARE_FOR_THE_CACHE)) + _BYTES_OF_A_SERVER


def _free_bytes() -> int | None:
    gpus = usable_gpus(None)
    if gpus:
        free = gpus[0].get("free_bytes")
        return free if isinstance(free, int) else None
    memory = available_host_memory()
    return None if memory is None else memory.available_bytes
