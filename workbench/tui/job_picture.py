"""What is known of one run, folded from everything its connection reports; no Textual, no I/O.

Invariants: applying the same records twice changes nothing; a record of a later attempt replaces
those of its step and what followed; numpy is imported with the first metrics record.
"""

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from workbench.control.messages import CommandName, Pending, Status
from workbench.control.states import END_STATES, JobState
from workbench.runs.events import (
    AnyEvent,
    CheckpointEvent,
    CommandEvent,
    EvaluationEvent,
    ExitEvent,
    SampleEvent,
    StateEvent,
    WarningEvent,
)
from workbench.runs.metrics import MetricsRecord
from workbench.runs.outcome import Outcome
from workbench.tui.drawn import Happening, LogLine

if TYPE_CHECKING:
    from workbench.tui.widgets.series import Series, Smoothed

Part = Literal["state", "metrics", "events", "log"]

EMA_DECAY = 0.9
KEPT_LOG_LINES = 10_000
SILENT_AT_LEAST_SECONDS = 120.0
_GIB = 2**30

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]"
)
_RANK = re.compile(r"^\[[^\]\s]*?(\d+)\]:\s?")


@dataclass
class Curves:
    """The series of a run that are drawn; x is the step, memory in GiB."""

    loss: "Smoothed"
    eval_loss: "Series"
    tokens_per_second: "Series"
    gpu_memory: "list[Series]" = field(default_factory=list)
    host_memory: "list[Series]" = field(default_factory=list)


