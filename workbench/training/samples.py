"""What the model says to some prompts while it learns, by the engine's own weights.

All prompts are answered together: one sweep of the engine per token, without a cache, so that a
model that streams does so once for all of them. Knows no loop. Invariant: weights, statistics and
random states are untouched, so the steps that follow are the same with samples and without.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.data.batch import Batch
from workbench.data.chat_template import ChatTemplate
from workbench.data.loader import make_batch
from workbench.data.packing import Row
from workbench.data.tokenizer import Tokenizer
from workbench.errors import ConfigError

# What stands for bytes that are no character yet.
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
# Rows grow by one token per sweep; a kernel that is tuned or compiled for a length sees few.
_LENGTH_STEP = 32


class GivesLogits(Protocol):
    """An engine that can say what it makes of the token at each target."""

    @property
    def max_microbatches(self) -> int:
        """How many microbatches pass together."""

    def logits(self, *batches: Batch) -> Tensor:
        """Give (targets, V) fp32; changes nothing."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and what ends a reply.

    Attributes:
        max_tokens: of a reply.
        temperature: 0 takes the likeliest token.
        seed: of the draws, with the step and the prompt's number; other random numbers are not
            touched.
        stop_ids: tokens that end a reply.
        stop_strings: texts that end a reply, none empty.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()


@dataclass
class Reply:
    """A prompt and what the model has said to it so far.

    Attributes:
        prompt: as the config states it.
        prompt_ids: the conversation up to where the reply begins.
        ids: of the reply, without the token that ended it.
        text: of the reply, without what ended it and without half a character at its end.
        is_done: nothing more follows.
        is_cut: it did not end by itself.
    """

    prompt: str
    prompt_ids: Sequence[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    is_done: bool = False
    is_cut: bool = False


class Sampler:
    """Answers the prompts of a run, whenever it is asked to.

    Args:
        engine: holds the weights.
        tokenizer: the model's.
        template: that the run trains with.
        prompts: what a user says, one conversation each.
        sampling: how tokens are chosen.
        every_steps: the loop asks after so many steps, and after the last.
        microbatch_rows: rows that pass together.
        row_length: tokens of a row; a prompt and its reply fit one.
        pad_id: fills rows.

    Raises:
        ConfigError: a prompt leaves no room for a reply.
        DataError: the template refuses a prompt.
    """

    def __init__(
        self,
        engine: GivesLogits,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        every_steps: int,
        microbatch_rows: int,
        row_length: int,
        pad_id: int,
    ) -> None:
        self.every_steps = every_steps
        self._engine, self._tokenizer, self._sampling = engine, tokenizer, sampling
        self._microbatch_rows, self._row_length = microbatch_rows, row_length
        self._pad_id = pad_id
        self._prompts = [(text, _prompt_ids(text, template, tokenizer)) for text in prompts]
        for number, (_, ids) in enumerate(self._prompts, start=1):
            if len(ids) >= row_length:
                raise ConfigError(
                    f"prompt {number} takes {len(ids)} tokens, a row of this run holds "
                    f"{row_length}: there is no room for a reply",
                    where="samples.prompts",
                    remedy="shorten it, or make rows longer: data.max_length, data.pad_to: context",
                )

    def answer(self, step: int) -> Iterator[list[Reply]]:
        """Answer all prompts, token by token, so that the caller may look around in between.

        Args:
            step: after which this is; with a temperature, each has draws of its own.

        Yields:
            All replies, in the order of the prompts, as far as they are; at last all are done.
        """
        replies = [Reply(prompt, ids) for prompt, ids in self._prompts]
        numbered = list(enumerate(replies))
        together = self._microbatch_rows * self._engine.max_microbatches
        draws = [
            np.random.default_rng([self._sampling.seed, step, number]) for number, _ in numbered
        ]
        for begin in range(0, len(numbered), together):
            open_ones = numbered[begin : begin + together]
            while open_ones:
                logits_NV = self._engine.logits(*self._batches([reply for _, reply in open_ones]))
                chosen = self._choose(logits_NV, [draws[number] for number, _ in open_ones])
                for (_, reply), token_id in zip(open_ones, chosen, strict=True):
                    self._take(reply, token_id)
                open_ones = [each for each in open_ones if not each[1].is_done]
                yield replies

    def _batches(self, replies: Sequence[Reply]) -> list[Batch]:
        """Lay out a row for each reply, with the token that comes next as its only target."""
        rows = []
        for reply in replies:
            ids = np.array([*reply.prompt_ids, *reply.ids, self._pad_id], dtype=np.int32)
            targets = np.zeros(ids.size, dtype=np.bool_)
            targets[-1] = True
            rows.append(Row(ids=ids, targets=targets, document_starts=np.zeros(1, dtype=np.int32)))
        longest = max(row.ids.size for row in rows)
        length = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self._row_length)
        return [
            make_batch(
                part,
                num_rows=len(part),
                row_length=length,
                max_documents=2,
                pad_id=self._pad_id,
            )
            for begin in range(0, len(rows), self._microbatch_rows)
            for part in [rows[begin : begin + self._microbatch_rows]]
        ]

    def _choose(self, logits_NV: Tensor, draws: Sequence[np.random.Generator]) -> list[int]:
        """Choose a token for each row of logits."""
        if self._sampling.temperature == 0:
            return [int(number) for number in logits_NV.argmax(dim=1).tolist()]
        scores = logits_NV.to("cpu", torch.float64).numpy() / self._sampling.temperature
        # The largest of score + Gumbel noise is a draw from the softmax of the scores.
        return [
            int(np.argmax(row + draw.gumbel(size=row.size)))
            for row, draw in zip(scores, draws, strict=True)
        ]

    def _take(self, reply: Reply, token_id: int) -> None:
        """Add a token to a reply, or end it."""
        if token_id in self._sampling.stop_ids:
            reply.is_done = True
            return
        reply.ids.append(token_id)
        text = self._tokenizer.decode(reply.ids, skip_special_tokens=True)
        found = [at for stop in self._sampling.stop_strings if (at := text.find(stop)) >= 0]
        if found:
            reply.text, reply.is_done = text[: min(found)], True
            return
        reply.text = text.rstrip(_UNREADABLE)
        num_tokens = len(reply.prompt_ids) + len(reply.ids)
        if len(reply.ids) >= self._sampling.max_tokens or num_tokens >= self._row_length:
            reply.is_done = reply.is_cut = True


def _prompt_ids(prompt: str, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    ids = template.encode_prompt([{"role": "user", "content": prompt}], tokenizer)
    return [int(number) for number in ids]


def board_text(replies: Sequence[Reply]) -> str:
    r"""Write replies as Markdown in which nothing they hold is Markdown.

    ``Hi`` answered by ``Hello!`` gives ``"    > Hi\n    Hello!"``: an indented block.
    """
    blocks = []
    for reply in replies:
        lines = [f"> {line}" for line in reply.prompt.splitlines() or [""]]
        lines += (reply.text + (" …" if reply.is_cut else "")).splitlines()
        blocks.append("\n".join(f"    {line}" for line in lines))
    return "\n\n---\n\n".join(blocks)
