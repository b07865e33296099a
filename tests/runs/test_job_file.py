"""Job ids, and how a process is told from another with its pid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.runs.job_file import (
    JOB_ID,
    JOB_VARIABLE,
    JobFile,
    last_attempt,
    new_job_id,
    processes_of,
    read_job_file,
    start_time_of,
    write_job_file,
)
from workbench.runs.layout import RunFolder
from workbench.runs.lock import is_locked, take_lock


@pytest.mark.parametrize("name", ["demo-1", "a b/c", "..", "", "-x", "ü" * 300, "x" * 300])
def test_a_job_id_can_be_a_file_name_whatever_the_run_is_called(name: str) -> None:
    job = new_job_id(name)
    assert JOB_ID.fullmatch(job)
    assert "/" not in job
    assert new_job_id(name) != job


def test_a_process_is_known_by_its_pid_and_start_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        begun = start_time_of(process.pid)
        assert begun is not None
        own = start_time_of(os.getpid())
        assert own is not None
        assert begun >= own
        process.communicate(b"\n")
        assert start_time_of(process.pid) is None


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time_of(process.pid) is None
    process.wait()


def test_every_process_with_the_job_in_its_environment_is_found() -> None:
    job = new_job_id("found")
    program = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,"
        " start_new_session=True); print(child.pid, flush=True); input(); child.communicate(b'')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {JOB_VARIABLE: job},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert processes_of(job) == sorted([process.pid, grandchild])
        assert processes_of(job[:-1]) == []
        process.communicate(b"\n")
    assert processes_of(job) == []


def job_file(attempt: int = 3) -> JobFile:
    return JobFile(
        job="run-0123ab",
        attempt=attempt,
        host="tower",
        boot_id="b",
        socket="/s/0123456789ab.sock",
        pid=1,
        start_time=2,
    )


def test_a_job_file_is_read_as_written(tmp_path: Path) -> None:
    write_job_file(tmp_path / "job.json", job_file())
    assert read_job_file(tmp_path / "job.json") == job_file()
    assert read_job_file(tmp_path / "other.json") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x00" * 100, b"x" * 100_000, b'{"job": 1}'],
)
def test_garbage_is_no_job_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match="job file"):
        read_job_file(path)


def test_a_job_id_with_a_path_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    content = path.with_name("other.json")
    write_job_file(content, job_file())
    path.write_bytes(content.read_bytes().replace(b"run-0123ab", b"../../x-0123ab"))
    with pytest.raises(RunError, match="is not a job id"):
        read_job_file(path)


def test_the_last_attempt_is_the_highest_that_left_a_trace(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert last_attempt(run) == 0
    run.metrics.write_text('{"attempt":1,"step":1}\n{"attempt":4,"st')
    assert last_attempt(run) == 1
    write_job_file(run.job, job_file(3))
    assert last_attempt(run) == 3
    run.job.write_text("garbage")
    run.events.write_text('{"attempt":2,"event":"state"}\n')
    assert last_attempt(run) == 2


def test_a_lock_is_held_by_one_and_let_go_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    held = take_lock(path)
    assert held is not None
    assert is_locked(path)
    assert take_lock(path) is None
    held.release()
    assert not is_locked(path)


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = take_lock(path)
    assert held is not None
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        held.release()
        assert not is_locked(path)
        child.communicate(b"\n")