class JobPicture:
    """The state of one run as far as it has been told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: JobState | None = None
        self.state_since: float | None = None
        self.step = 0
        self.max_steps: int | None = None
        self.attempt = 0
        self._last_sign: float | None = None  # of life, epoch seconds
        self.pending: tuple[Pending, ...] = ()
        self.link: str | None = None
        self.link_since: float | None = None
        self.has_link = False
        self.curves: Curves | None = None
        self.last: MetricsRecord | None = None
        self.last_timed: MetricsRecord | None = None  # not every window holds a step that was timed
        self.last_evaluation: EvaluationEvent | None = None
        self.best_evaluation: EvaluationEvent | None = None
        self.last_checkpoint: CheckpointEvent | None = None
        self.samples: list[SampleEvent] = []  # of the newest step that has some
        self.happenings: list[Happening] = []
        self.log: deque[LogLine] = deque(maxlen=KEPT_LOG_LINES)
        self.num_log_lines = 0
        self.outcome: Outcome | None = None
        self.warning: WarningEvent | None = None
        self._recent_step_seconds: deque[float] = deque(maxlen=20)
        self._attempts: set[int] = set()

    # ---- what is told ------------------------------------------------------------------

    def take_metrics(self, record: MetricsRecord) -> None:
        """Add a record of metrics.jsonl."""
        if self.curves is None:
            from workbench.tui.widgets.series import Series, Smoothed

            self.curves = Curves(Smoothed(EMA_DECAY), Series(), Series())
        if self.last is not None and record.attempt > self.last.attempt:
            self._forget_after(record.step)
        if record.attempt > self.attempt:
            self.attempt = record.attempt
        if self._attempts and record.attempt not in self._attempts:
            self.happenings.append(Happening(record.step, "A"))
        self._attempts.add(record.attempt)
        self.last = record
        if record.compute_share is not None:
            self.last_timed = record
        self.step = record.step
        step = float(record.step)
        self.curves.loss.append(step, record.loss)
        self.curves.tokens_per_second.append(step, record.tokens_per_second)
        _append_all(self.curves.gpu_memory, step, record.peak_gpu_bytes)
        _append_all(self.curves.host_memory, step, record.peak_host_bytes)
        self._recent_step_seconds.append(record.step_seconds)

    def _forget_after(self, step: int) -> None:
        """A later attempt begins anew at ``step``: what the earlier one had beyond it is gone."""
        assert self.curves is not None
        self.happenings = [each for each in self.happenings if each.x < step]
        self._cut(self.curves.eval_loss, step)

    @staticmethod
    def _cut(series: "Series", step: int) -> None:
        keep = len([x for x in series.x if x < step])
        if keep < len(series):
            series.cut(keep)

    def take_event(self, event: AnyEvent) -> None:
        """Add a record of events.jsonl."""
        self.attempt = max(self.attempt, event.attempt)
        match event:
            case StateEvent():
                if event.state != self.state or self.state_since is None:
                    self.state, self.state_since = event.state, event.time
                self.step = max(self.step, event.step) if event.step else self.step
                self._note(event.time, f"{event.state} at step {event.step}")
            case EvaluationEvent():
                self._take_evaluation(event)
            case CheckpointEvent():
                self.last_checkpoint = event
                self.happenings.append(Happening(event.step, "S"))
            case CommandEvent():
                self._note(event.time, f"{event.name} {event.phase}" + _because(event.message))
            case WarningEvent():
                self.warning = event
                self._note(event.time, f"warning: {event.message}")
            case ExitEvent():
                self.state, self.state_since = event.state, event.time
                self._note(
                    event.time, f"{event.state} at step {event.step}" + _because(event.message)
                )
            case SampleEvent():
                self._take_sample(event)

    def _take_evaluation(self, event: EvaluationEvent) -> None:
        if self.curves is None:
            from workbench.tui.widgets.series import Series, Smoothed

            self.curves = Curves(Smoothed(EMA_DECAY), Series(), Series())
        self.last_evaluation = event
        if event.loss is not None and (
            self.best_evaluation is None
            or self.best_evaluation.loss is None
            or event.loss < self.best_evaluation.loss
        ):
            self.best_evaluation = event
        self.curves.eval_loss.append(float(event.step), event.loss)
        self.happenings.append(Happening(event.step, "E"))

    def _take_sample(self, event: SampleEvent) -> None:
        newest = self.samples[0] if self.samples else event
        if (event.attempt, event.step) < (newest.attempt, newest.step) or event in self.samples:
            return
        if (event.attempt, event.step) != (newest.attempt, newest.step):
            self.samples = []
        self.samples.append(event)
        self._note(event.time, f"at step {event.step} {spoken(event)}")

    def take_status(self, status: Status, now: float) -> None:
        """Take the supervisor's own word; ``now`` is when it was heard."""
        self.state, self.state_since = status.state, status.since
        self.step = max(status.step, self.step if self.state not in END_STATES else 0)
        self.max_steps = status.max_steps or self.max_steps
        self.attempt = status.attempt
        if status.idle_seconds is not None:
            self._last_sign = now - status.idle_seconds
        self.pending = tuple(status.pending)

    def take_log(self, text: str) -> None:
        """Add whole lines of log.txt."""
        for line in text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"):
            self.log.append(LogLine(clean_line(line)))
            self.num_log_lines += 1

    def take_link(self, connected: bool, reason: str, since: float) -> None:
        """Take that the supervisor answers, or does not."""
        self.has_link = connected
        self.link = None if connected else reason
        self.link_since = since

    def take_outcome(self, outcome: Outcome) -> None:
        """Take how the run ended."""
        self.outcome = outcome
        self.state, self.state_since = outcome.state, outcome.time
        self.step = max(self.step, outcome.step)
        self.pending = ()
        self.link = None
        if outcome.state == "finished":
            self.max_steps = self.step

    def _note(self, time: float, text: str) -> None:
        from workbench.tui import words

        self.log.append(LogLine(f"{words.clock(time)} · {text}", "note"))
        self.num_log_lines += 1

    # ---- what follows from it ----------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """The last process is gone, or nobody can say."""
        return self.state in END_STATES

    def idle(self, now: float) -> float | None:
        """Give for how long no step has ended, None where nobody said."""
        if self._last_sign is None or self.has_ended:
            return None
        # What rank 0 says of itself is up to two seconds old; a record is a sign of life as well.
        last_record = self.last.time if self.last else 0.0
        return max(now - max(self._last_sign, last_record), 0.0)

    def is_silent(self, now: float) -> bool:
        """Whether no step has ended for twice the slowest of the last 20, at least two minutes."""
        idle = self.idle(now)
        if idle is None or self.state not in ("training", "stopping", "saving", "evaluating"):
            return False
        slowest = max(self._recent_step_seconds, default=0.0)
        return idle > max(2 * slowest, SILENT_AT_LEAST_SECONDS)

    @property
    def eta_seconds(self) -> float | None:
        """Time to the last step at the pace of the last windows, None where it cannot be said."""
        if self.max_steps is None or not self._recent_step_seconds or not self._moves:
            return None
        pace = sum(self._recent_step_seconds) / len(self._recent_step_seconds)
        return max(self.max_steps - self.step, 0) * pace

    @property
    def _moves(self) -> bool:
        return self.state not in ("paused", "stopping") and not self.has_ended

    @property
    def trend(self) -> str:
        """▼ ▲ ▬: where the smoothed loss went over the last 200 records; blank for too few."""
        change = self.curves.loss.trend() if self.curves else None
        if change is None:
            return " "
        return "▼" if change < -0.002 else "▲" if change > 0.002 else "▬"

    @property
    def steps_since_save(self) -> int:
        """Steps that would be lost if the job ended now without saving."""
        saved = self.last_checkpoint.step if self.last_checkpoint else 0
        return max(self.step - saved, 0)

    @property
    def seconds_since_save(self) -> float | None:
        """What these steps took, at the pace of the last windows."""
        if not self._recent_step_seconds:
            return None
        pace = sum(self._recent_step_seconds) / len(self._recent_step_seconds)
        return self.steps_since_save * pace

    def pending_since(self, name: CommandName) -> float | None:
        """Give when a command was accepted that is not done yet."""
        return next((each.since for each in self.pending if each.name == name), None)


def _append_all(series: "list[Series]", step: float, num_bytes: list[int]) -> None:
    from workbench.tui.widgets.series import Series

    while len(series) < len(num_bytes):
        series.append(Series())
    for each, value in zip(series, num_bytes, strict=False):
        each.append(step, value / _GIB)


def _because(message: str) -> str:
    return f": {message}" if message else ""


def spoken(sample: SampleEvent) -> str:
    """Write a prompt and its reply on one line, whatever they hold: ``Hi → Hello!``."""
    prompt, reply = (
        " ".join(_CONTROL.sub(" ", text).split()) for text in (sample.prompt, sample.reply)
    )
    return f"{prompt} → {reply or '(nothing)'}" + (" …" if sample.cut else "")


def clean_line(line: str) -> str:
    r"""Give a log line for the eye: what a carriage return overwrote is gone, colours too.

    ``"[default0]:10%\r50%"`` gives ``"50%"``; the prefix of the only rank goes as well.
    """
    line = _RANK.sub("", line)
    line = line.rstrip("\r").rpartition("\r")[2]
    return (
        _CONTROL.sub("", line.expandtabs(4))
        if not line.isascii() or _CONTROL.search(line)
        else line.expandtabs(4)
    )
