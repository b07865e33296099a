"""The jobs of this user: an entry each, which only points; the run folder knows.

Entries are written by supervisors and dropped by ``control cleanup``. Invariant: no path found
inside an entry is ever deleted; a file that is not an entry is neither read nor touched.
"""

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Literal

import msgspec

from workbench.control.address import check_address
from workbench.control.framing import MAX_LINE_BYTES, encode
from workbench.control.messages import PROTOCOL_VERSION, FromSupervisor, Hello
from workbench.errors import ConfigError, ControlError, RefusedError, RunError
from workbench.runs.atomic import write_atomically
from workbench.runs.job_file import (
    JOB_ID,
    JobFile,
    read_job_file,
    start_time_of,
    this_boot,
    this_host,
)
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome, read_outcome

Liveness = Literal["alive", "ended", "lost", "elsewhere"]
_LARGEST_BYTES = 64 << 10


class JobEntry(JobFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A start of a job: what job.json says, and the run folder."""

    run: str

    @property
    def folder(self) -> RunFolder:
        """The run folder that the entry points to; it may be gone."""
        return RunFolder(self.run)


def state_folder() -> Path:
    """Say where this user's state of workbench lies; nothing is made.

    Raises:
        ConfigError: neither XDG_STATE_HOME nor a home folder is known, as for a bare user number.
    """
    state_home = os.environ.get("XDG_STATE_HOME", "")
    if Path(state_home).is_absolute():
        return Path(state_home) / "workbench"
    try:
        return Path.home() / ".local" / "state" / "workbench"
    except RuntimeError as error:
        raise ConfigError(
            "is not set, and this user has no home folder",
            where="XDG_STATE_HOME",
            remedy="set it, or HOME, to a folder of yours that can be written",
        ) from error


def registry_folder() -> Path:
    """Say where the entries lie; nothing is made."""
    return state_folder() / "jobs"


def entry_of(job_file: JobFile, run: RunFolder) -> JobEntry:
    """Give the entry that points to a run's start."""
    fields = {name: getattr(job_file, name) for name in JobFile.__struct_fields__}
    return JobEntry(run=str(run.path), **fields)


def write_entry(entry: JobEntry) -> None:
    """Write an entry, durable when this returns.

    Raises:
        OSError: the state folder cannot be written.
    """
    folder = registry_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(_entry_path(entry.job), msgspec.json.encode(entry) + b"\n")


def remove_entry(job: str) -> None:
    """Drop an entry by its job id; the run folder is not touched."""
    _entry_path(job).unlink(missing_ok=True)


def entries() -> list[JobEntry]:
    """Read every entry, the newest start first; files that are none are passed over."""
    found: list[tuple[float, JobEntry]] = []
    try:
        paths = list(registry_folder().iterdir())
    except OSError:
        return []
    for path in paths:
        if (read := _read_entry(path)) is not None:
            found.append(read)
    # The order is for the eye only: nothing is decided by a time stamp.
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0], reverse=True)]


def latest_entries() -> list[JobEntry]:
    """Read the entries and keep the latest attempt of each run folder, newest start first."""
    latest: dict[tuple[str, str], JobEntry] = {}
    for entry in entries():
        # A folder that was started by way of a link too is one folder.
        key = (entry.host, os.path.realpath(entry.run))
        if key not in latest or entry.attempt > latest[key].attempt:
            latest[key] = entry
    return list(latest.values())


def liveness(entry: JobEntry) -> Liveness:
    """Judge a job by its run folder, then by the process table and its socket.

    Returns:
        alive: its supervisor answers, or the very process still runs. ended: there is an outcome,
        or a later start. lost: neither outcome nor supervisor. elsewhere: it belongs to another
        host and is not judged.
    """
    if entry.host != this_host():
        return "elsewhere"
    if outcome_of(entry) is not None or _was_started_again(entry):
        return "ended"
    if supervisor_lives(entry):
        return "alive"
    # The outcome may have been written between the two looks.
    return "ended" if outcome_of(entry) is not None else "lost"


