"""What of a run's checkpoints may go once one of them is published, and its removal.

Records of the run (config, events, metrics, log) stay. Invariant: links are never followed, and
what the caller protects is not touched, wherever it lies.
"""

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import RefusedError
from workbench.runs.checkpoints import KEEP_TAG, point_latest, read_best, read_tags
from workbench.runs.create import check_not_running
from workbench.runs.layout import PARTIAL_SUFFIX, RunFolder, step_of
from workbench.runs.lock import take_lock


@dataclass(frozen=True)
class DiscardPlan:
    """What goes and what stays.

    Attributes:
        run: whose checkpoints they are.
        files: every file that goes, with its bytes, by folder.
        spared: folders that stay, with the reason.
    """

    run: RunFolder
    files: dict[Path, dict[Path, int]]
    spared: dict[Path, str]

    @property
    def bytes(self) -> int:
        """Sum over all files."""
        return sum(size for held in self.files.values() for size in held.values())


def plan_discard(
    run: RunFolder, protected: Sequence[Path], only: Collection[Path] | None = None
) -> DiscardPlan:
    """Say which checkpoints of a run go: all but those tagged ``keep`` and those protected.

    Args:
        run: the run.
        protected: folders that must stay: the published model, the model the run began with.
        only: checkpoints of the run, of which no other goes; None: all may.

    Raises:
        RunError: the tags cannot be read.
    """
    kept = {name for name, tags in read_tags(run).items() if KEEP_TAG in tags}
    safe = [Path(os.path.realpath(path)) for path in protected]
    files: dict[Path, dict[Path, int]] = {}
    spared: dict[Path, str] = {}
    for path in sorted(run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []:
        if step_of(path.name.removesuffix(PARTIAL_SUFFIX)) is None:
            continue
        if only is not None and path not in only:
            continue
        if path.is_symlink() or not path.is_dir():
            spared[path] = "is a link or a file"
        elif path.name in kept:
            spared[path] = f"is tagged {KEEP_TAG}"
        elif any(_overlap(Path(os.path.realpath(path)), one) for one in safe):
            spared[path] = "is in use as a model"
        else:
            files[path] = _files_of(path)
    return DiscardPlan(run, files, spared)


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _files_of(folder: Path) -> dict[Path, int]:
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = Path(at) / name
            found[path] = path.lstat().st_size
    return dict(sorted(found.items()))


def discard(plan: DiscardPlan) -> None:
    """Remove what a plan names.

    A folder gets the name of a partial one before its files go, so that a crash in between leaves
    nothing that looks like a checkpoint; ``latest`` names none that is about to go.

    Raises:
        RefusedError: a job is at work in the run.
        OSError: a folder cannot be removed.
    """
    run = plan.run
    check_not_running(run)
    lock = take_lock(run.lock)
    if lock is None:
        raise RefusedError(
            "a job is starting in this folder", where=str(run.path), remedy="wait for its end"
        )
    try:
        doomed = []
        for path in plan.files:
            step = step_of(path)
            if step is not None:
                point_latest(run, other_than=step)
                partial = run.partial_checkpoint(step)
                if partial.exists():
                    shutil.rmtree(partial)
                path.rename(partial)
                doomed.append(partial)
            else:
                doomed.append(path)
        for path in doomed:
            if path.exists():
                shutil.rmtree(path)
        best = read_best(run)
        if best is not None and not run.checkpoint(best.step).exists():
            run.best.unlink(missing_ok=True)
        point_latest(run)
    finally:
        lock.release()
