"""Tidying up: what is left of lost jobs ends, and entries of what has ended go.

Invariant: only jobs proven dead on this host are touched; of their run folders, only the outcome
is written.
"""

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

from workbench.runs.job_file import processes_of
from workbench.runs.registry import JobEntry, Liveness, entries, liveness, remove_entry

_SECONDS = 30.0


@dataclass(frozen=True)
class Tidied:
    """What is done about an entry.

    Attributes:
        entry: of the registry.
        liveness: what was found.
        action: drop the entry; end its processes and drop it; or keep it.
        processes: left-over processes of a lost job.
        problem: why it could not be done, None where it was.
    """

    entry: JobEntry
    liveness: Liveness
    action: Literal["drop", "end and drop", "keep"]
    processes: tuple[int, ...]
    problem: str | None = None


def plan_cleanup() -> list[Tidied]:
    """Say for every entry what a cleanup would do; change nothing."""
    return [_plan(entry) for entry in entries()]


def clean_up(planned: Tidied) -> Tidied:
    """Do what was planned for an entry; give it with its problem, if there was one."""
    if planned.action == "keep":
        return planned
    job = planned.entry.job
    if planned.action == "end and drop":
        # A process of the supervisor's kind, so that outcome.json keeps one author.
        command = [sys.executable, "-m", "workbench.supervisor", "--clean-up", job]
        try:
            ended = subprocess.run(
                [*command, planned.entry.run],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return _with_problem(planned, f"its processes did not end within {_SECONDS:g} s")
        if ended.returncode != 0:
            return _with_problem(planned, ended.stderr.strip().rsplit("\n", 1)[-1])
    try:
        remove_entry(job)
    except OSError as error:
        return _with_problem(planned, f"its entry cannot be removed: {error.strerror}")
    return planned


def _plan(entry: JobEntry) -> Tidied:
    found = liveness(entry)
    if found == "lost":
        return Tidied(entry, found, "end and drop", tuple(processes_of(entry.job)))
    return Tidied(entry, found, "drop" if found == "ended" else "keep", ())


def _with_problem(planned: Tidied, problem: str) -> Tidied:
    return Tidied(
        planned.entry, planned.liveness, planned.action, planned.processes, problem=problem
    )
