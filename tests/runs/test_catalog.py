"""Every run under a folder, newest first, whatever else lies there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder
from workbench.control.address import ready_socket_folder
from workbench.runs.catalog import last_known, runs_under, summarise
from workbench.runs.job_file import JobFile, this_boot, this_host, write_job_file
from workbench.runs.json_lines import last_line
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome, write_outcome


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield


def run_at(path: Path, when: float) -> RunFolder:
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.config.write_text("")
    run.origins.write_text("{}")
    os.utime(run.config, (when, when))
    return run


def started(run: RunFolder, **changed: object) -> None:
    fields = {
        "job": f"{run.name}-aaaaaa",
        "attempt": 1,
        "host": this_host(),
        "boot_id": this_boot(),
        "socket": str(ready_socket_folder() / "0123456789ab.sock"),
        "pid": 2**22 - 3,
        "start_time": 1,
    }
    write_job_file(run.job, JobFile(**(fields | changed)))  # type: ignore[arg-type]


def test_runs_come_newest_first_and_other_folders_do_not(tmp_path: Path) -> None:
    output = tmp_path / "output"
    old, new = run_at(output / "a-1", 100.0), run_at(output / "group" / "b-1", 200.0)
    (output / "notes").mkdir()
    (output / "loop").symlink_to(output)
    run_at(output / "a-1" / "checkpoints" / "inside", 300.0)
    (output / ".hidden").mkdir()
    found = [run.path for run in runs_under(output)]
    assert found == [new.path, old.path]
    assert runs_under(tmp_path / "nowhere") == []


def test_a_run_that_was_never_started_has_no_state(tmp_path: Path) -> None:
    summary = summarise(run_at(tmp_path / "a-1", 100.0))
    assert (summary.state, summary.step, summary.job) == (None, 0, None)


def test_an_ended_run_stands_as_its_outcome_says(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a-1", 100.0)
    started(run)
    outcome = Outcome(
        attempt=1, state="failed", step=12, time=5.0, reason="data", message="row 3 is bad"
    )
    write_outcome(run.outcome, outcome)
    summary = summarise(run)
    told = (summary.state, summary.reason, summary.message, summary.step, summary.since)
    assert told == ("failed", "data", "row 3 is bad", 12, 5.0)


def test_a_dead_supervisor_without_outcome_is_lost_not_running(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a-1", 100.0)
    started(run)
    run.events.write_text('{"event":"state","time":7.0,"attempt":1,"state":"training","step":3}\n')
    summary = summarise(run)
    assert (summary.state, summary.since) == ("lost", 7.0)


def test_a_run_of_another_host_stands_as_it_was_last_said(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a-1", 100.0)
    started(run, host="elsewhere")
    run.events.write_text(
        '{"event":"state","time":7.0,"attempt":1,"state":"training","step":3}\n{"event":"sta'
    )
    summary = summarise(run)
    assert (summary.state, summary.host) == ("training", "elsewhere")


@pytest.mark.parametrize("garbage", [b"\xff\x00{", b"", b"[]\n{}\nnull\n", b"x" * 200_000])
def test_garbage_in_every_file_spoils_no_row(tmp_path: Path, garbage: bytes) -> None:
    run = run_at(tmp_path / "a-1", 100.0)
    for path in (run.job, run.events, run.metrics, run.outcome, run.best):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(garbage)
    summary = summarise(run)
    assert summary.step == 0
    assert last_known(run) == (0, None)


def test_the_last_line_is_found_without_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert last_line(path) is None
    path.write_bytes(b"".join(b'{"n":%d}\n' % number for number in range(10_000)) + b'{"n":')
    assert last_line(path) == b'{"n":9999}'
    path.write_bytes(b"x" * 100 + b"\n")
    assert last_line(path, at_most_bytes=50) is None
