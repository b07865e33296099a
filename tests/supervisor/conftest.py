"""A real supervisor process on a run folder, with a scripted rank in place of torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.control.viewer import Viewer
from tests.short_folder import short_folder
from workbench.runs.job_file import (
    JOB_VARIABLE,
    JobFile,
    new_job_id,
    processes_of,
    read_job_file,
)
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome, read_outcome

SCRIPTED_RANK = Path(__file__).with_name("scripted_rank.py")
LIMIT_SECONDS = 30.0


def wait_until(is_true: Callable[[], object], what: str, seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


class Supervised:
    """A run folder, its supervisor, and what they left.

    The job id is drawn anew for each test: another test's processes must not be found by it.
    """

    def __init__(self, path: Path, job: str, environment: dict[str, str]) -> None:
        self.run = RunFolder(path)
        self.job = job
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *actions: str, arguments: list[str] | None = None) -> None:
        self.run.path.mkdir(exist_ok=True)
        if self.process is not None and self.process.stderr is not None:
            self.process.stderr.close()
        rank = [sys.executable, str(SCRIPTED_RANK), str(self.run.path), *actions]
        command = {"arguments": arguments or rank, "environment": {}}
        self.run.command.write_text(json.dumps(command))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.supervisor", str(self.run.path)],
            env=os.environ | self.environment | {JOB_VARIABLE: self.job},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def job_file(self) -> JobFile:
        found = read_job_file(self.run.job)
        assert found is not None
        return found

    def connect(self) -> Viewer:
        wait_until(self.is_there, "job.json of this start")
        return Viewer.connect(Path(self.job_file.socket))

    def is_there(self) -> bool:
        found = read_job_file(self.run.job)
        return found is not None and found.job == self.job

    def ended(self, seconds: float = LIMIT_SECONDS) -> tuple[int, Outcome]:
        assert self.process is not None
        status = self.process.wait(seconds)
        outcome = read_outcome(self.run.outcome)
        assert outcome is not None
        return status, outcome

    def events(self) -> list[dict]:
        lines = self.run.events.read_bytes().splitlines()
        return [msgspec.json.decode(line) for line in lines]

    def wait_for_state(self, state: str) -> None:
        def said() -> bool:
            events = self.events() if self.run.events.exists() else []
            return any(e["event"] == "state" and e["state"] == state for e in events)

        wait_until(said, f"state {state}")

    def kill_everything(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        for pid in processes_of(self.job):
            os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Folders of this test alone for sockets and for the registry."""
    with short_folder() as runtime:
        environment = {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(tmp_path / "state")}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield environment


@pytest.fixture
def supervised(tmp_path: Path, homes: dict[str, str]) -> Iterator[Supervised]:
    made = Supervised(tmp_path / "run", new_job_id("run"), homes)
    yield made
    made.kill_everything()
