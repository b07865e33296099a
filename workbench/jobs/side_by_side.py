"""Two models that are told the same: same prompt, settings and seed, each in its own conversation.

Where memory holds both, both answer at once. Where it is short, they answer one after the other,
each loaded when its turn comes; whoever is loaded already begins, so that a message costs one load
and not two. Invariants: when memory is short no two servers run at a time; one side's failure does
not end the other's answer; after ``close`` no server is left.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workbench.config.weight_files import find_weight_files
from workbench.errors import WorkbenchError
from workbench.jobs.chat_client import ChatClient, ChatSettings, Piece
from workbench.jobs.conversation import Conversation, Turn
from workbench.jobs.fit import usable_gpus
from workbench.jobs.inference_process import start_server
from workbench.runs.checkpoints import checkpoint_folder
from workbench.runs.host_memory import available_host_memory

# The libraries and CUDA's own context of a process; keys and values of a conversation.
_BYTES_OF_A_SERVER = 2 << 30
_SHARE_FOR_THE_CACHE = 0.2


class Server(Protocol):
    """What a side needs of a server: ``inference_process.InferenceProcess``."""

    @property
    def socket(self) -> Path:
        """Where it answers."""

    @property
    def model(self) -> str:
        """The name of what it serves."""

    @property
    def has_ended(self) -> bool:
        """The process is gone."""

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
        is_loading: its model is being loaded.
    """

    side: int
    piece: Piece | None = None
    failure: WorkbenchError | OSError | None = None
    is_loading: bool = False


class SideBySide:
    """Two models and what has been said with each.

    Args:
        models: run, checkpoint or model folder of either side.
        at_once: both may be loaded at the same time; None looks at the memory that is free.
        system: instruction before both conversations; "" is none.
        start: starts a server and gives it when it answers.
    """

    def __init__(
        self,
        models: tuple[Path, Path],
        *,
        at_once: bool | None = None,
        system: str = "",
        start: Start = start_server,
    ) -> None:
        self.models = models
        self.conversations = (Conversation(system), Conversation(system))
        self._at_once = at_once
        self._start = start
        self._servers: list[Server | None] = [None, None]
        self._loading = asyncio.Lock()

    @property
    def answers_at_once(self) -> bool | None:
        """Both are loaded together; None until the first message has decided it."""
        return self._at_once

    async def say(self, message: str, settings: ChatSettings) -> AsyncGenerator[Heard, None]:
        """Tell both the same and give what they answer; use it in ``contextlib.aclosing``.

        Closing the iterator stops both answers. A side that failed before it said a word has
        forgotten the message when the next one comes.
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

    async def close(self) -> None:
        """End both servers; doing it twice is harmless."""
        for side in (0, 1):
            await self._unload(side)

    async def _ask(
        self, questions: Sequence[Turn], settings: ChatSettings
    ) -> AsyncGenerator[Heard, None]:
        if self._at_once is None:
            self._at_once = await asyncio.to_thread(fit_together, self.models)
        news: asyncio.Queue[Heard | None] = asyncio.Queue()
        # The side that is loaded begins: the other one's turn ends it.
        order = sorted((0, 1), key=lambda side: not self._is_loaded(side))
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

    async def _answer_all(
        self,
        order: Sequence[int],
        questions: Sequence[Turn],
        settings: ChatSettings,
        news: "asyncio.Queue[Heard | None]",
    ) -> None:
        if self._at_once:
            async with asyncio.TaskGroup() as group:
                for side in order:
                    group.create_task(self._answer(side, questions[side], settings, news))
            return
        for side in order:
            await self._unload(1 - side)
            await self._answer(side, questions[side], settings, news)

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
            pieces = self.conversations[side].answer(question, client, settings, model=server.model)
            async with aclosing(pieces):
                async for piece in pieces:
                    news.put_nowait(Heard(side, piece))
        except (WorkbenchError, OSError) as error:
            news.put_nowait(Heard(side, failure=error))

    async def _loaded(self, side: int, news: "asyncio.Queue[Heard | None]") -> Server:
        # Two that load at a time would each find the memory that the other is about to take.
        async with self._loading:
            server = self._servers[side]
            if server is not None and not server.has_ended:
                return server
            await self._unload(side)
            news.put_nowait(Heard(side, is_loading=True))
            server = await self._start(self.models[side])
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
