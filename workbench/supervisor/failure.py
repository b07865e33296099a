"""Which rank failed first and why: error files, exit codes, signals, known messages.

torchrun's summary is read for exit codes alone; its wrapper text never takes the place of a cause.
Invariant: the earliest failure of any rank is the one that is reported.
"""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from workbench.control.messages import JobFailure, Leaving
from workbench.runs.outcome import FirstError

LARGEST_ERROR_FILE_BYTES = 4 << 20
_SUMMARY_BYTES = 256 << 10
_LAST_LINES = 8

# What torchrun says of each rank that failed, in the order of its own summary.
_FAILED_RANK = re.compile(
    r"rank\s+: (?P<rank>\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s+: (?P<code>-?\d+)"
)
_ROOT_CAUSE = "Root Cause (first observed failure):"
_BAD_ARGUMENTS = re.compile(r"^(?:\S*run(?:\.py)?|torchrun): error: (?P<what>.+)$", re.MULTILINE)

_REMEDIES: dict[JobFailure, str] = {
    "config": "mend the config, then start again",
    "data": "mend the data set; `workbench train --dry-run` checks it",
    "out_of_memory": "lower memory.budget_gib, raise batch.microbatches, or lower data.max_length",
    "nonfinite_loss": "lower optimizer.learning_rate, or set training.nonfinite: skip",
    "save_failed": "see log.txt; the checkpoints saved before are untouched",
    "no_space": "free space on the disk of the run folder, or lower checkpoints.keep",
    "rank_died": "see log.txt and ranks/; start again to go on from the newest checkpoint",
    "communication": "see log.txt for the rank that failed first; start again to go on",
    "internal": "see log.txt; start again to go on from the newest checkpoint",
}

# The first that is found in an error's text decides.
_KNOWN: tuple[tuple[str, JobFailure], ...] = (
    (r"out of memory|MemoryError|cannot allocate memory", "out_of_memory"),
    (r"No space left on device|Disk quota exceeded|\[Errno 28\]", "no_space"),
    (r"^(?:\w+\.)*ConfigError\b", "config"),
    (r"^(?:\w+\.)*DataError\b", "data"),
    (r"^(?:\w+\.)*RunError\b", "config"),
    (
        r"NCCL|Gloo|gloo|Connection (?:closed|reset|refused) by peer|DistNetworkError"
        r"|DistStoreError|Timed out waiting|Broken pipe|RendezvousError",
        "communication",
    ),
)


@dataclass(frozen=True)
class Failure:
    """The cause in one word, in a sentence, and the first error behind it."""

    reason: JobFailure
    message: str
    first_error: FirstError


@dataclass
class Evidence:
    """What an attempt left behind for finding its cause.

    ``exit_codes`` is by rank, negative for signals; ranks that torchrun ended itself are absent.
    ``first_rank`` is the one torchrun saw fail first.
    """

    errors: list[tuple[float, int, str, str]] = field(default_factory=list)
    exit_codes: dict[str, int] = field(default_factory=dict)
    first_rank: int | None = None
    torchrun_code: int | None = None
    log_tail: str = ""


def gather(new_rank_folders: Iterable[Path], log: Path, log_begin: int, code: int) -> Evidence:
    """Read the error files and torchrun's summary of one attempt.

    Args:
        new_rank_folders: folders of ``--log-dir`` that this attempt has made.
        log: log.txt.
        log_begin: byte where this attempt begins in it.
        code: exit code of torchrun, negative for signals.
    """
    evidence = Evidence(torchrun_code=code)
    ranks: set[int] = set()
    for folder in new_rank_folders:
        for rank_folder in sorted(folder.glob("attempt_*/*")):
            if not rank_folder.name.isdigit():
                continue
            rank = int(rank_folder.name)
            ranks.add(rank)
            if (error := _read_error(rank_folder / "error.json")) is not None:
                time, message, traceback = error
                evidence.errors.append((time, rank, message, traceback))
    evidence.errors.sort(key=lambda found: (found[0], found[1]))
    text = _tail(log, log_begin)
    evidence.log_tail = text
    if code == 0:
        evidence.exit_codes = {str(rank): 0 for rank in sorted(ranks)}
        return evidence
    for match in _FAILED_RANK.finditer(text):
        evidence.exit_codes[match["rank"]] = int(match["code"])
    root = text.rfind(_ROOT_CAUSE)
    if root >= 0 and (cause := _FAILED_RANK.search(text, root)):
        evidence.first_rank = int(cause["rank"])
    return evidence


