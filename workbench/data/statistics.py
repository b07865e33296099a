"""What a split comes to: lengths, what a row takes in, padding, steps. Arrays in, numbers out.

Knows lengths and no text. Invariant: every conversation is counted in exactly one bar.
"""

import numpy as np
from numpy.typing import NDArray

from workbench.config.schema.config import Config
from workbench.control.data_records import Bar, Padding, Share, Split, Statistics
from workbench.data.loader import Loader, epoch_order
from workbench.data.packing import Rows, assign
from workbench.data.prepare import PreparedData

SHOWN_LENGTHS = (512, 1300, 2048, 4096)
PERCENTILES = (50, 90, 95, 99, 100)
_MOST_BARS = 12


def percentiles(lengths: NDArray[np.int32]) -> dict[int, int]:
    """Give the length that a share of conversations does not exceed; 100 is the longest.

    Each is a length that occurs: of lengths 1 to 10, percentile 50 is 5 and 90 is 9.
    """
    if not lengths.size:
        return {}
    found = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return {share: int(length) for share, length in zip(PERCENTILES, found, strict=True)}


def shares(lengths: NDArray[np.int32], max_length: int) -> list[Share]:
    """Say what the usual lengths and the config's take in: whole conversations, and tokens."""
    if not lengths.size:
        return []
    num_tokens = int(lengths.sum(dtype=np.int64))
    return [
        Share(
            length=length,
            conversations=float(np.mean(lengths <= length)),
            tokens=float(np.minimum(lengths, length).sum(dtype=np.int64) / num_tokens),
        )
        for length in sorted({*SHOWN_LENGTHS, max_length})
    ]


