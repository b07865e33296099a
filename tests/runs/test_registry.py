"""The registry only points: whatever lies in it, nothing crashes and nothing is deleted."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.short_folder import short_folder
from workbench.control.address import ready_socket_folder
from workbench.errors import ConfigError, ControlError, RefusedError
from workbench.runs.job_file import start_time_of, this_boot, this_host, write_job_file
from workbench.runs.outcome import Outcome, write_outcome
from workbench.runs.registry import (
    JobEntry,
    entries,
    find_job,
    latest_entries,
    liveness,
    registry_folder,
    remove_entry,
    write_entry,
)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with short_folder() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield


def entry(tmp_path: Path, job: str = "demo-1-aaaaaa", **changed: object) -> JobEntry:
    """An entry of a job that is gone, with its run folder."""
    run = tmp_path / "output" / job[:-7]
    made = JobEntry(
        job=job,
        attempt=1,
        host=this_host(),
        boot_id=this_boot(),
        socket=str(ready_socket_folder() / "0123456789ab.sock"),
        pid=2**22 - 3,
        start_time=1,
        run=str(run),
    )
    made = msgspec.structs.replace(made, **changed)
    run.mkdir(parents=True, exist_ok=True)
    write_job_file(run / "job.json", made)  # type: ignore[arg-type]
    content = msgspec.to_builtins(made)
    del content["run"]
    (run / "job.json").write_bytes(msgspec.json.encode(content))
    write_entry(made)
    return made


def test_entries_come_back_newest_first(tmp_path: Path) -> None:
    first, second = entry(tmp_path), entry(tmp_path, "demo-2-bbbbbb")
    os.utime(registry_folder() / f"{first.job}.json", (1, 1))
    assert entries() == [second, first]
    remove_entry(second.job)
    assert entries() == [first]


def test_hostile_files_are_passed_over_and_left_alone(tmp_path: Path) -> None:
    good = entry(tmp_path)
    folder = registry_folder()
    secret = tmp_path / "secret"
    secret.write_bytes(msgspec.json.encode(good))
    (folder / "demo-1-cccccc.json").symlink_to(secret)
    (folder / "demo-1-dddddd.json").write_bytes(b"{" * 100)
    (folder / "demo-1-eeeeee.json").write_bytes(b" " * 1_000_000)
    (folder / "demo-1-ffffff.json").mkdir()
    os.mkfifo(folder / "demo-1-abcdef.json")
    (folder / "..-aaaaaa.json").write_bytes(b"{}")
    (folder / "README").write_text("hello")
    (folder / "demo-9-aaaaaa.json").write_bytes(msgspec.json.encode(good))  # says another job
    relative = msgspec.structs.replace(good, job="demo-8-aaaaaa", run="output/demo-8")
    (folder / "demo-8-aaaaaa.json").write_bytes(msgspec.json.encode(relative))
    before = sorted(path.name for path in folder.iterdir())
    assert len(before) == 10
    assert entries() == [good]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_registry_that_is_not_there_is_empty() -> None:
    assert entries() == []
    assert not registry_folder().exists()


def test_a_job_without_outcome_and_process_is_lost(tmp_path: Path) -> None:
    assert liveness(entry(tmp_path)) == "lost"


def test_a_job_with_an_outcome_of_its_attempt_has_ended(tmp_path: Path) -> None:
    made = entry(tmp_path, attempt=2)
    earlier = Outcome(attempt=1, state="failed", step=3, time=1.0)
    write_outcome(made.folder.outcome, earlier)
    assert liveness(made) == "lost"
    write_outcome(made.folder.outcome, msgspec.structs.replace(earlier, attempt=2))
    assert liveness(made) == "ended"


def test_a_job_that_was_started_again_has_ended(tmp_path: Path) -> None:
    made = entry(tmp_path)
    later = entry(tmp_path, "demo-1-bbbbbb", attempt=2)
    assert later.run == made.run
    assert liveness(made) == "ended"
    assert latest_entries() == [later]


def test_the_same_pid_with_another_start_time_is_another_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        begun = start_time_of(process.pid)
        assert begun is not None
        alive = entry(tmp_path, pid=process.pid, start_time=begun)
        reused = entry(tmp_path, "demo-2-aaaaaa", pid=process.pid, start_time=begun - 1)
        rebooted = entry(
            tmp_path, "demo-3-aaaaaa", pid=process.pid, start_time=begun, boot_id="earlier"
        )
        assert [liveness(each) for each in (alive, reused, rebooted)] == ["alive", "lost", "lost"]
        process.communicate(b"\n")
    assert liveness(alive) == "lost"


def test_a_job_of_another_host_is_not_judged(tmp_path: Path) -> None:
    made = entry(tmp_path, host="elsewhere")
    write_outcome(made.folder.outcome, Outcome(attempt=1, state="finished", step=1, time=1.0))
    assert liveness(made) == "elsewhere"


def test_somebody_at_the_socket_who_is_another_job_does_not_count(tmp_path: Path) -> None:
    made = entry(tmp_path)
    answer = (
        b'{"type":"hello","protocol":1,"role":"supervisor","program":"","host":"","pid":1,'
        b'"job":"demo-7-aaaaaa"}\n'
    )
    program = (
        "import socket, sys\n"
        "server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen()\n"
        "print(flush=True)\n"
        "other, _ = server.accept(); other.recv(4096); other.sendall(sys.argv[2].encode())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, made.socket, answer.decode()], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert liveness(made) == "lost"


def test_a_socket_in_a_folder_open_to_others_is_not_asked(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    address = folder / "0123456789ab.sock"
    made = entry(tmp_path, socket=str(address))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        server.settimeout(0.1)
        begin = time.monotonic()
        assert liveness(made) == "lost"
        assert time.monotonic() - begin < 1.5
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_job_is_found_by_what_names_it_uniquely(tmp_path: Path) -> None:
    one, other = entry(tmp_path), entry(tmp_path, "demo-12-bbbbbb")
    again = entry(tmp_path, "demo-1-cccccc", attempt=2)
    for name in ("demo-1", "demo-1-c", again.job, again.run):
        assert find_job(name) == again, name
    assert find_job(one.job) == one
    assert find_job("demo-12") == other
    with pytest.raises(RefusedError, match="2 jobs match"):
        find_job("demo")
    for name in ("nothing", "", "../demo-1", "demo-1-aaaaaaa"):
        with pytest.raises(ControlError, match="no such job"):
            find_job(name)


def test_a_run_started_by_way_of_a_link_is_one_run(tmp_path: Path) -> None:
    first = entry(tmp_path)
    (tmp_path / "link").symlink_to(first.run)
    write_entry(msgspec.structs.replace(first, job="link-bbbbbb", run=str(tmp_path / "link")))
    second = entry(tmp_path, "demo-1-cccccc", attempt=2)
    assert latest_entries() == [second]


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(ConfigError, match="set it, or HOME"):
        entries()


def test_an_unknown_user_behind_a_tilde_is_no_job() -> None:
    with pytest.raises(ControlError, match="no such job"):
        find_job("~nobody-of-that-name")
