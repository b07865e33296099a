"""What is left of a job whose supervisor died: end its processes, write its outcome.

Runs as a short process of its own, so that outcome.json has one author. Invariant: nothing happens
while a supervisor holds the lock.
"""

import asyncio
import time
from pathlib import Path

from workbench.control.address import remove_stale
from workbench.errors import RefusedError, RunError
from workbench.runs.catalog import last_known
from workbench.runs.events import ExitEvent
from workbench.runs.job_file import JobFile, read_job_file
from workbench.runs.json_lines import LineWriter
from workbench.runs.layout import RunFolder
from workbench.runs.lock import take_lock
from workbench.runs.outcome import Outcome, write_outcome
from workbench.runs.registry import entry_of, outcome_of
from workbench.supervisor import processes


def clean_up(run: RunFolder, job: str) -> None:
    """End every process of a lost job; write its outcome where the run folder still tells of it.

    Raises:
        RefusedError: a supervisor holds the lock.
    """
    if not run.path.is_dir():
        asyncio.run(processes.end(job, None, stacks=False))
        return
    lock = take_lock(run.lock)
    if lock is None:
        raise RefusedError(
            "a job is running in this folder", where=str(run.path), remedy="stop it first"
        )
    try:
        killed = asyncio.run(processes.end(job, None, stacks=False))
        job_file = _job_file(run)
        if job_file is not None and job_file.job == job:
            remove_stale(Path(job_file.socket))
            _write_lost(run, job_file, killed)
    finally:
        lock.release()


def _job_file(run: RunFolder) -> JobFile | None:
    try:
        return read_job_file(run.job)
    except RunError:
        return None


def _write_lost(run: RunFolder, job_file: JobFile, killed: int) -> None:
    if outcome_of(entry_of(job_file, run)) is not None:
        return
    step, checkpoint = last_known(run)
    message = "the supervisor ended without an outcome"
    outcome = Outcome(
        attempt=job_file.attempt,
        state="lost",
        step=step,
        time=time.time(),
        message=message,
        checkpoint=checkpoint,
        killed=killed,
    )
    write_outcome(run.outcome, outcome)
    writer = LineWriter(run.events)
    writer.append(
        ExitEvent(
            time=outcome.time, attempt=job_file.attempt, state="lost", step=step, message=message
        )
    )
    writer.close()
