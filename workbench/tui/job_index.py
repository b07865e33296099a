"""The runs that are known: entries of the registry and run folders of the project, newest first.

A thread reads once a second; the loop only takes finished lists. Entries are shown before any run
folder has been opened. Invariant: an unreadable run is one row, never the end of the list.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.control.states import END_STATES, JobState
from workbench.tui.marks import mark_of
from workbench.tui.surroundings import Surroundings

if TYPE_CHECKING:
    from workbench.runs.catalog import RunSummary
    from workbench.runs.layout import RunFolder

logger = logging.getLogger(__name__)

SCAN_SECONDS = 5.0


@dataclass(frozen=True)
class KnownRun:
    """A run as its files say; ``summary`` is None until its folder has been read."""

    path: Path
    name: str
    attempt: int
    summary: "RunSummary | None"

    @property
    def state(self) -> JobState | None:
        """The state, None while it is not known or where the run was never started."""
        return self.summary.state if self.summary else None

    @property
    def is_running(self) -> bool:
        """Whether processes of it are at work, as far as is known."""
        return self.state is not None and self.state not in END_STATES


class JobIndex:
    """Keeps the list of runs up to date."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self.runs: tuple[KnownRun, ...] = ()
        self.read_at: float | None = None
        self.num_unseen_failures = 0
        self._seen_ended: set[tuple[Path, int]] | None = None
        self._ended: dict[Path, tuple[float, RunSummary]] = {}
        self._scanned_at = float("-inf")
        self._scanned: list[RunFolder] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def has_entries(self) -> bool:
        """Tell at once, from names alone, whether any job was ever started."""
        from workbench.runs.registry import registry_folder

        try:
            return any(registry_folder().iterdir())
        except OSError:
            return False

    # ---- the thread --------------------------------------------------------------------

    def begin(self, take: Callable[[tuple[KnownRun, ...]], None]) -> None:
        """Read now and then every second; ``take`` is called from the thread with each list."""
        self._thread = threading.Thread(
            target=self._read_repeatedly, args=(take,), name="job index", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Read no more."""
        self._stop.set()
        self._wake.set()

    def look_now(self) -> None:
        """Read at once: something is known to have changed."""
        self._scanned_at = float("-inf")
        self._wake.set()

    def look_soon(self) -> None:
        """Read before the second is over: a job has entered another state."""
        self._wake.set()

    def _read_repeatedly(self, take: Callable[[tuple[KnownRun, ...]], None]) -> None:
        while not self._stop.is_set():
            try:
                take(self.read())
            except RuntimeError:
                return  # the program is leaving
            self._wake.wait(self._surroundings.poll_seconds)
            self._wake.clear()

    def read(self) -> tuple[KnownRun, ...]:
        """Read registry and run folders once; blocks, so never on the loop."""
        from workbench.runs.catalog import runs_under
        from workbench.runs.layout import RunFolder
        from workbench.runs.registry import latest_entries

        now = self._surroundings.stopwatch()
        if now - self._scanned_at > SCAN_SECONDS:
            self._scanned = runs_under(self._surroundings.project / "output")
            self._scanned_at = now
        folders: dict[Path, RunFolder] = {}
        for entry in latest_entries():
            run = RunFolder(entry.run)
            if run.path.is_dir():
                folders.setdefault(run.path, run)
        for run in self._scanned:
            folders.setdefault(run.path, run)
        known = [self._look_at(run) for run in folders.values()]
        known.sort(key=_newest_first, reverse=True)
        return tuple(known)

    def _look_at(self, run: "RunFolder") -> KnownRun:
        from workbench.runs.catalog import summarise

        changed = max(_changed(run.outcome), _changed(run.job), _changed(run.checkpoints))
        cached = self._ended.get(run.path)
        if cached is not None and cached[0] == changed:
            summary: RunSummary | None = cached[1]
        else:
            try:
                summary = summarise(run)
            except OSError as error:
                logger.info("%s cannot be read: %s", run.path, error)
                summary = None
            if summary is not None and summary.state in END_STATES and summary.state != "lost":
                self._ended[run.path] = (changed, summary)
        attempt = summary.job.attempt if summary and summary.job else 0
        return KnownRun(run.path, run.name, attempt, summary)

    # ---- the loop ----------------------------------------------------------------------

    def take(self, runs: tuple[KnownRun, ...]) -> list[KnownRun]:
        """Take a list that was read; give the runs that have ended since the last one."""
        self.runs, self.read_at = runs, self._surroundings.clock()
        ended = {(run.path, run.attempt) for run in runs if run.state in END_STATES}
        if self._seen_ended is None:
            self._seen_ended = ended
            return []
        new = ended - self._seen_ended
        self._seen_ended |= ended
        just_ended = [run for run in runs if (run.path, run.attempt) in new]
        self.num_unseen_failures += sum(run.state in ("failed", "lost") for run in just_ended)
        return just_ended

    def running(self) -> list[KnownRun]:
        """Give the runs that processes are at work on."""
        return [run for run in self.runs if run.is_running]

    def find(self, path: Path) -> KnownRun | None:
        """Give what is known of a run folder."""
        return next((run for run in self.runs if run.path == path), None)

    def in_a_line(self) -> str:
        """Say the running jobs in one line."""
        parts = []
        for run in self.running():
            assert run.state is not None
            parts.append(f"{run.name} {mark_of(run.state)[0]} {run.state}")
        return "   ".join(parts)

    def last_run_of(self, config: str) -> tuple[str, str, str]:
        """Give (mark, colour, run name) of the newest run of a config, blanks where none is known.

        A run belongs to a config by its name: the config's last part and a number.
        """
        last_part = config.rpartition("/")[2]
        for run in self.runs:
            begin, dash, number = run.name.rpartition("-")
            if dash and number.isdigit() and begin == last_part and run.state is not None:
                mark, colour = mark_of(run.state)
                return mark, colour, run.name
        return "", "", ""


def _newest_first(run: KnownRun) -> tuple[float, str]:
    return (run.summary.started if run.summary else 0.0, run.name)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
