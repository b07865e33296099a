"""The rows of any step, as a pure function of the seed and the step's number.

Nothing is remembered between steps, so resuming at step k is asking for step k.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.data.batch import Batch
from workbench.data.packing import Row, Rows
from workbench.data.prepare import PreparedData, prepare

__all__ = ["Loader", "PreparedData", "StepRows", "epoch_order", "make_batch", "prepare"]


@dataclass(frozen=True)
class StepRows:
    """What one optimizer step trains on.

    Attributes:
        microbatches: all of the same shape; a fully masked row, or a whole microbatch of them,
            fills up what the data does not.
        num_targets: tokens that count in the loss, over all microbatches.
        num_tokens: tokens that are not padding, over all microbatches.
        epoch: passes over the rows that are complete when this step is.
    """

    microbatches: tuple[Batch, ...]
    num_targets: int
    num_tokens: int
    epoch: float


def epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw the order of rows in one epoch.

    Built on the raw numbers of a counter-based generator, which stay the same in every version
    of numpy; ``Generator.permutation`` promises no such thing.

    Returns:
        (num_rows,) int64, a permutation.
    """
    drawn = np.random.Philox(key=[seed, epoch]).random_raw(num_rows)
    return np.argsort(np.asarray(drawn, dtype=np.uint64), kind="stable")


class Loader:
    """Rows by step, in an order that depends on seed and epoch alone.

    With ``shuffle`` the batch that holds the longest row comes first in epoch 0, so that a lack
    of memory shows in the first step and not after hours.

    Args:
        rows: at least one.
        rows_per_step: all microbatches together.
        num_microbatches: parts of a step, of equal row counts; the last is filled up with fully
            masked rows where the numbers do not divide.
        shuffle: draw a new order for each epoch, else keep the data's.
        seed: of the order.
        pad_id: fills ids behind a row's last token.
        row_length: pad every row to this; None pads to the longest row of the step.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        rows_per_step: int,
        num_microbatches: int = 1,
        shuffle: bool,
        seed: int,
        pad_id: int,
        row_length: int | None,
    ) -> None:
        assert len(rows) > 0, "prepare refuses a split without rows"
        assert row_length is None or rows.longest <= row_length, (rows.longest, row_length)
        self._rows = rows.rows
        self._rows_per_step = rows_per_step
        self._num_microbatches = num_microbatches
        self._shuffle = shuffle
        self._seed = seed
        self._pad_id = pad_id
        self._row_length = row_length
        self._max_documents = rows.max_documents + 1  # padding is one more
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row is seen once."""
        return -(-len(self._rows) // self._rows_per_step)

    def step(self, index: int) -> StepRows:
        """Give the rows of a step.

        Args:
            index: of the step, from 0 over all epochs.
        """
        epoch, position = divmod(index, self.steps_per_epoch)
        chosen = self._row_numbers(epoch, position)
        rows = [self._rows[number] for number in chosen]
        length = self._row_length or max(row.ids.size for row in rows)
        share = -(-self._rows_per_step // self._num_microbatches)
        microbatches = tuple(
            make_batch(
                rows[start : start + share],
                num_rows=share,
                row_length=length,
                max_documents=self._max_documents,
                pad_id=self._pad_id,
            )
            for start in range(0, share * self._num_microbatches, share)
        )
        return StepRows(
            microbatches,
            num_targets=sum(batch.num_targets for batch in microbatches),
            num_tokens=sum(batch.num_tokens for batch in microbatches),
            epoch=(index + 1) / self.steps_per_epoch,
        )

    def _row_numbers(self, epoch: int, position: int) -> list[int]:
        start = position * self._rows_per_step
        numbers = self._order(epoch)[start : start + self._rows_per_step]
        return [int(number) for number in numbers]

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self._rows), dtype=np.int64)
        order = epoch_order(len(self._rows), self._seed, epoch)
        return self._longest_batch_first(order) if epoch == 0 else order

    def _longest_batch_first(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = np.array([self._rows[number].ids.size for number in order])
        width = self._rows_per_step
        start = int(lengths.argmax()) // width * width
        order = order.copy()
        # Row by row, so that a shorter last batch trades places as well.
        size = min(width, order.size - start)
        first, longest = order[:size].copy(), order[start : start + size].copy()
        order[:size], order[start : start + size] = longest, first
        return order


def make_batch(
    rows: Sequence[Row], *, num_rows: int, row_length: int, max_documents: int, pad_id: int
) -> Batch:
    """Pad rows to one shape; rows that are lacking are padding from end to end.

    Args:
        rows: at most ``num_rows``, none longer than ``row_length``.
        num_rows: of the batch.
        row_length: tokens of each.
        max_documents: width of ``document_starts``, padding counted as a document.
        pad_id: fills ids.
    """
    ids = np.full((num_rows, row_length), pad_id, dtype=np.int32)
    targets = np.zeros((num_rows, row_length), dtype=np.bool_)
    starts = np.full((num_rows, max_documents), row_length, dtype=np.int32)
    starts[:, 0] = 0
    num_tokens = 0
    for number, row in enumerate(rows):
        size, documents = row.ids.size, row.document_starts.size
        ids[number, :size] = row.ids
        targets[number, :size] = row.targets
        starts[number, :documents] = row.document_starts
        if size < row_length:
            starts[number, documents] = size
        num_tokens += size
    return Batch(ids, targets, starts, num_tokens)
