"""Replies, one at a time: transformers' ``generate`` with its cache, on a thread of its own.

The thread loads the model and then serves a queue, so that requests never interleave on the device
and the event loop never waits for it. Knows nothing of HTTP or chat templates.
Invariant: a generation that is cancelled stops within one token, whether it waits or runs.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils.logging import disable_progress_bar

from workbench.data.tokenizer import Tokenizer
from workbench.errors import ConfigError, RefusedError, RunError, WorkbenchError
from workbench.inference.detokenizer import Detokenizer
from workbench.inference.stop import StopDetector

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

# Enough for a person and a script at once; more would wait for minutes and should be told.
MOST_WAITING = 32


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to end; every value is in effect, none is a default.

    ``temperature`` 0 takes the likeliest token; then top_p, top_k and min_p play no part.
    ``top_k`` 0 and ``min_p`` 0 are off. ``seed`` None draws anew each time.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more text of a reply; the last piece has a finish reason.

    ``num_tokens`` counts what the model has made so far, the stop token included.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None


class GenerationError(WorkbenchError):
    """A reply that could not be completed."""


class Generation:
    """One reply on its way from the engine's thread to the event loop that asked for it."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self.prompt_ids = list(prompt_ids)
        self.sampling = sampling
        self.num_tokens = 0
        """Tokens made so far, the stop token included; counted by the engine's thread."""
        self._is_cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | WorkbenchError | None] = asyncio.Queue()

    @property
    def is_cancelled(self) -> bool:
        """Nobody waits for this reply any more."""
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        """Stop within one token; ``pieces`` ends. Call it from the event loop, also twice."""
        self._is_cancelled.set()
        self._pieces.put_nowait(None)

    def put(self, piece: Piece | WorkbenchError) -> None:
        """Hand a piece, or what went wrong, to the event loop; called by the engine's thread."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Give the pieces as they come, the last one with a finish reason.

        After ``cancel`` it ends without one.

        Raises:
            GenerationError: the model failed, or the server is ending.
        """
        while True:
            piece = await self._pieces.get()
            if piece is None:
                return
            if isinstance(piece, WorkbenchError):
                raise piece
            yield piece
            if piece.finish_reason is not None:
                return


