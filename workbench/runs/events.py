"""What happened to a run, one line each in events.jsonl, written by the supervisor alone.

Invariant: a record is on disk before it is news.
"""

from typing import Literal

import msgspec

from workbench.control.messages import CommandName, JobFailure, Refusal
from workbench.control.states import EndState, JobState


class EventRecord(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"
):
    """A thing that happened; ``time`` in UTC epoch seconds."""

    time: float
    attempt: int


class StateEvent(EventRecord, frozen=True, tag="state"):
    """The job entered a state."""

    state: JobState
    step: int


class CommandEvent(EventRecord, frozen=True, tag="command"):
    """A command was accepted, done, or failed."""

    command: int
    name: CommandName
    phase: Literal["accepted", "done", "failed"]
    reason: JobFailure | Refusal | None = None
    message: str = ""


class CheckpointEvent(EventRecord, frozen=True, tag="checkpoint"):
    """A complete checkpoint is on disk; ``path`` is relative to the run folder."""

    step: int
    path: str
    bytes: int
    seconds: float
    best: bool = False
    pruned: list[str] = msgspec.field(default_factory=list)


class EvaluationEvent(EventRecord, frozen=True, tag="evaluation"):
    """Mean loss per target token over the validation split; null where it was not finite."""

    step: int
    loss: float | None
    perplexity: float | None
    accuracy: float | None
    target_tokens: int
    seconds: float
    best: bool = False


class SampleEvent(EventRecord, frozen=True, tag="sample"):
    """What the model said to a prompt; ``cut``: it had not ended by itself."""

    step: int
    prompt: str
    reply: str
    tokens: int = 0
    cut: bool = False


class WarningEvent(EventRecord, frozen=True, tag="warning"):
    """Something the user should know; training goes on."""

    step: int
    message: str
    remedy: str = ""


class ExitEvent(EventRecord, frozen=True, tag="exit"):
    """The last process of the job is gone."""

    state: EndState
    step: int
    reason: JobFailure | None = None
    message: str = ""


AnyEvent = (
    StateEvent
    | CommandEvent
    | CheckpointEvent
    | EvaluationEvent
    | SampleEvent
    | WarningEvent
    | ExitEvent
)

decode_event = msgspec.json.Decoder(AnyEvent).decode