def find_cause(evidence: Evidence, leaving: Leaving | None) -> Failure:
    """Say which rank failed first and why.

    What rank 0 says about its own end counts unless another rank failed before it.
    """
    first = evidence.errors[0] if evidence.errors else None
    own_words = leaving if leaving is not None and leaving.state == "failed" else None
    if own_words is not None and (
        first is None or first[1] == 0 or own_words.reason != "communication"
    ):
        return _from_leaving(own_words, first)
    if first is not None:
        _, rank, message, traceback = first
        reason = classify(message)
        return Failure(
            reason=reason,
            message=f"rank {rank}: {message}",
            first_error=FirstError(
                rank=rank, message=message, traceback=traceback, remedy=_REMEDIES[reason]
            ),
        )
    if evidence.first_rank is not None:
        return _from_exit_code(evidence.first_rank, evidence)
    return _from_torchrun(evidence)


def classify(message: str) -> JobFailure:
    """Give the reason that an error's text stands for, ``internal`` where none is known."""
    for pattern, reason in _KNOWN:
        if re.search(pattern, message, re.MULTILINE):
            return reason
    return "internal"


def signal_name(code: int) -> str:
    """Name the signal behind a negative exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _from_leaving(leaving: Leaving, first: tuple[float, int, str, str] | None) -> Failure:
    reason = leaving.reason or "internal"
    remedy = leaving.remedy or _REMEDIES[reason]
    message = leaving.message or f"failed: {reason}"
    traceback = first[3] if first is not None and first[1] == 0 else ""
    return Failure(
        reason=reason,
        message=f"rank 0: {message}",
        first_error=FirstError(rank=0, message=message, traceback=traceback, remedy=remedy),
    )


def _from_exit_code(rank: int, evidence: Evidence) -> Failure:
    code = evidence.exit_codes[str(rank)]
    said = last_lines(evidence.log_tail, rank)
    if code >= 0:
        reason = classify(said)
        if reason == "internal":
            reason = "rank_died"
        message = f"rank {rank} ended with exit status {code}"
        remedy = _REMEDIES[reason]
    else:
        reason = "rank_died"
        message = f"rank {rank} was killed by {signal_name(code)}"
        remedy = _REMEDIES[reason]
        if -code == signal.SIGKILL:
            remedy = (
                "if nobody killed it, the kernel did for want of memory: see dmesg; start again to "
                "go on from the newest checkpoint"
            )
    return Failure(
        reason=reason,
        message=message,
        first_error=FirstError(rank=rank, message=message, traceback=said, remedy=remedy),
    )


def _from_torchrun(evidence: Evidence) -> Failure:
    code = evidence.torchrun_code or 0
    said = last_lines(evidence.log_tail, None)
    reason: JobFailure
    if match := _BAD_ARGUMENTS.search(evidence.log_tail):
        reason, message = "config", f"torchrun refuses its arguments: {match['what']}"
        remedy = "mend what follows -- on the command line"
    elif code < 0:
        reason, message = "rank_died", f"torchrun was killed by {signal_name(code)}"
        remedy = _REMEDIES[reason]
    else:
        reason = classify(said)
        last = said.rstrip().rsplit("\n", 1)[-1].strip()
        message = f"torchrun ended with exit status {code}" + (f": {last}" if last else "")
        remedy = _REMEDIES[reason]
    return Failure(
        reason=reason,
        message=message,
        first_error=FirstError(rank=None, message=message, traceback=said, remedy=remedy),
    )


def last_lines(log_tail: str, rank: int | None) -> str:
    """Give the last lines that a rank wrote, without their prefix; all lines for no rank."""
    prefix = f"[default{rank}]:" if rank is not None else ""
    lines = [line.removeprefix(prefix) for line in log_tail.splitlines() if line.startswith(prefix)]
    return "\n".join(lines[-_LAST_LINES:])


def _read_error(path: Path) -> tuple[float, str, str] | None:
    """Read torchrun's error file of a rank: (epoch seconds, message, traceback)."""
    try:
        if path.stat().st_size > LARGEST_ERROR_FILE_BYTES:
            return None
        content = msgspec.json.decode(path.read_bytes(), type=_ErrorFile)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    if isinstance(content.message, str):
        return path.stat().st_mtime, content.message, ""
    details = content.message.extraInfo
    try:
        time = float(details.get("timestamp", ""))
    except ValueError:
        time = path.stat().st_mtime
    return time, content.message.message, details.get("py_callstack", "")


class _ErrorDetails(msgspec.Struct):
    message: str
    extraInfo: dict[str, str] = {}  # noqa: N815 - torchrun's word


class _ErrorFile(msgspec.Struct):
    message: _ErrorDetails | str


def _tail(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - _SUMMARY_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