class Engine:
    """A model and the thread that runs it.

    Args:
        folder: model in Hugging Face layout; remote code is never run.
        tokenizer: the folder's tokenizer.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: precision of the weights; ``auto`` takes what config.json says.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, device: str, dtype: DtypeName) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        texts = sorted(tokenizer.texts_of_special_tokens)
        self._special_texts = {
            int(encoded.ids[0]): text
            for text, encoded in zip(texts, tokenizer.encode(texts), strict=True)
        }
        self._device_name = device
        self._dtype_name = dtype
        self._model: Any = None
        self._waiting: queue.Queue[Generation | None] = queue.Queue()
        self._current: Generation | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._num_tokens_before = 0

    @property
    def is_busy(self) -> bool:
        """A reply is being generated at this moment."""
        return self._current is not None

    @property
    def num_waiting(self) -> int:
        """Requests that have not begun."""
        return self._waiting.qsize()

    @property
    def num_tokens_made(self) -> int:
        """Tokens of all replies since the start, the current one included."""
        current = self._current
        return self._num_tokens_before + (current.num_tokens if current else 0)

    @property
    def device(self) -> str:
        """Where the model is, once loaded."""
        assert self._model is not None, "the model is not loaded"
        return str(self._model.device)

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
        if self._is_closing.is_set():
            raise _server_is_ending()
        if self.num_waiting >= MOST_WAITING:
            raise RefusedError(
                f"{MOST_WAITING} requests are waiting already",
                where="the server",
                remedy="try again when they are answered",
            )
        generation = Generation(prompt_ids, sampling)
        self._waiting.put(generation)
        return generation

    def cancel_all(self) -> None:
        """End the current reply and all that wait, each with an error; take no more."""
        self._is_closing.set()
        self._waiting.put(None)

    def close(self, limit_seconds: float = 5.0) -> bool:
        """End everything and wait for the thread; tell whether it has ended."""
        self.cancel_all()
        if self._thread.ident is not None:
            self._thread.join(limit_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._model = load_model(self._folder, self._device_name, self._dtype_name)
        except Exception as error:  # noqa: BLE001 - handed to the one who waits in start()
            self._report_loaded(error)
            return
        self._report_loaded(None)
        while True:
            generation = self._waiting.get()
            if generation is None:
                break
            if generation.is_cancelled:
                continue
            self._current = generation
            self._generate(generation)
        while not self._waiting.empty():
            left = self._waiting.get()
            if left is not None and not left.is_cancelled:
                left.put(_server_is_ending())

    def _report_loaded(self, error: Exception | None) -> None:
        def report() -> None:
            if self._loaded.cancelled():
                return
            if error is None:
                self._loaded.set_result(None)
            else:
                self._loaded.set_exception(error)

        self._loop.call_soon_threadsafe(report)

    def _generate(self, generation: Generation) -> None:
        """Make one reply, or hand over why not; never raises."""
        detokenizer = Detokenizer(self._decode, self._special_texts)
        reply = _Reply(generation, detokenizer, self._is_closing)
        begin = time.monotonic()
        try:
            run_generate(self._model, generation.prompt_ids, generation.sampling, reply)
        except torch.OutOfMemoryError:
            logger.warning("out of memory after %d prompt tokens", len(generation.prompt_ids))
            torch.cuda.empty_cache()
            generation.put(
                GenerationError(
                    "the device has too little memory for this conversation",
                    where="the server",
                    remedy="shorten the conversation, or lower max_tokens",
                )
            )
            return
        except Exception:
            # One reply has failed; the server lives on, and the log has the traceback.
            logger.exception("a reply failed")
            generation.put(
                GenerationError(
                    "the model failed", where="the server", remedy="see the server's log"
                )
            )
            return
        finally:
            self._num_tokens_before += generation.num_tokens
            self._current = None
        how = reply.finish()
        logger.info(
            "%d prompt tokens, %d tokens made, %s, %.1f s",
            len(generation.prompt_ids),
            generation.num_tokens,
            how,
            time.monotonic() - begin,
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class _Reply(StoppingCriteria):
    """Sees each token as soon as it is made, passes its text on, and says when to stop."""

    def __init__(
        self, generation: Generation, detokenizer: Detokenizer, is_closing: threading.Event
    ) -> None:
        self._generation = generation
        self._detokenizer = detokenizer
        self._is_closing = is_closing
        sampling = generation.sampling
        self._stop = StopDetector(sampling.stop_ids, sampling.stop_strings)

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        **_: object,
    ) -> torch.Tensor:
        """Take the newest token; ``input_ids`` is (1, tokens so far) int64; give (1,) bool."""
        is_done = self._take(int(input_ids[0, -1]))
        return torch.full((1,), is_done, device=input_ids.device, dtype=torch.bool)

    def finish(self) -> str:
        """Send the last piece, if anybody waits for it; say in a word how the reply ended."""
        if self._stop.has_stopped:
            return "stopped"
        if self._generation.is_cancelled:
            return "cancelled"
        if self._is_closing.is_set():
            self._generation.put(_server_is_ending())
            return "interrupted"
        # Text that was held back may turn out to hold a stop string after all.
        text = self._stop.finish(self._detokenizer.finish())
        self._send(text, "stop" if self._stop.has_stopped else "length")
        return "cut at its limit"

    def _take(self, token_id: int) -> bool:
        if self._generation.is_cancelled or self._is_closing.is_set():
            return True
        self._generation.num_tokens += 1
        if self._stop.is_stop_id(token_id):
            text = self._stop.finish(self._detokenizer.finish(), stop_id=token_id)
        else:
            text = self._stop.feed(self._detokenizer.feed(token_id))
        self._send(text, "stop" if self._stop.has_stopped else None)
        return self._stop.has_stopped

    def _send(self, text: str, finish_reason: FinishReason | None) -> None:
        if text or finish_reason:
            self._generation.put(Piece(text, self._generation.num_tokens, finish_reason))


def run_generate(
    model: Any,  # noqa: ANN401 - transformers gives its models no useful type
    prompt_ids: Sequence[int],
    sampling: Sampling,
    reply: StoppingCriteria,
) -> None:
    """Generate after one prompt until ``reply`` says stop or ``max_tokens`` are made.

    Args:
        model: on its device, in eval mode.
        prompt_ids: the tokens before the reply, at least one.
        sampling: how to choose; stops are the business of ``reply``.
        reply: called after each token with ids (1, tokens so far).
    """
    ids = torch.tensor([prompt_ids], dtype=torch.int64, device=model.device)
    if sampling.temperature > 0 and sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    elif sampling.temperature > 0:
        torch.seed()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=generation_config(sampling),
            stopping_criteria=StoppingCriteriaList([reply]),
        )


def generation_config(sampling: Sampling) -> GenerationConfig:
    """Say it in transformers' words; without stop tokens, which stop.py looks after."""
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p or None,
        }
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_tokens,
        repetition_penalty=sampling.repetition_penalty,
        use_cache=True,
        **choice,
    )


def load_model(folder: Path, device_name: str, dtype_name: DtypeName) -> Any:  # noqa: ANN401 - as above
    """Load a model from files that are on this machine, onto a device, ready to generate.

    Raises:
        RunError: the folder holds no model that transformers can load without remote code.
        ConfigError: there is no such device.
        RefusedError: the model does not fit on the device.
    """
    device = choose_device(device_name)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype_name == "auto" else getattr(torch, dtype_name),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"cannot be loaded: {_first_line(error)}",
            where=str(folder),
            remedy="name a folder with config.json and safetensors weights",
        ) from error
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise RefusedError(
            f"the model does not fit on {device}",
            where=str(folder),
            remedy="free the device, or serve with --device cpu",
        ) from error
    model.eval()
    # What a model's own file suggests would fill every value that a request leaves out.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model


def choose_device(name: str) -> torch.device:
    """Turn ``auto`` into the first GPU where there is one; check any other name.

    Raises:
        ConfigError: it is no device of this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    num_gpus = torch.cuda.device_count()
    is_gpu = device is not None and device.type == "cuda" and (device.index or 0) < num_gpus
    if device is None or not (device.type == "cpu" or is_gpu):
        raise ConfigError(
            f"there is no device {name!r} here, which has {num_gpus} GPUs",
            where="--device",
            remedy="choose auto, cpu or cuda:N",
        )
    return device


def _server_is_ending() -> GenerationError:
    return GenerationError("it is ending", where="the server", remedy="start it again")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
