"""Every message of the control protocol, version 1, as a typed record.

One tagged union per direction: ``ToSupervisor`` is what a viewer or publisher sends,
``FromSupervisor`` what it receives, ``ToPublisher`` and ``FromPublisher`` the words between the
supervisor and rank 0. The tag is the field ``type``. A request carries an ``id`` of the sender's
choice; its answers repeat it. An unknown type or field is an error, never ignored.

Invariant: ``hello``, ``status``, ``stop`` and ``abort`` never change their form across versions.
"""

from typing import Any, Literal

import msgspec

from workbench.control.states import JobState, RunningState

PROTOCOL_VERSION = 1

Role = Literal["viewer", "publisher", "supervisor"]
Topic = Literal["events", "metrics", "log"]
CommandName = Literal["save", "evaluate", "pause", "resume", "stop", "abort"]
JobFailure = Literal[
    "config",
    "data",
    "out_of_memory",
    "nonfinite_loss",
    "save_failed",
    "no_space",
    "rank_died",
    "communication",
    "internal",
]
Refusal = Literal["stopping", "not_paused", "not_rank_0", "protocol", "ended"]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """A line on a control socket."""


class Hello(Message, frozen=True, tag="hello"):
    """The first message of either end; ``job`` is filled in by the supervisor and the publisher."""

    protocol: int
    role: Role
    program: str
    host: str
    pid: int
    job: str | None = None


# ---- requests, viewer to supervisor; the commands among them go on to rank 0 -------------------


class StatusRequest(Message, frozen=True, tag="status"):
    """Ask where the job stands; answered in every state."""

    id: int


class Subscribe(Message, frozen=True, tag="subscribe"):
    """Ask for news from now on; answered by Done with the offsets where the news begin."""

    id: int
    topics: list[Topic]


class Save(Message, frozen=True, tag="save"):
    """Write a checkpoint at the next step boundary; answered by Accepted, later Done or Failed."""

    id: int


class Evaluate(Message, frozen=True, tag="evaluate"):
    """Evaluate at the next step boundary; the training that follows is unchanged by it."""

    id: int


class Pause(Message, frozen=True, tag="pause"):
    """Hold at the next step boundary; memory stays taken."""

    id: int


class Resume(Message, frozen=True, tag="resume"):
    """Go on after a pause."""

    id: int


class Stop(Message, frozen=True, tag="stop"):
    """Save at the next step boundary (unless ``save`` is false), then leave."""

    id: int
    save: bool = True


class Abort(Message, frozen=True, tag="abort"):
    """End every process of the job now; never passes through the ranks."""

    id: int


Command = Save | Evaluate | Pause | Resume | Stop | Abort
ToSupervisor = Hello | StatusRequest | Subscribe | Save | Evaluate | Pause | Resume | Stop | Abort
ToPublisher = Hello | Save | Evaluate | Pause | Resume | Stop

# ---- results, what Done carries ----------------------------------------------------------------


class Result(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What a finished request achieved."""


class Subscribed(Result, frozen=True, tag="subscribed"):
    """News of a topic begin at this byte of its file."""

    offsets: dict[Topic, int]


class Saved(Result, frozen=True, tag="saved"):
    """A complete checkpoint is on disk. ``path`` is relative to the run folder."""

    step: int
    path: str
    bytes: int
    seconds: float


class Evaluated(Result, frozen=True, tag="evaluated"):
    """The validation split was evaluated: mean loss per target token."""

    step: int
    loss: float | None
    tokens: int
    seconds: float


class Held(Result, frozen=True, tag="held"):
    """The job is held at a step boundary, or goes on."""

    step: int
    paused: bool


class Ended(Result, frozen=True, tag="ended"):
    """The last process of the job is gone; ``killed`` counts those that needed SIGKILL."""

    state: JobState
    step: int
    checkpoint: str | None
    killed: int


AnyResult = Subscribed | Saved | Evaluated | Held | Ended

# ---- answers and news, supervisor to viewer -----------------------------------------------------


class Pending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command that was accepted and has not been answered yet."""

    command: int
    name: CommandName
    since: float


class Status(Message, frozen=True, tag="status"):
    """Where a job stands. Times are UTC epoch seconds; ``offsets`` are the sizes of its files."""

    id: int
    state: JobState
    since: float
    step: int
    max_steps: int | None
    attempt: int
    idle_seconds: float | None
    pending: list[Pending]
    checkpoint: str | None
    offsets: dict[Topic, int]


class Accepted(Message, frozen=True, tag="accepted"):
    """A command was numbered and written to events.jsonl; joined duplicates share the number."""

    id: int
    command: int
    when: Literal["now", "next step", "first step"]


class Done(Message, frozen=True, tag="done"):
    """The effect is on disk. ``command`` is absent for requests that are not commands."""

    id: int
    result: AnyResult
    command: int | None = None


class Failed(Message, frozen=True, tag="failed"):
    """Nothing changed. ``id`` is absent when the line could not be read as a request."""

    reason: JobFailure | Refusal
    message: str
    remedy: str
    id: int | None = None
    command: int | None = None


class Event(Message, frozen=True, tag="event"):
    """A line of events.jsonl; ``offset`` is the byte where it begins."""

    offset: int
    record: dict[str, Any]


class Metrics(Message, frozen=True, tag="metrics"):
    """A line of metrics.jsonl; ``offset`` is the byte where it begins."""

    offset: int
    record: dict[str, Any]


class Log(Message, frozen=True, tag="log"):
    """Whole lines of log.txt that begin at byte ``offset``."""

    offset: int
    text: str


FromSupervisor = Hello | Status | Accepted | Done | Failed | Event | Metrics | Log

# ---- rank 0 to supervisor ------------------------------------------------------------------------


class Progress(Message, frozen=True, tag="progress"):
    """Where rank 0 stands: every 2 s and at each change; idle is that of its main thread."""

    state: RunningState
    step: int
    max_steps: int | None
    idle_seconds: float


class Leaving(Message, frozen=True, tag="leaving"):
    """The last message of rank 0. ``reason`` is null unless the state is failed."""

    state: Literal["finished", "stopped", "failed"]
    step: int
    reason: JobFailure | None = None
    message: str = ""
    remedy: str = ""


FromPublisher = Hello | Progress | Metrics | Event | Done | Failed | Leaving
