"""How a run ended, and why: the content of outcome.json, written last."""

from pathlib import Path

import msgspec

from workbench.control.messages import JobFailure
from workbench.control.states import EndState
from workbench.runs.atomic import write_atomically


class FirstError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The earliest failure of any rank; torchrun's wrapper text never takes its place."""

    rank: int | None
    message: str
    traceback: str = ""
    remedy: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an attempt ended. ``exit_codes`` is by rank; negative numbers are signals."""

    attempt: int
    state: EndState
    step: int
    time: float
    reason: JobFailure | None = None
    message: str = ""
    first_error: FirstError | None = None
    exit_codes: dict[str, int] = msgspec.field(default_factory=dict)
    checkpoint: str | None = None
    killed: int = 0
    max_steps: int | None = None  # what the run would have come to; null where no rank said it

    @property
    def exit_status(self) -> int:
        """Exit status of a command that followed the job."""
        return {"finished": 0, "stopped": 0, "failed": 1, "aborted": 1, "lost": 3}[self.state]


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write the outcome at once or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")


def read_outcome(path: Path) -> Outcome | None:
    """Give the outcome, or None while there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcome)
    except FileNotFoundError:
        return None
