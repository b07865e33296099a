"""Model FLOP utilization: what a run's tokens needed, over what its card could have done.

``MFU = 3 x forward FLOP per token x tokens per second / dense bf16 peak``. Backward counts as two
forwards and recomputation counts as nothing, so that keeping activations shows as a gain. Forward
is two FLOP per parameter of the matrices and, for causal attention, ``2 x blocks x query width x
length``, where the length is that of the document a token stands in, the mean over the tokens of
the window. Peaks are those of ``config/rates.CARDS``.

Knows rows and rates, no device. Invariant: padding is no token.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workbench.config.model_facts import ModelFacts
from workbench.config.rates import card_of
from workbench.config.time_plan import forward_flop_per_token
from workbench.data.batch import Batch


@dataclass(frozen=True)
class Utilization:
    """What one model can reach on one card.

    Attributes:
        facts: shapes of the model.
        peak_flops: dense bf16 FLOP/s of the card; None where nobody has published it.
    """

    facts: ModelFacts
    peak_flops: float | None

    def mfu(self, num_tokens: int, seen_tokens: int, seconds: float) -> float | None:
        """Give the share of the peak that training on these tokens came to.

        Args:
            num_tokens: that were trained on, padding left out.
            seen_tokens: as ``count_seen_tokens`` counts them for these tokens.
            seconds: that it took.

        Returns:
            Between 0 and 1; None without a peak, tokens or time.
        """
        if self.peak_flops is None or num_tokens == 0 or seconds <= 0:
            return None
        # What was counted knows of windows.
        facts = replace(self.facts, sliding_window=None, sliding_blocks=None)
        forward = forward_flop_per_token(facts, seen_tokens / num_tokens)
        return 3 * forward * num_tokens / seconds / self.peak_flops


def peak_flops_of(gpu_name: str | None) -> float | None:
    """Give the dense bf16 FLOP/s of a card by its name, None for a CPU or an unknown card."""
    found = card_of(gpu_name)
    return None if found is None else found[1].peak_tflops * 1e12


def count_seen_tokens(
    batches: Iterable[Batch], sliding_window: int | None = None, sliding_fraction: float = 1.0
) -> int:
    """Sum, over all tokens, the length of the document each stands in.

    Documents of 3 and 2 tokens give 3·3 + 2·2 = 13. A window bounds each length, in its share of
    the blocks; the sum is the mean over blocks. Padding is left out: in a batch that has any, it is
    the last document of a row when that has no target.

    Args:
        batches: of a step.
        sliding_window: tokens a query sees in blocks that slide; None bounds nothing.
        sliding_fraction: share of the blocks that slide.
    """
    seen = 0.0
    for batch in batches:
        ends = np.pad(batch.document_starts, ((0, 0), (0, 1)), constant_values=batch.row_length)
        lengths: NDArray[np.int64] = (ends[:, 1:] - ends[:, :-1]).astype(np.int64)
        if batch.num_tokens < batch.ids.size:
            rows = np.arange(lengths.shape[0])
            last = np.maximum((lengths > 0).sum(axis=1) - 1, 0)
            begins = batch.document_starts[rows, last]
            behind = np.arange(batch.row_length) >= begins[:, None]
            is_padding = ~(batch.targets & behind).any(axis=1)
            lengths[rows[is_padding], last[is_padding]] = 0
        bound = batch.row_length if sliding_window is None else sliding_window
        within, whole = (lengths * np.minimum(lengths, bound)).sum(), (lengths * lengths).sum()
        seen += whole + sliding_fraction * (within - whole)
    return round(seen)
