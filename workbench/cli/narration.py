"""What happened, in words: one plain line for each event, metrics window, check and ending.

Pure text for stderr, ``control watch`` and ``control status``; nothing here reads or writes.
"""

import time
from typing import assert_never

from workbench.jobs.data_worker import Progress
from workbench.jobs.preflight import Check
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
from workbench.runs.layout import RunFolder
from workbench.runs.measured import PlanComparison, compare_plan
from workbench.runs.metrics import MetricsRecord, utilization_words
from workbench.runs.outcome import Outcome

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


def check_line(check: Check) -> str:
    """Say what a check found."""
    return f"{_MARKS[check.state]} {check.name}: {check}"


def progress_line(progress: Progress) -> str:
    """Say how far preparing the data is: ``data: tokenizing 12,400 of 50,000``."""
    so_far = f" {progress.done:,} of {progress.total:,}" if progress.total else "…"
    return f"data: {progress.stage}{so_far}"


def event_line(event: AnyEvent) -> str:
    """Say what happened, with the time of day."""
    return f"{clock(event.time)} {_event_words(event)}"


def _event_words(event: AnyEvent) -> str:
    match event:
        case StateEvent(state=state, step=step):
            return f"step {step}  {state}"
        case CommandEvent(name=name, command=command, phase=phase, message=message):
            told = f"command {command}  {name} {phase}"
            return f"{told}: {message}" if message else told
        case CheckpointEvent():
            best = ", best so far" if event.best else ""
            pruned = f", pruned {', '.join(event.pruned)}" if event.pruned else ""
            return (
                f"step {event.step}  saved {event.path}: {size(event.bytes)} in "
                f"{event.seconds:.1f} s{best}{pruned}"
            )
        case EvaluationEvent():
            best = ", best so far" if event.best else ""
            return (
                f"step {event.step}  evaluated: loss {measured(event.loss)} over "
                f"{event.target_tokens:,} target tokens{best}"
            )
        case SampleEvent():
            return f"step {event.step}  {event.prompt!r} → {event.reply!r}"
        case WarningEvent():
            remedy = f"; {event.remedy}" if event.remedy else ""
            return f"step {event.step}  warning: {event.message}{remedy}"
        case ExitEvent(state=state, step=step, message=message):
            return f"step {step}  {state}" + (f": {message}" if message else "")
        case _:
            assert_never(event)


def metrics_line(record: MetricsRecord) -> str:
    """Say what a logging window measured."""
    return (
        f"{clock(record.time)} step {record.step}  loss {measured(record.loss)}  "
        f"lr {record.learning_rate:.3g}  gnorm {measured(record.gradient_norm, 3)}  "
        f"{record.tokens_per_second:,.0f} tok/s  peak {peak(record)}"
        + _first_step(record)
        + (f"  {used}" if (used := utilization_words(record)) else "")
    )


def _first_step(record: MetricsRecord) -> str:
    if record.first_step_seconds is None:
        return ""
    return f"  first step {record.first_step_seconds:.1f} s after launch"


def peak(record: MetricsRecord) -> str:
    """Give the highest peak over the ranks: of the GPUs, of the host where there are none."""
    if record.peak_gpu_bytes:
        return size(max(record.peak_gpu_bytes))
    return size(max(record.peak_host_bytes, default=0))


def ending_lines(run: RunFolder, outcome: Outcome, last: MetricsRecord | None) -> list[str]:
    """Say how a job ended: the cause and what to do about it, or what it left."""
    reason = f" ({outcome.reason.replace('_', ' ')})" if outcome.reason else ""
    lines = [f"{outcome.state}{reason} at step {outcome.step}"]
    if outcome.message:
        lines[0] += f": {outcome.message}"
    if outcome.first_error is not None:
        lines += [f"  {line}" for line in outcome.first_error.traceback.strip().splitlines()[-8:]]
        if outcome.first_error.remedy:
            lines += outcome.first_error.remedy.splitlines()
    if last is not None and outcome.state in ("finished", "stopped"):
        lines.append(
            f"loss {measured(last.loss)}, {last.tokens_per_second:,.0f} tokens/s, peak {peak(last)}"
        )
        lines += comparison_lines(compare_plan(run))
    if outcome.checkpoint is not None:
        lines.append(f"newest checkpoint: {run.path / outcome.checkpoint}")
    return lines


def comparison_lines(compared: PlanComparison) -> list[str]:
    """Set what was measured beside what the plan had predicted; a line for what both know.

    The percentage says by how much the prediction is over what was measured:
    ``memory: 17.2 GiB predicted, 17.0 GiB measured (+1.2 %)``.
    """
    lines = []
    if compared.predicted_bytes and compared.measured_bytes:
        off = compared.predicted_bytes / compared.measured_bytes - 1
        lines.append(
            f"memory: {size(compared.predicted_bytes)} predicted, "
            f"{size(compared.measured_bytes)} measured ({_signed(off)})"
        )
    if compared.predicted_seconds and compared.measured_seconds:
        off = compared.predicted_seconds / compared.measured_seconds - 1
        lines.append(
            f"step: {compared.predicted_seconds:.3g} s predicted, "
            f"{compared.measured_seconds:.3g} s measured ({_signed(off)})"
        )
    return lines


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def measured(value: float | None, digits: int = 5) -> str:
    """Write a measured number; ``not finite`` for null."""
    return "not finite" if value is None else f"{value:.{digits}g}"


def size(num_bytes: float) -> str:
    """Write a number of bytes as people do: 1,536 gives 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"


def span(seconds: float) -> str:
    """Write a time span in its largest unit, short enough for a column: 90 s gives 1m."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def clock(epoch_seconds: float) -> str:
    """Give the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(epoch_seconds))