def outcome_of(entry: JobEntry) -> Outcome | None:
    """Give the outcome of this very start, None while there is none or it cannot be read."""
    outcome = readable_outcome(entry.folder)
    return outcome if outcome is not None and outcome.attempt >= entry.attempt else None


def readable_outcome(run: RunFolder) -> Outcome | None:
    """Give the outcome in a run folder, or None where there is none that can be read."""
    try:
        return read_outcome(run.outcome)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def supervisor_lives(job_file: JobFile) -> bool:
    """Tell whether the supervisor of a start is there: the very process, or its socket answers."""
    is_ours = job_file.host == this_host() and job_file.boot_id == this_boot()
    # The process table is asked first: it answers at once, also for a supervisor that is frozen.
    if is_ours and start_time_of(job_file.pid) == job_file.start_time:
        return True
    return _says_hello(job_file)


def find_job(name: str) -> JobEntry:
    """Find the job that a user means.

    Args:
        name: a job id, a unique beginning of one, the name of a run folder, or the path of one.
            Where several starts of one run match, the latest is meant.

    Raises:
        ControlError: there is no such job.
        RefusedError: several runs match.
    """
    # A user that is not known may follow a tilde: then it is no path.
    with contextlib.suppress(RuntimeError):
        if (by_path := _entry_in_folder(Path(name).expanduser())) is not None:
            return by_path
    everything = entries()
    for matches in (
        [entry for entry in everything if entry.job == name],
        [entry for entry in everything if entry.folder.name == name],
        [entry for entry in everything if name and entry.job.startswith(name)],
    ):
        runs = {(entry.host, os.path.realpath(entry.run)) for entry in matches}
        if len(runs) > 1:
            listed = ", ".join(sorted(entry.job for entry in matches)[:8])
            raise RefusedError(
                f"{len(runs)} jobs match: {listed}", where=name, remedy="give more of the job id"
            )
        if matches:
            return max(matches, key=lambda entry: entry.attempt)
    raise ControlError(
        "there is no such job", where=name or "job id", remedy="see: workbench control list"
    )


def _entry_in_folder(path: Path) -> JobEntry | None:
    run = RunFolder(path)
    try:
        job_file = read_job_file(run.job)
    except RunError:
        return None
    return entry_of(job_file, run) if job_file is not None else None


def _entry_path(job: str) -> Path:
    assert JOB_ID.fullmatch(job), f"{job!r} is not a job id"
    return registry_folder() / f"{job}.json"


def _read_entry(path: Path) -> tuple[float, JobEntry] | None:
    job = path.name.removesuffix(".json")
    if not path.name.endswith(".json") or not JOB_ID.fullmatch(job):
        return None
    try:
        # No link is followed, and a pipe put in place of an entry does not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
            return None
        content = os.read(descriptor, _LARGEST_BYTES)
        entry = msgspec.json.decode(content, type=JobEntry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    finally:
        os.close(descriptor)
    if entry.job != job or not Path(entry.run).is_absolute() or "\0" in entry.run:
        return None
    return found.st_mtime, entry


def _was_started_again(entry: JobEntry) -> bool:
    with contextlib.suppress(RunError):
        job_file = read_job_file(entry.folder.job)
        return job_file is not None and job_file.job != entry.job
    return False


def _says_hello(job_file: JobFile) -> bool:
    """Ask at the socket who is there; a socket that is not ours alone is not asked."""
    address = Path(job_file.socket)
    with contextlib.suppress(ControlError, OSError, msgspec.DecodeError, UnicodeDecodeError):
        check_address(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2.0)
            connection.connect(os.fspath(address))
            hello = Hello(
                protocol=PROTOCOL_VERSION,
                role="viewer",
                program="workbench",
                host=this_host(),
                pid=os.getpid(),
            )
            connection.sendall(encode(hello))
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE_BYTES)
        answer = msgspec.json.decode(line, type=FromSupervisor)
        return isinstance(answer, Hello) and answer.job == job_file.job
    return False
