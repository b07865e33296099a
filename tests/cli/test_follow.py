"""Narration: a bar on a terminal, plain lines elsewhere; the words for each event."""

import asyncio
import fcntl
import json
import os
import select
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from workbench.cli.follow import Screen, follow
from workbench.cli.narration import ending_lines, event_line, metrics_line, size, span
from workbench.control.messages import Status
from workbench.jobs.follow import EventUpdate, MetricsUpdate, StatusUpdate, Update
from workbench.runs.events import CheckpointEvent, EvaluationEvent, StateEvent, WarningEvent
from workbench.runs.job_file import JobFile, this_boot, this_host, write_job_file
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.runs.outcome import FirstError, Outcome, write_outcome

RECORD = MetricsRecord(
    time=0.0, attempt=1, step=7, epoch=0.5, tokens=100, target_tokens=50, loss=1.25,
    learning_rate=1e-3, gradient_norm=None, largest_gradient_norm=None, tokens_per_second=2140.4,
    step_seconds=0.1, peak_gpu_bytes=[], peak_host_bytes=[3 << 20], nonfinite=["gradient_norm"],
)  # fmt: skip
STATUS = Status(
    id=1, state="training", since=0.0, step=7, max_steps=20, attempt=1, idle_seconds=0.0,
    pending=[], checkpoint=None, offsets={},
)  # fmt: skip
UPDATES: list[Update] = [
    EventUpdate(0, StateEvent(time=0.0, attempt=1, state="training", step=0)),
    StatusUpdate(STATUS),
    MetricsUpdate(0, RECORD),
]


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make stderr a terminal of 80 columns; give the end to read from."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        try:
            yield ours
        finally:
            monkeypatch.undo()
            os.close(ours)


def test_on_a_terminal_a_bar_tells_step_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown:
        with Screen(tells_metrics=True) as screen:
            for update in UPDATES:
                screen.show(update)
        told = ""
        while select.select([shown], [], [], 0.1)[0]:
            told += os.read(shown, 1 << 16).decode()
    assert "7/20" in told
    assert "loss 1.2500" in told
    assert "step 0  training\r\n" in told


def test_elsewhere_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for tells_metrics, num_lines in ((True, 2), (False, 1)):
        with Screen(tells_metrics=tells_metrics) as screen:
            for update in UPDATES:
                screen.show(update)
        told = capsys.readouterr()
        assert told.out == ""
        assert "\r" not in told.err
        assert len(told.err.splitlines()) == num_lines
        assert screen.last == RECORD


def test_a_window_says_what_the_card_was_used_for() -> None:
    told = metrics_line(
        replace(RECORD, mfu=0.521, compute_share=0.957, transfer_share=0.314,
                waiting_share=0.02, optimizer_share=0.023, first_step_seconds=31.24)
    )  # fmt: skip
    assert told.endswith(
        "peak 3.0 MiB  first step 31.2 s after launch  "
        "MFU 52 % · compute 96 · copies 31 · waiting 2 · optimizer 2 %"
    )
    assert metrics_line(RECORD).endswith("peak 3.0 MiB")
    assert metrics_line(replace(RECORD, mfu=0.521)).endswith("  MFU 52 %")


def test_the_closing_lines_set_the_measured_beside_the_predicted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.plan.write_text(
        json.dumps(
            {"predicted": {"reserved": 102 << 30}, "predicted_seconds": 1.9,
             "measured": {"peak_gpu_reserved_bytes": 100 << 30}, "measured_seconds": 2.0}
        )
    )  # fmt: skip
    outcome = Outcome(attempt=2, state="finished", step=4, time=0.0)
    assert ending_lines(run, outcome, RECORD)[2:] == [
        "memory: 102.0 GiB predicted, 100.0 GiB measured (+2.0 %)",
        "step: 1.9 s predicted, 2 s measured (−5.0 %)",
    ]
    run.plan.unlink()
    assert len(ending_lines(run, outcome, RECORD)) == 2, "an older run predicts no seconds"


def test_several_remedies_stand_below_each_other(tmp_path: Path) -> None:
    first = FirstError(rank=0, message="short", remedy="1. free it\n2. lower it")
    outcome = Outcome(attempt=1, state="failed", step=4, time=0.0, first_error=first)
    assert ending_lines(RunFolder(tmp_path), outcome, None)[-2:] == ["1. free it", "2. lower it"]


def test_a_number_that_is_none_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(tells_metrics=True) as screen:
        screen.show(MetricsUpdate(0, RECORD))
    assert "gnorm not finite" in capsys.readouterr().err


def test_events_are_told_with_what_matters() -> None:
    saved = CheckpointEvent(
        time=0.0, attempt=1, step=5, path="checkpoints/checkpoint-5", bytes=3 << 20, seconds=0.4,
        best=True, pruned=["checkpoint-1"],
    )  # fmt: skip
    assert event_line(saved).endswith(
        "saved checkpoints/checkpoint-5: 3.0 MiB in 0.4 s, best so far, pruned checkpoint-1"
    )
    evaluated = EvaluationEvent(
        time=0.0, attempt=1, step=5, loss=None, perplexity=None, accuracy=None, target_tokens=1200,
        seconds=0.1,
    )  # fmt: skip
    assert "loss not finite over 1,200 target tokens" in event_line(evaluated)
    warned = WarningEvent(time=0.0, attempt=1, step=5, message="the disk is full", remedy="tidy")
    assert event_line(warned).endswith("warning: the disk is full; tidy")


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "0s"), (59, "59s"), (90, "1m"), (7200, "2h"), (200_000, "2d")]
)
def test_spans_are_short(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("num_bytes", "told"), [(12, "12 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes_are_told_in_the_unit_that_fits(num_bytes: int, told: str) -> None:
    assert size(num_bytes) == told


def ended_run(folder: Path) -> RunFolder:
    """Write what a failed run leaves behind."""
    run = RunFolder(folder)
    job_file = JobFile(
        job="run-aaaaaa", attempt=1, host=this_host(), boot_id=this_boot(), socket="/none",
        pid=2**22 - 3, start_time=1,
    )  # fmt: skip
    write_job_file(run.job, job_file)
    run.events.write_text('{"event":"state","time":7.0,"attempt":1,"state":"training","step":3}\n')
    write_outcome(run.outcome, Outcome(attempt=1, state="failed", step=3, time=8.0))
    return run


@pytest.mark.parametrize("to", ["a pipe that nobody reads", "a full disk"])
def test_a_job_is_followed_to_its_end_when_stdout_takes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    if to == "a full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    with os.fdopen(descriptor, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        outcome, _, _ = asyncio.run(follow(ended_run(tmp_path), 1, records_on_stdout=True))
        monkeypatch.undo()
    assert outcome.state == "failed"
    assert "no more records are written" in capfd.readouterr().err
