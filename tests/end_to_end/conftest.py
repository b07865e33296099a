"""The real thing: `workbench` as a program, its supervisor, torchrun and the trainer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.short_folder import short_folder
from workbench.runs.job_file import JobFile, processes_of, read_job_file
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome, read_outcome

LIMIT_SECONDS = 90.0

# Small enough that a step takes no time; everything else is the demo as it is shipped.
SMALL = [
    "data.max_length=64",
    "batch.train=4",
    "evaluation.every_steps=0",
    "checkpoints.every_steps=10",
    "optimizer.warmup_steps=2",
]


def wait_until(is_true: Callable[[], object], what: str, seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


@dataclass
class Ended:
    status: int
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


class Workplace:
    """A folder to work in, with sockets and a registry of its own."""

    def __init__(self, path: Path, runtime: Path) -> None:
        self.path = path
        self.environment = os.environ.copy()
        # Several tests share two cores: more threads would only wait for each other.
        self.environment["OMP_NUM_THREADS"] = "1"
        self.environment["XDG_RUNTIME_DIR"] = str(runtime)
        self.environment["XDG_STATE_HOME"] = str(path / "state")
        self._started: list[subprocess.Popen[str]] = []

    def workbench(self, *arguments: str) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", "workbench", *arguments],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `workbench` and leave it running."""
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench", *arguments],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run_folder(self, name: str) -> RunFolder:
        return RunFolder(self.path / "output" / name)

    def end_everything(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        for job_path in self.path.glob("output/*/job.json"):
            job_file = read_job_file(job_path)
            assert job_file is not None
            for pid in processes_of(job_file.job):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda job=job_file.job: not processes_of(job), "the end of a job", 20)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with short_folder() as runtime:
        made = Workplace(tmp_path_factory.mktemp("workplace"), runtime)
        yield made
        made.end_everything()


def job_of(run: RunFolder) -> JobFile:
    found = read_job_file(run.job)
    assert found is not None
    return found


def outcome_of(run: RunFolder) -> Outcome:
    found = read_outcome(run.outcome)
    assert found is not None
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_bytes()
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]


def losses_of(run: RunFolder) -> dict[int, float]:
    """Loss by step; of two records for one step the later attempt's counts."""
    records = sorted(lines_of(run.metrics), key=lambda record: record["attempt"])
    return {record["step"]: record["loss"] for record in records}


def last_step(run: RunFolder) -> int:
    return max((record["step"] for record in lines_of(run.metrics)), default=0)


def ranks_of(run: RunFolder) -> list[int]:
    """The pids of the job's ranks: what torchrun has started."""
    found = []
    for pid in processes_of(job_of(run).job):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"workbench.training" in words and b"torch.distributed.run" not in words:
            found.append(pid)
    return found
