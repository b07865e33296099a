"""The mean loss per target token over the validation split: token-exact, not a mean of means.

Sums stay on the device until the end; weights, statistics and random states are untouched.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from workbench.data.batch import Batch
from workbench.data.loader import Loader
from workbench.training.engine.step import EvaluationSums


class Evaluates(Protocol):
    """An engine that can sum loss and correct predictions over microbatches."""

    @property
    def max_microbatches(self) -> int:
        """How many microbatches pass together."""

    def evaluate(self, *batches: Batch) -> EvaluationSums:
        """Sum over microbatches; changes nothing."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, per target token; a number that is not finite is None."""

    loss: float | None
    perplexity: float | None
    accuracy: float | None
    target_tokens: int


def evaluate_batches(
    engine: Evaluates, loader: Loader, max_batches: int | None
) -> Iterator[EvaluationSums]:
    """Evaluate batch by batch, so that the caller may look around in between.

    Microbatches of a batch pass together where the engine holds them: weights that travel do so
    once for all of them.

    Args:
        engine: evaluates microbatches.
        loader: of the validation rows, in a fixed order.
        max_batches: batches at most; None takes all.
    """
    num_batches = loader.steps_per_epoch
    if max_batches is not None:
        num_batches = min(num_batches, max_batches)
    for index in range(num_batches):
        parts, together = loader.step(index).microbatches, engine.max_microbatches
        for begin in range(0, len(parts), together):
            yield engine.evaluate(*parts[begin : begin + together])


def total(batches: Iterable[EvaluationSums]) -> Evaluation:
    """Add up what batches found; waits for the device."""
    found = list(batches)
    target_tokens = sum(batch.num_targets for batch in found)
    if target_tokens == 0:
        return Evaluation(None, None, None, 0)
    loss = float(torch.stack([batch.loss_sum.double() for batch in found]).sum()) / target_tokens
    correct = int(torch.stack([batch.num_correct for batch in found]).sum())
    if not math.isfinite(loss):
        return Evaluation(None, None, correct / target_tokens, target_tokens)
    # exp overflows a float beyond 709: a perplexity of that size is as good as none.
    perplexity = math.exp(loss) if loss < 700 else None
    return Evaluation(loss, perplexity, correct / target_tokens, target_tokens)