def histogram(lengths: NDArray[np.int32], max_length: int) -> list[Bar]:
    """Count conversations by length, in at most 14 bars of one width.

    The last bar takes all of a long tail. Where conversations are longer than ``max_length``, one
    bar ends there and the next begins behind it, so that what is cut stands apart.
    """
    if not lengths.size:
        return []
    longest = int(lengths.max())
    usual = int(np.percentile(lengths, 99, method="inverted_cdf"))
    width = _round_width(usual)
    ends = list(range(width, -(-usual // width) * width + 1, width))
    if longest > ends[-1]:
        ends.append(longest)
    if longest > max_length:
        ends = sorted({*ends, max_length})
    counts = np.diff(np.searchsorted(np.sort(lengths), ends, side="right"), prepend=0)
    lows = [1, *(end + 1 for end in ends[:-1])]
    return [Bar(low, high, int(count)) for low, high, count in zip(lows, ends, counts, strict=True)]


def _round_width(longest: int) -> int:
    """Give the smallest of 1, 2, 5, 10, 20, 50 … with which few enough bars reach ``longest``."""
    width = 1
    while True:
        for factor in (1, 2, 5):
            if width * factor * _MOST_BARS >= longest:
                return width * factor
        width *= 10


def padding_share(
    lengths: NDArray[np.int64], rows_per_step: int, row_length: int | None
) -> tuple[float, int]:
    """Give the share of positions that are padding, and how many positions there are.

    Args:
        lengths: tokens of each row, in the order of the steps.
        rows_per_step: the last step is filled up with empty rows.
        row_length: every row is padded to it; None pads to the longest row of the step.

    Returns:
        Lengths [3, 1, 2] in steps of two, padded to the longest, have 2·3 + 2·2 = 10 positions,
        0.4 of them padding.
    """
    num_steps = -(-lengths.size // rows_per_step)
    steps = np.zeros(num_steps * rows_per_step, dtype=np.int64)
    steps[: lengths.size] = lengths
    widest = steps.reshape(num_steps, rows_per_step).max(axis=1)
    widths = widest if row_length is None else np.full(num_steps, row_length, dtype=np.int64)
    positions = int(widths.sum()) * rows_per_step
    return 1 - int(lengths.sum()) / positions, positions


def other_paddings(
    lengths: NDArray[np.int32],
    max_length: int,
    rows_per_step: int,
    seed: int,
) -> list[Padding]:
    """Say what other ways to lay the same conversations would cost: unpacked, and packed.

    Args:
        lengths: of every conversation before cutting; longer ones are cut here.
        max_length: tokens of a row.
        rows_per_step: of a step.
        seed: of the order in which rows of their own would come.
    """
    cut = np.minimum(lengths.astype(np.int64), max_length)
    shuffled = cut[epoch_order(cut.size, seed, 0)]
    groups = assign(cut.tolist(), max_length, "best_fit")
    packed = np.array([cut[group].sum() for group in groups], dtype=np.int64)
    packed = packed[epoch_order(packed.size, seed, 0)]
    found = []
    for method, rows in (("none", shuffled), ("best_fit", packed)):
        for pad_to, row_length in (("longest", None), ("context", max_length)):
            share, _ = padding_share(rows, rows_per_step, row_length)
            found.append(Padding(packing=method, pad_to=pad_to, rows=rows.size, share=share))
    return found


# ---- of a run ----------------------------------------------------------------------------------


def loader_of(config: Config, prepared: PreparedData, split: Split) -> Loader:
    """Give the loader of a run's split, without the parts in which a step passes the model.

    How many those are is the plan's, which knows the device; they hold the same rows in the same
    order. A number the config states is kept.
    """
    row_length = config.data.max_length if config.data.pad_to == "context" else None
    if split == "validation":
        return Loader(
            prepared.validation,
            rows_per_step=config.batch.evaluation,
            shuffle=False,
            seed=config.training.seed,
            pad_id=prepared.pad_id,
            row_length=row_length,
        )
    stated = config.batch.microbatches
    return Loader(
        prepared.train,
        rows_per_step=config.batch.train,
        num_microbatches=1 if stated == "auto" else stated,
        shuffle=config.data.shuffle,
        seed=config.training.seed,
        pad_id=prepared.pad_id,
        row_length=row_length,
    )


def num_steps(config: Config, loader: Loader, split: Split) -> int:
    """Count the steps of the whole run, or the batches of one evaluation."""
    if split == "validation":
        return min(loader.steps_per_epoch, config.evaluation.max_batches or loader.steps_per_epoch)
    by_epochs = max(1, int(np.ceil(round(config.training.epochs * loader.steps_per_epoch, 6))))
    return min(by_epochs, config.training.max_steps or by_epochs)


def statistics(config: Config, prepared: PreparedData, split: Split) -> Statistics:
    """Count a split that has at least one row.

    What is counted per step is the mean over the first epoch.
    """
    is_train = split == "train"
    rows = prepared.train if is_train else prepared.validation
    lengths = prepared.lengths_train if is_train else prepared.lengths_validation
    loader = loader_of(config, prepared, split)
    data, steps = config.data, loader.steps_per_epoch
    rows_per_step = config.batch.train if is_train else config.batch.evaluation
    seen = np.array([number for step in range(steps) for number in loader.row_numbers(step)])
    row_lengths = rows.row_lengths[seen]
    configured, num_positions = padding_share(
        row_lengths, rows_per_step, data.max_length if data.pad_to == "context" else None
    )
    paddings = [
        Padding(
            packing=data.packing,
            pad_to=data.pad_to,
            rows=seen.size,
            share=configured,
            is_configured=True,
        ),
        *other_paddings(lengths, data.max_length, rows_per_step, config.training.seed),
    ]
    num_tokens = int(row_lengths.sum())
    num_targets = int(_targets_of_rows(rows)[seen].sum())
    return Statistics(
        split=split,
        num_conversations=lengths.size,
        num_documents=len(rows.pieces),
        num_rows=len(rows),
        max_length=data.max_length,
        num_longer=int((lengths > data.max_length).sum()),
        percentiles=percentiles(lengths),
        mean_length=float(lengths.mean()),
        histogram=histogram(lengths, data.max_length),
        shares=shares(lengths, data.max_length),
        paddings=paddings,
        tokens_per_step=num_tokens / steps,
        targets_per_step=num_targets / steps,
        positions_per_step=num_positions / steps,
        steps_per_epoch=steps,
        num_steps=num_steps(config, loader, split),
        documents_per_row=len(rows.pieces) / len(rows),
        target_share=num_targets / num_tokens,
    )


def _targets_of_rows(rows: Rows) -> NDArray[np.int64]:
    """(rows,) int64, tokens of each that count in the loss; every row has a document."""
    return np.add.reduceat(rows.pieces.num_targets, rows.borders[:-1])
