"""The same replies by vLLM, where that is installed: for many clients at once on a GPU.

vLLM makes tokens; texts, stops and what is logged are those of the other engine. Nothing of vLLM is
imported before ``start``. Invariant: a generation that is cancelled is aborted within one token.
"""

import asyncio
import importlib.util
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.data.tokenizer import Tokenizer
from workbench.errors import RefusedError, RunError
from workbench.inference.load import DtypeName
from workbench.inference.reply import Generation, GenerationError, ReplyText
from workbench.inference.sampling import Sampling, TokenLogprob

logger = logging.getLogger(__name__)

MOST_WAITING = 1024


def is_installed() -> bool:
    """Say whether vLLM can be imported, without importing it."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """A model that vLLM runs.

    Args:
        folder: model in Hugging Face layout; remote code is never run.
        tokenizer: the folder's tokenizer.
        device: ``auto``, ``cuda`` or ``cuda:0``; another GPU is chosen with CUDA_VISIBLE_DEVICES.
        dtype: precision of the weights; ``auto`` takes what config.json says.
        context: tokens that prompt and reply may have together.
        most_rows: replies that are made at the same time.
        memory_gib: of the device, for weights, keys and values together; None: nine tenths of it.
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
        self._running: dict[Generation, asyncio.Task[None]] = {}
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
        """Where the model is."""
        return "cuda:0"

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
        if self._device_name not in ("auto", "cuda", "cuda:0"):
            raise RefusedError(
                f"vLLM is not started on {self._device_name}",
                where="--device",
                remedy="choose a GPU with CUDA_VISIBLE_DEVICES, or --engine transformers",
            )
        self._engine = await asyncio.to_thread(self._load)

    def _load(self) -> Any:  # noqa: ANN401 - vLLM's
        import torch
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        share = 0.9
        if self._memory_gib is not None:
            _, total = torch.cuda.mem_get_info()
            share = min(share, self._memory_gib * (1 << 30) / total)
        try:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=str(self._folder),
                    skip_tokenizer_init=True,
                    trust_remote_code=False,
                    dtype=self._dtype_name,
                    max_model_len=self._context,
                    max_num_seqs=self._most_rows,
                    gpu_memory_utilization=share,
                    # What a model's own file suggests is not applied: as in the other engine.
                    generation_config="vllm",
                )
            )
        except Exception as error:
            raise RunError(
                f"vLLM cannot load it: {error}",
                where=str(self._folder),
                remedy="see the log above, or serve with --engine transformers",
            ) from error

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[Generation]:
        """Queue several replies; call from the event loop that reads them.

        Raises:
            RefusedError: too many requests wait already.
            GenerationError: the server is ending.
        """
        if self._is_closing:
            raise _server_is_ending()
        if len(self._running) + len(requests) > self._most_rows + MOST_WAITING:
            raise RefusedError(
                f"{self.num_waiting} requests are waiting already",
                where="the server",
                remedy="try again when they are answered",
            )
        generations = [Generation(ids, sampling) for ids, sampling in requests]
        for generation in generations:
            self._running[generation] = asyncio.create_task(self._make(generation))
        return generations

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
        return True

    async def _make(self, generation: Generation) -> None:
        """Make one reply, or hand over why not; never raises but when it is cancelled."""
        text = ReplyText(generation, self._decode, self._special_texts)
        begin = time.monotonic()
        request_id = uuid.uuid4().hex
        try:
            await self._follow(generation, text, request_id)
        except asyncio.CancelledError:
            text.fail(_server_is_ending())
            raise
        except Exception:
            # One reply has failed; the server lives on, and the log has the traceback.
            logger.exception("a reply failed")
            text.fail(
                GenerationError(
                    "the model failed", where="the server", remedy="see the server's log"
                )
            )
        finally:
            self._running.pop(generation, None)
            self._num_tokens_before += generation.num_tokens
        logger.info(
            "%d prompt tokens, %d tokens made, %s, %.1f s",
            len(generation.prompt_ids),
            generation.num_tokens,
            text.how_it_ended or "cancelled",
            time.monotonic() - begin,
        )

    async def _follow(self, generation: Generation, text: ReplyText, request_id: str) -> None:
        parameters = self._parameters(generation.sampling)
        num_top = generation.sampling.num_top or 0
        outputs = self._engine.generate(
            {"prompt_token_ids": generation.prompt_ids}, parameters, request_id
        )
        has_begun = False
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
                if generation.is_cancelled or text.has_ended:
                    break
                some = made.logprobs[at] if made.logprobs else None
                text.take(token_id, None if some is None else _logprob_of(token_id, some, num_top))
            if generation.is_cancelled or text.has_ended:
                break
        # Stops are ours: vLLM would go on until it is told.
        await self._engine.abort(request_id)

    def _parameters(self, sampling: Sampling) -> Any:  # noqa: ANN401 - vLLM's
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            # One token is the least it makes; where none is wanted, none is taken.
            max_tokens=max(1, sampling.max_tokens),
            temperature=sampling.temperature,
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


def _server_is_ending() -> GenerationError:
    return GenerationError("it is ending", where="the server", remedy="start it again")
