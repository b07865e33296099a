"""One record per logging window in metrics.jsonl: names, units, and what null means.

Written by rank 0 alone, whole lines only. Of two records for one step the later attempt's counts.
"""

from typing import Literal

import msgspec


class MetricsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a logging window measured; the window ends with ``step``.

    A number that was not finite is null and named in ``nonfinite``. A share is null where the
    device offers no events to measure it.
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
    peak_gpu_bytes: list[int]  # per rank; empty without a GPU
    peak_host_bytes: list[int]  # per rank
    skipped_steps: int = 0  # steps of the window without an update, because of the NaN policy
    compute_share: float | None = None
    transfer_share: float | None = None
    waiting_share: float | None = None
    nonfinite: list[Literal["loss", "gradient_norm"]] = msgspec.field(default_factory=list)
