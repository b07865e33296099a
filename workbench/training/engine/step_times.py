"""Where the seconds of a sampled step went, as the device saw it.

Knows numbers, no events: whoever recorded those turns them into seconds. Invariant: the times are
read after the step's own numbers have arrived on the host, when every event lies in the past and
reading them waits for nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepTimes:
    """Device seconds of one optimizer step; None where the device offers no events for it.

    The lanes work side by side, so their sum may exceed ``step``.

    Attributes:
        step: from the first work of the step to its last.
        up: the lane of copies to the device was busy.
        down: the lane of copies to the host was busy.
        waiting: the lane of compute stood still for a copy.
        optimizer: the lane of compute moved weights.
    """

    step: float | None
    up: float | None
    down: float | None
    waiting: float | None
    optimizer: float | None
