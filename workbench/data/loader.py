"""The rows of any step, as a pure function of the seed and the step's number.

Nothing is remembered between steps, so resuming at step k is asking for step k.

Sources are mixed by weight: those of weight w are a stream that passes over its rows again and
again, of which each epoch takes the next ``w x rows``. A weight of 0.5 shows every row in two
epochs, a weight of 2 every row twice in each.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.data.batch import Batch
from workbench.data.packing import Row, Rows, Stream
from workbench.data.prepare import PreparedData, prepare

__all__ = [
    "Loader",
    "PreparedData",
    "StepRows",
    "epoch_order",
    "make_batch",
    "prepare",
    "rows_per_epoch",
]

# A pass over a stream draws from other numbers than an epoch: its key begins above every epoch's.
_PASSES_OF_A_STREAM = 1 << 32


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


def rows_per_epoch(stream: Stream) -> int:
    """Count the rows that an epoch takes of a stream: at least one, halves rounded up."""
    return max(1, int(stream.weight * stream.num_rows + 0.5)) if stream.num_rows else 0


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
        self._rows = rows
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
        """Steps of an epoch: every row is seen once, or as often as its weight says."""
        num_rows = sum(rows_per_epoch(stream) for stream in self._rows.streams)
        return -(-num_rows // self._rows_per_step)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row there is, or that all are padded to."""
        return self._row_length or self._rows.longest

    def step(self, index: int) -> StepRows:
        """Give the rows of a step.

        Args:
            index: of the step, from 0 over all epochs.
        """
        rows = [self._rows[number] for number in self.row_numbers(index)]
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

    def row_numbers(self, index: int) -> list[int]:
        """Say which rows a step trains on, as numbers of ``rows``, in their order.

        Args:
            index: of the step, from 0 over all epochs.
        """
        epoch, position = divmod(index, self.steps_per_epoch)
        start = position * self._rows_per_step
        numbers = self._order(epoch)[start : start + self._rows_per_step]
        return [int(number) for number in numbers]

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        chosen, first = [], 0
        for number, stream in enumerate(self._rows.streams):
            chosen.append(first + self._rows_of_stream(number, stream, first, epoch))
            first += stream.num_rows
        rows = np.concatenate(chosen)
        if not self._shuffle:
            return rows
        order = rows[epoch_order(rows.size, self._seed, epoch)]
        return self._longest_batch_first(order) if epoch == 0 else order

    def _rows_of_stream(
        self, number: int, stream: Stream, first: int, epoch: int
    ) -> NDArray[np.int64]:
        """Give the rows that an epoch takes of a stream, by their number within it.

        Those of one pass are in the order of the data: a whole pass is [0, 1, 2 …].
        """
        share = rows_per_epoch(stream)
        taken, position, end = [], epoch * share, (epoch + 1) * share
        while position < end:
            index, begin = divmod(position, stream.num_rows)
            num_rows = min(stream.num_rows - begin, end - position)
            if num_rows == stream.num_rows or not self._shuffle:
                taken.append(np.arange(begin, begin + num_rows, dtype=np.int64))
            else:
                order = self._pass_order(number, stream, first, index)
                taken.append(np.sort(order[begin : begin + num_rows]))
            position += num_rows
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    def _pass_order(self, number: int, stream: Stream, first: int, index: int) -> NDArray[np.int64]:
        order = epoch_order(stream.num_rows, self._seed, (number + 1) * _PASSES_OF_A_STREAM + index)
        if index == 0:
            # The longest row belongs to the first epoch, so that its first step can show it.
            longest = int(self._rows.row_lengths[first : first + stream.num_rows].argmax())
            at = int(np.flatnonzero(order == longest)[0])
            order[[0, at]] = order[[at, 0]]
        return order

    def _longest_batch_first(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = self._rows.row_lengths[order]
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
