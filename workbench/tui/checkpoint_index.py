"""The checkpoints of every run that is known, and the models they come from or became.

A worker thread reads; the loop only takes finished lists. What a run says of its checkpoints is
kept until a file that it was read from changes. Invariant: an unreadable run or model is a row that
says why, never the end of the list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.config.weight_files import find_weight_files
from workbench.errors import WorkbenchError
from workbench.runs.checkpoint_facts import RunFacts, models_in_use, run_facts
from workbench.runs.layout import PARTIAL_SUFFIX, RunFolder
from workbench.tui.job_index import KnownRun
from workbench.tui.surroundings import Surroundings
from workbench.tui.verifying import manifest_stamp

# Files inside a checkpoint can be cut without a change of any folder: everything is read anew then.
_FORGET_SECONDS = 15.0


@dataclass(frozen=True)
class ModelFacts:
    """A model folder that runs begin with, or that was made here.

    Attributes:
        path: of the folder.
        bytes: of its weight files.
        num_weight_files: how many those are.
        problem: why it cannot be used, None where it can.
        used_by: names of the runs that began with it.
        manifest_stamp: changes when its list of hashes is written anew, 0 without one.
    """

    path: Path
    bytes: int
    num_weight_files: int
    problem: str | None
    used_by: tuple[str, ...] = ()
    manifest_stamp: int = 0

    @property
    def has_manifest(self) -> bool:
        """Whether its hashes can be compared."""
        return self.manifest_stamp != 0


@dataclass(frozen=True)
class RunCheckpoints:
    """A run and what is known of its checkpoints."""

    known: KnownRun
    facts: RunFacts


@dataclass(frozen=True)
class Holdings:
    """All checkpoints and models as they were read at one time.

    Attributes:
        runs: with a checkpoint, or at work; newest first.
        models: by their names.
        in_use: what runs need as it is, and what for.
        free_bytes: of the project's disk, None where that is not known.
    """

    runs: tuple[RunCheckpoints, ...]
    models: tuple[ModelFacts, ...]
    in_use: dict[Path, str]
    free_bytes: int | None

    @property
    def bytes(self) -> int:
        """Sum over all checkpoints."""
        return sum(each.bytes for run in self.runs for each in run.facts.checkpoints)

    @property
    def num_checkpoints(self) -> int:
        """How many there are, complete or not."""
        return sum(len(run.facts.checkpoints) for run in self.runs)


class CheckpointIndex:
    """Reads checkpoints and models, and remembers what has not changed."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._facts: dict[Path, tuple[object, float, RunFacts]] = {}

    def read(self, runs: Iterable[KnownRun], made: Sequence[Path] = ()) -> Holdings:
        """Read once; blocks, so never on the loop.

        Args:
            runs: as the job index knows them.
            made: model folders that were published or converted before.
        """
        found = [RunCheckpoints(known, self._facts_of(known)) for known in runs]
        at_work = {known.known.path for known in found if known.known.is_running}
        in_use = models_in_use([each.facts for each in found], at_work)
        return Holdings(
            tuple(each for each in found if each.facts.checkpoints or each.known.is_running),
            tuple(_models(found, made)),
            in_use,
            self._free_bytes(),
        )

    def _facts_of(self, known: KnownRun) -> RunFacts:
        run = RunFolder(known.path)
        stamp, now = _stamp(run), self._surroundings.stopwatch()
        before = self._facts.get(known.path)
        if before is not None and before[0] == stamp and now - before[1] < _FORGET_SECONDS:
            return before[2]
        facts = run_facts(run)
        if known.is_running:
            partials = [
                replace(each, problem="is being written") if each.is_partial else each
                for each in facts.checkpoints
            ]
            facts = replace(facts, checkpoints=tuple(partials))
        # What is being written grows without a change of any folder.
        if not (known.is_running and any(each.is_partial for each in facts.checkpoints)):
            self._facts[known.path] = (stamp, now, facts)
        return facts

    def _free_bytes(self) -> int | None:
        try:
            return self._surroundings.free_bytes(self._surroundings.project)
        except OSError:
            return None


def _stamp(run: RunFolder) -> object:
    """Give what changes when the facts of a run do."""
    found: list[object] = [_changed(path) for path in (run.config, run.best, run.tags)]
    try:
        entries = sorted(run.checkpoints.iterdir())
    except OSError:
        entries = []
    # What a job logs between two saves changes nothing that is shown.
    found += [(path.name, _changed(path)) for path in entries]
    return tuple(found)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _models(runs: Sequence[RunCheckpoints], made: Sequence[Path]) -> list[ModelFacts]:
    """Give the folders that runs begin with and that were made, each once, if they are here."""
    users: dict[Path, list[str]] = {}
    for each in runs:
        if each.facts.model is not None:
            users.setdefault(each.facts.model, []).append(each.known.name)
    for path in made:
        users.setdefault(path, [])
    checkpoints = {held.path for each in runs for held in each.facts.checkpoints}
    found = [
        _look_at(path, tuple(names))
        for path, names in users.items()
        if path not in checkpoints and path.is_dir() and not path.name.endswith(PARTIAL_SUFFIX)
    ]
    return sorted(found, key=lambda model: (model.path.name, model.path))


def _look_at(path: Path, used_by: tuple[str, ...]) -> ModelFacts:
    stamp = manifest_stamp(path)
    try:
        files = find_weight_files(path).files
        size = sum(file.stat().st_size for file in files)
    except (WorkbenchError, OSError) as error:
        what = error.what if isinstance(error, WorkbenchError) else str(error)
        return ModelFacts(path, 0, 0, what, used_by, stamp)
    return ModelFacts(path, size, len(files), None, used_by, stamp)
