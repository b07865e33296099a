"""The same replies by vLLM, where that is installed: for many clients at once.

vLLM makes tokens; texts, stops and what is logged are those of the other engine. Nothing of vLLM is
imported before ``start``. Invariant: a generation that is cancelled is aborted within one token,
also while it waits.
"""

import asyncio
import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from workbench.data.tokenizer import Tokenizer
from workbench.errors import RefusedError, RunError
from workbench.inference.guard import post_guard
from workbench.inference.load import DtypeName
from workbench.inference.reply import Generation, GenerationError, ReplyText
from workbench.inference.sampling import Sampling, TokenLogprob
from workbench.runs.host_memory import available_host_memory

logger = logging.getLogger(__name__)

MOST_WAITING = 1024
# As many likeliest tokens as a request may ask for.
_MOST_TOP = 20
_GPU_NAMES = ("auto", "cuda", "cuda:0")
# On a CPU a training run may go on beside us: keys and values take no more of what is free.
_HOST_SHARE = 0.25


def is_installed() -> bool:
    """Say whether vLLM can be imported, without importing it."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """A model that vLLM runs, in processes of its own.

    Args:
        folder: model in Hugging Face layout; remote code is never run.
        tokenizer: the folder's tokenizer.
        device: ``auto``, ``cuda`` or ``cuda:0``; another GPU is chosen with CUDA_VISIBLE_DEVICES.
            ``auto`` and ``cpu`` where the vLLM that is installed is one for the CPU.
        dtype: precision of the weights; ``auto`` takes what config.json says.
        context: tokens that prompt and reply may have together.
        most_rows: replies that are made at the same time.
        memory_gib: of the device, for weights, keys and values together; None: nine tenths of a
            GPU, on a CPU a quarter of what is free for keys and values.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        device: str,
        dtype: DtypeName,
        *,
        context: int,
        most_rows: int,
        memory_gib: float | None = None,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._device_name = device
        self._dtype_name = dtype
        self._context = context
        self._most_rows = most_rows
        self._memory_gib = memory_gib
        texts = sorted(tokenizer.texts_of_special_tokens)
        self._special_texts = {
            int(encoded.ids[0]): text
            for text, encoded in zip(texts, tokenizer.encode(texts), strict=True)
        }
        self._engine: Any = None
        self._device = ""
        self._running: dict[Generation, asyncio.Task[None]] = {}
        self._aborting: set[asyncio.Task[None]] = set()
        self._num_tokens_before = 0
        self._is_closing = False

    @property
    def is_busy(self) -> bool:
        """A reply is being generated at this moment."""
        return bool(self._running)

    @property
    def num_running(self) -> int:
        """Replies that are being generated at this moment."""
        return min(len(self._running), self._most_rows)

    @property
    def num_waiting(self) -> int:
        """Requests that vLLM has not room for yet."""
        return max(0, len(self._running) - self._most_rows)

    @property
    def num_tokens_made(self) -> int:
        """Tokens of all replies since the start, the current ones included."""
        return self._num_tokens_before + sum(running.num_tokens for running in self._running)

    @property
    def device(self) -> str:
        """Where the model is, once loaded."""
        assert self._engine is not None, "the model is not loaded"
        return self._device

    @property
    def dtype(self) -> str:
        """Precision of the weights, once loaded."""
        assert self._engine is not None, "the model is not loaded"
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    async def start(self) -> None:
        """Load the model; return when it can generate.

        Raises:
            RefusedError: vLLM is not installed, or the device is not one for it.
            RunError: vLLM cannot load the model.
        """
        require_vllm()
        self._engine = await asyncio.to_thread(self._load)

    def _load(self) -> Any:  # noqa: ANN401 - vLLM's
        # Read when vLLM is imported: it would tell its makers what is served where.
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
        # A fork would hold the guard's pipe open.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        post_guard()
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise RefusedError(
                f"vLLM is installed but cannot be imported: {error}",
                where="--engine vllm",
                remedy="install it anew, or serve with --engine transformers",
            ) from error
        is_cpu = current_platform.is_cpu()
        self._check_device(is_cpu)
        memory = self._host_memory() if is_cpu else self._gpu_memory()
        try:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=str(self._folder),
                    skip_tokenizer_init=True,
                    trust_remote_code=False,
                    dtype=self._dtype(),
                    # Beside a prompt as long as the context it still wants room for one token,
                    # which is made but never read.
                    max_model_len=self._context + 1,
                    max_num_seqs=self._most_rows,
                    max_logprobs=_MOST_TOP,
                    # What a model's own file suggests is not applied: as in the other engine.
                    generation_config="vllm",
                    # On a CPU a compiler would be wanted, and a minute of it at each start.
                    enforce_eager=is_cpu,
                    disable_log_stats=True,
                    **memory,
                )
            )
        except Exception as error:
            raise RunError(
                f"vLLM cannot load it: {_told(error)}",
                where=str(self._folder),
                remedy="see the log above, or serve with --engine transformers",
            ) from error

    def _check_device(self, is_cpu: bool) -> None:
        names = ("auto", "cpu") if is_cpu else _GPU_NAMES
        if self._device_name not in names:
            remedy = "choose a GPU with CUDA_VISIBLE_DEVICES, or --engine transformers"
            if is_cpu:
                remedy = "it is one for the CPU: --device cpu, or --engine transformers"
            raise RefusedError(
                f"the vLLM that is installed is not started on {self._device_name}",
                where="--device",
                remedy=remedy,
            )
        self._device = "cpu" if is_cpu else "cuda:0"

    def _dtype(self) -> str:
        """Give the precision as the files have it: left to itself, vLLM halves float32."""
        if self._dtype_name != "auto":
            return self._dtype_name
        config = json.loads((self._folder / "config.json").read_bytes())
        return str(config.get("dtype") or config.get("torch_dtype") or "float32")

    def _gpu_memory(self) -> dict[str, Any]:
        import torch

        share = 0.9
        if self._memory_gib is not None:
            _, total = torch.cuda.mem_get_info()
            share = min(share, self._memory_gib * (1 << 30) / total)
        return {"gpu_memory_utilization": share}

    def _host_memory(self) -> dict[str, Any]:
        """Take what all replies at their longest need, and no more than there should be."""
        import torch
        from transformers import AutoConfig

        from workbench.inference.batch import bytes_per_place

        config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False)
        per_place = bytes_per_place(config, getattr(torch, self._dtype()))
        # Keys and values lie in blocks of 128 tokens, and one block is kept empty.
        wanted = (self._most_rows * (self._context + 128) + 128) * per_place
        available = available_host_memory()
        if self._memory_gib is not None:
            weights = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
            wanted = min(wanted, max(0, int(self._memory_gib * (1 << 30)) - weights))
        elif available is not None:
            wanted = min(wanted, int(available.available_bytes * _HOST_SHARE))
        return {"kv_cache_memory_bytes": wanted}

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[Generation]:
        """Queue several replies; call from the event loop that reads them.

        Raises:
            RefusedError: too many requests wait already.
            GenerationError: the server is ending, or vLLM has ended.
        """
        if self._is_closing:
            raise _server_is_ending()
        if self._engine.errored:
            raise _vllm_has_ended()
        if len(self._running) + len(requests) > self._most_rows + MOST_WAITING:
            raise RefusedError(
                f"{self.num_waiting} requests are waiting already",
                where="the server",
                remedy="try again when they are answered",
            )
        return [self._begun(Generation(ids, sampling)) for ids, sampling in requests]

    def _begun(self, generation: Generation) -> Generation:
        text = ReplyText(generation, self._decode, self._special_texts)
        request_id = uuid.uuid4().hex
        begin = time.monotonic()
        task = asyncio.create_task(self._make(generation, text, request_id))
        self._running[generation] = task

        def stop() -> None:
            # What has ended by itself is aborted by its own task, which must not be disturbed.
            if not text.has_ended:
                task.cancel()

        def note_end(task: asyncio.Task[None]) -> None:
            del self._running[generation]
            self._num_tokens_before += generation.num_tokens
            if task.cancelled():
                if self._is_closing:
                    text.fail(_server_is_ending())
                else:
                    # It may have been cancelled before it knew that vLLM has taken it.
                    self._in_background(self._engine.abort(request_id))
            logger.info(
                "%d prompt tokens, %d tokens made, %s, %.1f s",
                len(generation.prompt_ids),
                generation.num_tokens,
                text.how_it_ended or "cancelled",
                time.monotonic() - begin,
            )

        task.add_done_callback(note_end)
        generation.when_cancelled(stop)
        return generation

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

    def cancel_all(self) -> None:
        """End all replies, each with an error; take no more."""
        self._is_closing = True
        for task in self._running.values():
            task.cancel()

    def close(self) -> bool:
        """End everything; tell whether it has ended."""
        self.cancel_all()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        return True

    async def _make(self, generation: Generation, text: ReplyText, request_id: str) -> None:
        """Make one reply, or hand over why not; never raises but when it is cancelled."""
        try:
            await self._follow(generation, text, request_id)
            if not text.has_ended:
                # vLLM counts to the limit as we do; an end that we did not see is its own.
                text.fail(_model_failed())
        except Exception:
            # One reply has failed; the server lives on, and the log has the traceback.
            logger.exception("a reply failed")
            if not text.has_ended:
                text.fail(_vllm_has_ended() if self._engine.errored else _model_failed())

    async def _follow(self, generation: Generation, text: ReplyText, request_id: str) -> None:
        parameters = self._parameters(generation.sampling)
        num_top = generation.sampling.num_top or 0
        prompt = {"prompt_token_ids": generation.prompt_ids}
        has_begun = False
        # Stops are ours: vLLM goes on until it is told, by the end of this block.
        async with aclosing(self._engine.generate(prompt, parameters, request_id)) as outputs:
            async for output in outputs:
                if not has_begun:
                    has_begun = True
                    if output.prompt_logprobs:
                        generation.prompt_logprobs = [
                            _logprob_of(token_id, some, num_top)
                            for token_id, some in zip(
                                generation.prompt_ids[1:], output.prompt_logprobs[1:], strict=True
                            )
                        ]
                    text.begin()
                made = output.outputs[0]
                for at, token_id in enumerate(made.token_ids):
                    if text.has_ended:
                        break
                    some = made.logprobs[at] if made.logprobs else None
                    text.take(
                        token_id, None if some is None else _logprob_of(token_id, some, num_top)
                    )
                if text.has_ended:
                    break

    def _parameters(self, sampling: Sampling) -> Any:  # noqa: ANN401 - vLLM's
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            # One token is the least it makes; where none is wanted, none is taken.
            max_tokens=max(1, sampling.max_tokens),
            temperature=0 if sampling.is_greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logprobs=sampling.num_top,
            prompt_logprobs=sampling.num_top if sampling.of_prompt else None,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def require_vllm() -> None:
    """Make sure that vLLM is there.

    Raises:
        RefusedError: it is not installed.
    """
    if not is_installed():
        raise RefusedError(
            "vLLM is not installed here",
            where="--engine vllm",
            remedy="pip install vllm, or leave the engine to --engine auto",
        )


def _logprob_of(token_id: int, entries: Mapping[int, Any], num_top: int) -> TokenLogprob:
    """Read vLLM's entry of one place: the likeliest tokens by id, and the chosen one."""
    ranked = sorted(entries.items(), key=lambda item: -item[1].logprob)[:num_top]
    return TokenLogprob(
        token_id,
        entries[token_id].logprob,
        tuple((number, entry.logprob) for number, entry in ranked),
    )


def _told(error: Exception) -> str:
    """Give what vLLM says, on one line; pydantic's errors have it behind a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _model_failed() -> GenerationError:
    return GenerationError("the model failed", where="the server", remedy="see the server's log")


def _vllm_has_ended() -> GenerationError:
    return GenerationError(
        "vLLM has ended", where="the server", remedy="see the server's log, and start it again"
    )


def _server_is_ending() -> GenerationError:
    return GenerationError("it is ending", where="the server", remedy="start it again")
