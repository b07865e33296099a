"""Every run under a folder, newest first, each with where it stands according to its files.

Reads the ends of files only, so that a long list stays quick. Invariant: whatever lies in a folder,
it makes at most that one row unreadable.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workbench.control.messages import JobFailure
from workbench.control.states import END_STATES, JobState
from workbench.errors import RunError
from workbench.runs.checkpoints import newest_complete
from workbench.runs.events import StateEvent
from workbench.runs.job_file import JobFile, read_job_file, this_host
from workbench.runs.json_lines import last_line, read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.runs.registry import JobEntry, entry_of, liveness, outcome_of, readable_outcome

DEPTH = 3
"""Folders below the one that is searched; run folders themselves are not descended into."""


@dataclass(frozen=True)
class RunSummary:
    """Where a run stands. ``state`` is None where it was written but never started.

    ``since`` is when it entered the state, epoch seconds; ``host`` None where it never ran.
    ``max_steps`` is known of ended runs; while one runs its supervisor tells it.
    """

    run: RunFolder
    job: JobFile | None
    state: JobState | None
    reason: JobFailure | None
    message: str
    step: int
    max_steps: int | None
    since: float
    started: float
    loss: float | None
    checkpoint: str | None
    host: str | None


def is_run(path: Path) -> bool:
    """Tell whether a folder is a run folder: it holds a resolved config and its origins."""
    run = RunFolder(path)
    return run.config.is_file() and (run.origins.is_file() or run.job.is_file())


def runs_under(folder: Path, depth: int = DEPTH) -> list[RunFolder]:
    """Find every run folder under (or at) a folder, newest first; links are not followed."""
    found = list(_walk(folder, depth))
    return sorted(found, key=_written, reverse=True)


def summarise(run: RunFolder) -> RunSummary:
    """Say where a run stands, from its files and, for a job of this host, its supervisor."""
    job: JobFile | None = None
    with contextlib.suppress(RunError):
        job = read_job_file(run.job)
    metrics = last_metrics(run)
    step, checkpoint = last_known(run)
    written = _written(run)
    state: JobState | None = None
    reason: JobFailure | None = None
    message, since, max_steps = "", written, None
    if job is not None:
        entry = entry_of(job, run)
        outcome = outcome_of(entry)
        if outcome is not None:
            state, reason, message = outcome.state, outcome.reason, outcome.message
            step, since, max_steps = outcome.step, outcome.time, outcome.max_steps
            checkpoint = outcome.checkpoint
        else:
            state, since = _state_without_outcome(entry)
    return RunSummary(
        run=run,
        job=job,
        state=state,
        reason=reason,
        message=message,
        step=step,
        max_steps=max_steps,
        since=since,
        started=_mtime(run.job) or written,
        loss=metrics.loss if metrics is not None else None,
        checkpoint=checkpoint,
        host=job.host if job is not None else None,
    )


def last_metrics(run: RunFolder) -> MetricsRecord | None:
    """Give the latest metrics record, or None where there is none that can be read."""
    line = last_line(run.metrics)
    if line is None:
        return None
    try:
        return msgspec.json.decode(line, type=MetricsRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def last_known(run: RunFolder) -> tuple[int, str | None]:
    """Give the last step that left a trace, and the newest complete checkpoint, relative."""
    newest = newest_complete(run)
    metrics = last_metrics(run)
    outcome = readable_outcome(run)
    steps = [
        newest.step if newest else 0,
        metrics.step if metrics else 0,
        outcome.step if outcome else 0,
    ]
    checkpoint = str(newest.path.relative_to(run.path)) if newest else None
    return max(steps), checkpoint


def last_state(run: RunFolder, attempt: int) -> StateEvent | None:
    """Give the last state event of an attempt, or None before the first."""
    found: StateEvent | None = None
    lines, _ = read_lines(run.events)
    for line in reversed(lines):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            event = msgspec.json.decode(line.content, type=StateEvent)
            if event.attempt == attempt:
                found = event
                break
    return found


def _state_without_outcome(entry: JobEntry) -> tuple[JobState, float]:
    event = last_state(entry.folder, entry.attempt)
    since = event.time if event is not None else (_mtime(entry.folder.job) or time.time())
    if entry.host == this_host() and liveness(entry) == "lost":
        return "lost", since
    if event is None or event.state in END_STATES:
        return "starting", since
    return event.state, since


def _walk(folder: Path, depth: int) -> Iterator[RunFolder]:
    if is_run(folder):
        yield RunFolder(folder)
        return
    if depth == 0:
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _walk(path, depth - 1)


def _written(run: RunFolder) -> float:
    return _mtime(run.job) or _mtime(run.config) or 0.0


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
