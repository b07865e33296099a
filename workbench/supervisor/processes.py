"""The processes of one job: start torchrun, reap, find every one of them, end them.

torchrun leads each rank into its own process group, so a signal to a group misses them all. Every
process of a job inherits its id in the environment and is found by that. Invariant: a signal goes
only to a process that was seen to carry the job's id while a handle on it was held.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.runs.job_file import JOB_VARIABLE, processes_of

logger = logging.getLogger(__name__)

TERMINATION_SECONDS = 10.0
"""How long processes have between SIGTERM and SIGKILL; torchrun by itself would wait 30."""

STACKS_SECONDS = 0.5
"""How long the ranks have to write their stacks before they are asked to end."""

_KILL_SECONDS = 3.0
_LOOK_SECONDS = 0.1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Let processes whose parent dies become children of this one, so that it can reap them.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Start torchrun with its output straight into a file; give its pid.

    No pipe lies between, so that no slow reader can ever hold up a rank.

    Raises:
        OSError: the program cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        arguments[0],
        list(arguments),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setpgroup=0,
        # Python ignores these, and a new program inherits what is ignored.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP],
        setsigmask=[],
    )


def reap() -> dict[int, int]:
    """Collect every child that has ended; give exit codes by pid, negative for signals."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def others_of(job: str) -> list[int]:
    """Find every process of the job but this one."""
    return [pid for pid in processes_of(job) if pid != os.getpid()]


def send(job: str, pid: int, number: signal.Signals) -> bool:
    """Signal a process if it still is one of the job; tell whether it was."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The handle pins the process: what its environment says now is said of this very one.
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"{JOB_VARIABLE}={job}".encode() not in environment:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal; without one, many signals are deadly."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        mask = next(line for line in lines.splitlines() if line.startswith("SigCgt:"))
        return bool(int(mask.split()[1], 16) >> (number - 1) & 1)
    return False


async def end(job: str, torchrun: int | None, *, stacks: bool) -> int:
    """End every process of the job; give how many needed SIGKILL.

    Takes at most ``STACKS_SECONDS`` + ``TERMINATION_SECONDS`` and three seconds, whatever state
    the ranks are in: stopped, wedged in C code, or deaf to SIGTERM.

    Args:
        job: the id that the processes carry.
        torchrun: pid of torchrun, None where it is gone.
        stacks: let every rank write the stacks of all its threads to the log first.
    """
    if stacks:
        for pid in others_of(job):
            if catches(pid, signal.SIGUSR1):
                send(job, pid, signal.SIGUSR1)
                # A stopped rank writes its stacks only when it runs.
                send(job, pid, signal.SIGCONT)
        await asyncio.sleep(STACKS_SECONDS)
    if torchrun is None or not send(job, torchrun, signal.SIGTERM):
        for pid in others_of(job):
            send(job, pid, signal.SIGTERM)
    if await all_gone(job, TERMINATION_SECONDS):
        return 0
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := others_of(job)) and time.monotonic() < deadline:
        killed.update(pid for pid in left if send(job, pid, signal.SIGKILL))
        await asyncio.sleep(_LOOK_SECONDS)
    if left:
        logger.error("processes %s of job %s survive SIGKILL", left, job)
    return len(killed)


async def all_gone(job: str, seconds: float) -> bool:
    """Wait until no process of the job is left; tell whether that came true in time."""
    deadline = time.monotonic() + seconds
    while others_of(job):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True
