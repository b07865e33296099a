"""One start of a job: who supervises it, where, and how a reused pid is told apart.

job.json in the run folder and the registry's entry have the same fields; the entry also names the
run folder. Written by the supervisor alone.
"""

import contextlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

import msgspec

from workbench.errors import RunError
from workbench.runs.atomic import write_atomically
from workbench.runs.json_lines import last_line
from workbench.runs.layout import RunFolder

JOB_VARIABLE = "WORKBENCH_JOB"
"""Every process of a job carries its id in this variable of its environment."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}-[0-9a-f]{6}")
_LARGEST_BYTES = 64 << 10


class JobFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This start of a run. ``pid`` and ``start_time`` (procfs stat, field 22) name a supervisor."""

    job: str
    attempt: int
    host: str
    boot_id: str
    socket: str
    pid: int
    start_time: int


def new_job_id(run_name: str) -> str:
    """Make a job id: the run folder's name as far as file names allow, and six random digits."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", run_name).lstrip("._-")[:100] or "run"
    return f"{plain}-{secrets.token_hex(3)}"


def write_job_file(path: Path, job_file: JobFile) -> None:
    """Write job.json at once or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(job_file), indent=2) + b"\n")


def read_job_file(path: Path) -> JobFile | None:
    """Give the last start of a run, or None where it was never started.

    Raises:
        RunError: the file is there and is not a job file.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise RunError("is too large for a job file", where=str(path), remedy="remove it")
        job_file = msgspec.json.decode(path.read_bytes(), type=JobFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"is not a job file: {error}", where=str(path), remedy="remove it, then start again"
        ) from error
    if not JOB_ID.fullmatch(job_file.job):
        raise RunError(
            f"{job_file.job!r} is not a job id", where=str(path), remedy="remove the file"
        )
    return job_file


def this_host() -> str:
    """Give the name of this host."""
    return socket.gethostname()


def this_boot() -> str:
    """Give the id the kernel drew when this host was booted."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_time_of(pid: int) -> int | None:
    """Give when a process began, in clock ticks since boot; None where there is no such process.

    A zombie counts as gone: nothing of it can answer or hold a lock.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name stands in parentheses and may hold any character, a parenthesis too.
    fields = content[content.rindex(b")") + 2 :].split()
    return None if fields[0] == b"Z" else int(fields[19])


def seconds_since_launch(run: RunFolder) -> float:
    """Give how long ago the job of this process was launched: when its supervisor began.

    For a process that belongs to no job: how long ago it began itself.
    """
    ticks = start_time_of(os.getpid()) or 0
    with contextlib.suppress(RunError):
        job_file = read_job_file(run.job)
        if (
            job_file is not None
            and job_file.job == os.environ.get(JOB_VARIABLE)
            and job_file.boot_id == this_boot()
        ):
            ticks = job_file.start_time
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, since_boot - ticks / os.sysconf("SC_CLK_TCK"))


def processes_of(job: str) -> list[int]:
    """Find every process of this user that carries the job's id, by ascending pid.

    Zombies have no environment any more and are not found; the caller itself may be.
    """
    wanted = f"{JOB_VARIABLE}={job}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return sorted(found)


def last_attempt(run: RunFolder) -> int:
    """Give the number of the latest attempt that left a trace in a run folder, 0 without any."""
    numbers = [0]
    with contextlib.suppress(RunError):
        if job_file := read_job_file(run.job):
            numbers.append(job_file.attempt)
    for path in (run.metrics, run.events):
        if line := last_line(path):
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                numbers.append(msgspec.json.decode(line, type=_Numbered).attempt)
    return max(numbers)


class _Numbered(msgspec.Struct):
    attempt: int
