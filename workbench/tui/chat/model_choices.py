"""The models one can talk to: every complete checkpoint of every run, and what a run began with.

Blocks, so it is called in a thread. Reads a run anew only when its checkpoints have changed.
Invariant: a run that cannot be read offers nothing, and the other runs are offered all the same.
"""

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.runs.checkpoints import Checkpoint
    from workbench.tui.job_index import KnownRun


@dataclass(frozen=True)
class RunModels:
    """What a run offers.

    Attributes:
        run: as the list of runs has it.
        checkpoints: the complete ones, newest first, each with when it was written.
        best: step of the best one.
        base: folder of the model that the run began with, where it is here and was asked for.
    """

    run: "KnownRun"
    checkpoints: tuple[tuple["Checkpoint", float], ...]
    best: int | None
    base: Path | None


class ModelChoices:
    """Reads what runs offer, and keeps it until it changes."""

    def __init__(self) -> None:
        self._checkpoints: dict[Path, tuple[object, tuple[tuple[Checkpoint, float], ...]]] = {}
        self._bases: dict[Path, Path | None] = {}

    def read(
        self, runs: Sequence["KnownRun"], with_base: Collection[Path] = ()
    ) -> tuple[RunModels, ...]:
        """Give what the runs offer, those without a complete checkpoint left out.

        Args:
            runs: in the order to keep.
            with_base: paths of those whose first model is asked for.
        """
        from workbench.runs.checkpoints import read_best
        from workbench.runs.layout import RunFolder

        found = []
        for run in runs:
            folder = RunFolder(run.path)
            checkpoints = self._complete(folder.path)
            if not checkpoints:
                continue
            best = read_best(folder)
            base = self._base(run.path) if run.path in with_base else None
            found.append(RunModels(run, checkpoints, best.step if best else None, base))
        return tuple(found)

    def _complete(self, path: Path) -> tuple[tuple["Checkpoint", float], ...]:
        from workbench.runs.checkpoints import list_checkpoints
        from workbench.runs.layout import CheckpointFolder, RunFolder

        run = RunFolder(path)
        try:
            stamp = run.checkpoints.stat().st_mtime_ns
            kept = self._checkpoints.get(path)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            complete = tuple(
                (each, CheckpointFolder(each.path).manifest.stat().st_mtime)
                for each in reversed(list_checkpoints(run))
                if each.is_complete
            )
        except OSError:
            return ()
        self._checkpoints[path] = (stamp, complete)
        return complete

    def _base(self, path: Path) -> Path | None:
        if path not in self._bases:
            self._bases[path] = base_of(path)
        return self._bases[path]


def base_of(run: Path) -> Path | None:
    """Give the folder of the model that a run began with; None where it is not here.

    A run that began with random weights began with no model.
    """
    from workbench.config.load import resolve
    from workbench.config.weight_files import find_weight_files
    from workbench.runs.layout import RunFolder

    with contextlib.suppress(WorkbenchError, OSError):
        model = resolve(str(RunFolder(run).config)).config.model
        if model.path is not None and model.weights == "load":
            folder = Path(model.path)
            if find_weight_files(folder).files:
                return folder
    return None
