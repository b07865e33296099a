"""One record per logging window in metrics.jsonl: names, units, and what null means.

Written by rank 0 alone, whole lines only. Of two records for one step the later attempt's counts.
"""

from typing import Literal

import msgspec


class MetricsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a logging window measured; the window ends with ``step``.

    A number that was not finite is null and named in ``nonfinite``. Shares are of the device
    seconds of those steps of the window that were timed, null where none was: compute, waiting and
    optimizer come to 1; copies run beside them.
    """

    time: float  # UTC epoch seconds
    attempt: int
    step: int
    epoch: float
    tokens: int  # tokens that attention saw since the run began
    target_tokens: int  # target tokens since the run began
    loss: float | None  # mean over the window's target tokens
    learning_rate: float
    gradient_norm: float | None  # root mean square of the window's step norms
    largest_gradient_norm: float | None
    tokens_per_second: float
    step_seconds: float  # mean of the window
    peak_gpu_bytes: list[int]  # reserved, per rank; empty without a GPU
    peak_host_bytes: list[int]  # per rank
    skipped_steps: int = 0  # steps of the window without an update, because of the NaN policy
    peak_gpu_allocated_bytes: list[int] = msgspec.field(default_factory=list)  # as peak_gpu_bytes
    mfu: float | None = None  # of the card's dense bf16 peak; null where that is not known
    compute_share: float | None = None  # neither waiting for a copy nor moving weights
    transfer_share: float | None = None  # the busier of the two directions
    up_share: float | None = None  # copies to the device
    down_share: float | None = None  # copies to the host
    waiting_share: float | None = None
    optimizer_share: float | None = None
    first_step_seconds: float | None = None  # from launch to the end of the attempt's first step
    nonfinite: list[Literal["loss", "gradient_norm"]] = msgspec.field(default_factory=list)


def shares(record: MetricsRecord) -> list[tuple[str, str]]:
    """Say what the device was busy with, in percent; empty where nothing was timed.

    ``[("compute", "96"), ("copies", "31"), ("waiting", "2"), ("optimizer", "2 %")]``
    """
    parts = {
        "compute": record.compute_share,
        "copies": record.transfer_share,
        "waiting": record.waiting_share,
        "optimizer": record.optimizer_share,
    }
    known = [(name, f"{100 * share:.0f}") for name, share in parts.items() if share is not None]
    return [*known[:-1], *((name, f"{share} %") for name, share in known[-1:])]


def utilization_words(record: MetricsRecord) -> str:
    """Say how much of the card was used, and for what, in one line; what is not known is left out.

    ``MFU 52 % · compute 96 · copies 31 · waiting 2 · optimizer 2 %``
    """
    parts = shares(record)
    if record.mfu is not None:
        parts = [("MFU", f"{100 * record.mfu:.0f} %"), *parts]
    return " · ".join(f"{name} {share}" for name, share in parts)
