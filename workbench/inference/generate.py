"""The engine: replies made together, token by token, on a thread of its own.

The thread loads the model and then serves a queue: what waits joins the rows at work (``batch``)
before the next token, as far as there is room. Several engines take turns on a device, token by
token. Knows nothing of HTTP or chat templates.
Invariant: a generation that is cancelled stops within one token, whether it waits or runs.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from workbench.data.tokenizer import Tokenizer
from workbench.errors import RefusedError
from workbench.inference.batch import Batch, Row, RowsFailed
from workbench.inference.load import DtypeName, load_model
from workbench.inference.reply import Generation, GenerationError
from workbench.inference.sampling import Sampling
from workbench.runs.host_memory import available_host_memory

logger = logging.getLogger(__name__)

# A hundred clients with two questions each; whoever comes later would wait for minutes and is told.
MOST_WAITING = 256
MOST_ROWS = 32
# Tokens of prompts read in one forward: some tenths of a second, after which the others go on.
_AT_ONCE = {"cuda": 4096, "cpu": 512}


class Turns:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._served = 0

    def __enter__(self) -> None:
        with self._condition:
            mine, self._next = self._next, self._next + 1
            self._condition.wait_for(lambda: self._served == mine)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._condition:
            self._served += 1
            self._condition.notify_all()


class Engine:
    """A model and the thread that runs it.

    Args:
        folder: model in Hugging Face layout; remote code is never run.
        tokenizer: the folder's tokenizer.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: precision of the weights; ``auto`` takes what config.json says.
        most_rows: replies that are made at the same time.
        turns: shared by all engines of a device.
        memory_gib: weights take no more of the device; None: as much as is free.
        narrate: is told what a person should know before the model is loaded.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        device: str,
        dtype: DtypeName,
        *,
        most_rows: int = MOST_ROWS,
        turns: Turns | None = None,
        memory_gib: float | None = None,
        narrate: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        texts = sorted(tokenizer.texts_of_special_tokens)
        self._special_texts = {
            int(encoded.ids[0]): text
            for text, encoded in zip(texts, tokenizer.encode(texts), strict=True)
        }
        self._device_name = device
        self._dtype_name = dtype
        self._most_rows = most_rows
        self._turns = turns or Turns()
        self._memory_gib = memory_gib
        self._narrate = narrate
        self._model: Any = None
        self._waiting: deque[Row] = deque()
        self._has_news = threading.Condition()
        self._is_closing = False
        self._at_work: list[tuple[Row, float]] = []
        self._num_tokens_before = 0
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)

    @property
    def is_busy(self) -> bool:
        """A reply is being generated at this moment."""
        return bool(self._at_work)

    @property
    def num_running(self) -> int:
        """Replies that are being generated at this moment."""
        return len(self._at_work)

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def num_tokens_made(self) -> int:
        """Tokens of all replies since the start, the current ones included."""
        running = list(self._at_work)
        return self._num_tokens_before + sum(row.generation.num_tokens for row, _ in running)

    @property
    def device(self) -> str:
        """Where the model is, once loaded."""
        assert self._model is not None, "the model is not loaded"
        return str(self._device)

    @property
    def dtype(self) -> str:
        """Precision of the weights, once loaded."""
        assert self._model is not None, "the model is not loaded"
        return str(self._model.dtype).removeprefix("torch.")

    async def start(self) -> None:
        """Load the model; return when it can generate.

        Raises:
            RunError: the folder holds no model that can be loaded.
            ConfigError: there is no such device.
            RefusedError: the model does not fit on the device.
        """
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await loaded

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Queue a reply; call from the event loop that reads it.

        Raises:
            RefusedError: too many requests wait already.
            GenerationError: the server is ending.
        """
        return self.submit_all([(prompt_ids, sampling)])[0]

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[Generation]:
        """Queue several replies that begin together; all of them or, as ``submit``, none."""
        with self._has_news:
            if self._is_closing:
                raise _server_is_ending()
            if self._waiting and len(self._waiting) + len(requests) > MOST_WAITING:
                raise RefusedError(
                    f"{len(self._waiting)} requests are waiting already",
                    where="the server",
                    remedy="try again when they are answered",
                )
            generations = [Generation(ids, sampling) for ids, sampling in requests]
            self._waiting += [
                Row(generation, self._decode, self._special_texts) for generation in generations
            ]
            self._has_news.notify()
        return generations

    def cancel_all(self) -> None:
        """End all replies and all requests that wait, each with an error; take no more."""
        with self._has_news:
            self._is_closing = True
            self._has_news.notify()

    def close(self, limit_seconds: float = 5.0) -> bool:
        """End everything and wait for the thread; tell whether it has ended."""
        self.cancel_all()
        if self._thread.ident is not None:
            self._thread.join(limit_seconds)
        return not self._thread.is_alive()

    # ---- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._model, self._device = load_model(
                self._folder,
                self._device_name,
                self._dtype_name,
                memory_gib=self._memory_gib,
                narrate=self._narrate,
            )
            at_once = _AT_ONCE[self._device.type]
            batch = Batch(
                self._model, self._device, self._most_rows, at_once, _host_bytes(self._device)
            )
        except Exception as error:  # noqa: BLE001 - handed to the one who waits in start()
            self._report_loaded(error)
            return
        self._report_loaded(None)
        while not self._is_closing:
            self._take_in(batch)
            if not self._at_work:
                continue
            with self._turns:
                self._step(batch)
            self._note_ended()
        left = [row for row, _ in self._at_work] + list(self._waiting)
        self._waiting.clear()
        for row in left:
            if not row.is_over:
                row.text.fail(_server_is_ending())
        self._note_ended()

    def _take_in(self, batch: Batch) -> None:
        """Let in what waits; without anything to do, sleep until something comes."""
        with self._has_news:
            while not (self._waiting or self._at_work or self._is_closing):
                self._has_news.wait()
            room = batch.most_rows - len(batch.rows)
            arrived: list[Row] = []
            while self._waiting and len(arrived) < room:
                row = self._waiting.popleft()
                if not row.is_over:
                    arrived.append(row)
            begin = time.monotonic()
            self._at_work += [(row, begin) for row in arrived]
        if arrived:
            batch.add(arrived)

    def _step(self, batch: Batch) -> None:
        """Make one token for every row, or hand over why not; never raises."""
        try:
            put_back = batch.step()
        except RowsFailed as failed:
            for row in failed.rows:
                row.text.fail(self._failure_of(failed.__cause__))
            return
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave anybody waiting
            for row in batch.drop_all():
                row.text.fail(self._failure_of(error))
            return
        if put_back:
            logger.warning("memory is short: %d replies wait until others end", len(put_back))
            left = {id(row) for row in put_back}
            self._at_work = [(row, begin) for row, begin in self._at_work if id(row) not in left]
            # In the order they came, before all that were never begun.
            self._waiting.extendleft(reversed(put_back))

    def _failure_of(self, error: BaseException | None) -> GenerationError:
        if isinstance(error, torch.OutOfMemoryError):
            logger.warning("out of memory for a single reply")
            torch.cuda.empty_cache()
            return GenerationError(
                "the device has too little memory for this conversation",
                where="the server",
                remedy="shorten the conversation, or lower max_tokens",
            )
        # Some replies have failed; the server lives on, and the log has the traceback.
        logger.error("a reply failed", exc_info=error)
        return GenerationError(
            "the model failed", where="the server", remedy="see the server's log"
        )

    def _note_ended(self) -> None:
        """Count and log the replies that have ended; lengths only, never a text."""
        still: list[tuple[Row, float]] = []
        for row, begin in self._at_work:
            if not row.is_over:
                still.append((row, begin))
                continue
            generation = row.generation
            logger.info(
                "%d prompt tokens, %d tokens made, %s, %.1f s",
                len(generation.prompt_ids),
                generation.num_tokens,
                row.text.how_it_ended or "cancelled",
                time.monotonic() - begin,
            )
        ended = {id(row) for row, _ in self._at_work} - {id(row) for row, _ in still}
        made = sum(row.generation.num_tokens for row, _ in self._at_work if id(row) in ended)
        self._at_work = still
        self._num_tokens_before += made

    def _report_loaded(self, error: Exception | None) -> None:
        def report() -> None:
            if self._loaded.cancelled():
                return
            if error is None:
                self._loaded.set_result(None)
            else:
                self._loaded.set_exception(error)

        self._loop.call_soon_threadsafe(report)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _host_bytes(device: torch.device) -> int | None:
    """Give what keys and values may take of host memory; None where they lie elsewhere."""
    available = available_host_memory() if device.type == "cpu" else None
    # Half: a training run beside us, and what is counted twice while rows move.
    return None if available is None else available.available_bytes // 2


def _server_is_ending() -> GenerationError:
    return GenerationError("it is ending", where="the server", remedy="start it again")
