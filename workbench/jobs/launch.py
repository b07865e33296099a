"""A run folder, a detached supervisor, its first hello.

Invariant: when ``launch`` raises, no process of the job runs, and a folder in which nothing has run
is gone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from workbench.config.load import ResolvedConfig
from workbench.config.template_source import template_source
from workbench.errors import ControlError, RunError, WorkbenchError
from workbench.jobs.preflight import output_root
from workbench.jobs.torchrun_command import TorchrunCommand, torchrun_command
from workbench.runs.atomic import write_atomically
from workbench.runs.create import check_not_running, create_run, discard_new, plan_run
from workbench.runs.environment import look_around
from workbench.runs.job_file import JOB_VARIABLE, JobFile, new_job_id, processes_of, read_job_file
from workbench.runs.layout import RunFolder
from workbench.runs.lock import is_locked
from workbench.runs.registry import entry_of, outcome_of, supervisor_lives

HELLO_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_LAST_LINES = 5


def write_run(
    resolved: ResolvedConfig,
    *,
    project: Path | None = None,
    devices: str | None = None,
    torchrun_arguments: Sequence[str] = (),
) -> tuple[RunFolder, TorchrunCommand]:
    """Write the run folder up to ``command.json``; start nothing.

    Raises:
        RunError: the folder cannot be used, or the model is not there.
        RefusedError: a job is running in it, or the run has finished.
        ConfigError: what stood after ``--`` is not for torchrun.
        DataError: there is no such template.
    """
    assert resolved.config.model.path is not None, "preflight refuses a config without a model"
    template = template_source(resolved.config.data.chat_template, Path(resolved.config.model.path))
    planned = plan_run(resolved, output_root(project))
    # Asked for once before anything is written: a mistake in it leaves no folder.
    torchrun_command(resolved.config, planned.folder, devices=devices, extra=torchrun_arguments)
    surroundings = look_around(project if project is not None else Path.cwd())
    run = create_run(resolved, planned, template=template, surroundings=surroundings)
    command = torchrun_command(resolved.config, run, devices=devices, extra=torchrun_arguments)
    content = {"arguments": command.arguments, "environment": command.environment}
    try:
        text = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
        write_atomically(run.command, text)
    except OSError as error:
        if planned.is_new:
            discard_new(run)
        raise RunError(
            f"cannot be written: {error.strerror}",
            where=str(run.command),
            remedy="name another folder: --output-dir DIR",
        ) from error
    return run, command


def dry_run(
    resolved: ResolvedConfig,
    *,
    project: Path | None = None,
    devices: str | None = None,
    torchrun_arguments: Sequence[str] = (),
) -> tuple[RunFolder, TorchrunCommand, bool]:
    """Give the command of a start, and write a new run's folder so that it can be run by hand.

    Where a job has run before nothing is written: its config is the run's until it goes on.

    Returns:
        The run folder, the command, and whether the folder was written.

    Raises:
        WorkbenchError: as ``write_run``.
    """
    planned = plan_run(resolved, output_root(project))
    if planned.attempt == 1:
        run, command = write_run(
            resolved, project=project, devices=devices, torchrun_arguments=torchrun_arguments
        )
        return run, command, True
    command = torchrun_command(
        resolved.config, planned.folder, devices=devices, extra=torchrun_arguments
    )
    return planned.folder, command, False


def launch(
    resolved: ResolvedConfig,
    *,
    project: Path | None = None,
    devices: str | None = None,
    torchrun_arguments: Sequence[str] = (),
) -> tuple[RunFolder, JobFile]:
    """Write the run folder, start its supervisor, and wait until that says hello.

    Raises:
        WorkbenchError: as ``write_run`` and ``start_supervisor``.
    """
    run, _ = write_run(
        resolved, project=project, devices=devices, torchrun_arguments=torchrun_arguments
    )
    try:
        return run, start_supervisor(run)
    except WorkbenchError:
        if not run.job.exists():
            discard_new(run)
        raise


def start_supervisor(run: RunFolder) -> JobFile:
    """Start the detached supervisor of a written run, and wait for its first hello.

    Raises:
        RefusedError: a job is running in the folder.
        ControlError: the supervisor died, or said nothing in time.
    """
    check_not_running(run)
    job = new_job_id(run.name)
    log_begin = run.supervisor_log.stat().st_size if run.supervisor_log.exists() else 0
    deadline = time.monotonic() + HELLO_SECONDS
    try:
        said = _spawn_detached(run, job)
        while time.monotonic() < deadline:
            job_file = _job_file_of(run, job)
            if job_file is not None and _has_come_up(run, job_file):
                return job_file
            if job_file is None and not is_locked(run.lock):
                break
            time.sleep(_LOOK_SECONDS)
        why = said or _last_lines(run.supervisor_log, log_begin) or "it said nothing in time"
        raise ControlError(
            f"the supervisor did not start: {why}",
            where=str(run.path),
            remedy="mend what it says, then start again",
        )
    except BaseException:
        # Also when the user presses Ctrl-C: what nobody waits for must not start by itself.
        for pid in processes_of(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        raise


def _spawn_detached(run: RunFolder, job: str) -> str:
    """Start a supervisor that belongs to nobody; give what it said before it held the lock."""
    with subprocess.Popen(
        [sys.executable, "-m", "workbench.supervisor", "--detach", str(run.path)],
        cwd=run.path,
        env=os.environ | {JOB_VARIABLE: job},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            # It ends when the supervisor holds the lock and writes to its own log, or is dead.
            _, said = process.communicate(timeout=HELLO_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
    return said.strip()


def _has_come_up(run: RunFolder, job_file: JobFile) -> bool:
    return supervisor_lives(job_file) or outcome_of(entry_of(job_file, run)) is not None


def _job_file_of(run: RunFolder, job: str) -> JobFile | None:
    try:
        job_file = read_job_file(run.job)
    except RunError:
        return None
    return job_file if job_file is not None and job_file.job == job else None


def _last_lines(path: Path, begin: int) -> str:
    try:
        text = path.read_bytes()[begin:].decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])
