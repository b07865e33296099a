"""What is known of each checkpoint of a run: losses at its step, what it holds, is it whole.

Put together from manifests, events, metrics and the resolved config; no weights are read and no
hashes compared. Invariant: what cannot be read of a run is missing in its facts, never an error.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workbench.config.load import read_resolved
from workbench.config.schema.config import Config
from workbench.errors import RunError, WorkbenchError
from workbench.runs.checkpoints import (
    Checkpoint,
    list_checkpoints,
    prunable_in,
    read_best,
    read_tags,
)
from workbench.runs.events import CheckpointEvent, EvaluationEvent, decode_event
from workbench.runs.json_lines import Line, read_lines
from workbench.runs.layout import PARTIAL_SUFFIX, CheckpointFolder, RunFolder, step_of
from workbench.runs.manifest import read_manifest

_WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What is known of one checkpoint.

    Attributes:
        path: of its folder.
        step: as its name says.
        bytes: of its files; of one that is being written, what has been written.
        problem: why it cannot be used, None where it can.
        is_partial: its folder has the name of one that is not complete.
        num_files: in its manifest, 0 without one.
        num_weight_files: those of them that hold weights.
        has_resume: it holds what a start goes on from, beside the weights.
        saved_at: epoch seconds, None where nobody knows.
        loss: of training at that step, or the last logged before; None where not finite or unknown.
        eval_loss: of the evaluation at that very step.
        is_newest, is_best: among the complete ones of its run.
        tags: that the user gave; ``keep`` spares it from being removed.
        other_hosts: that hold parts of it.
        manifest_stamp: changes when the manifest is written anew; 0 without one.
    """

    path: Path
    step: int
    bytes: int
    problem: str | None
    is_partial: bool = False
    num_files: int = 0
    num_weight_files: int = 0
    has_resume: bool = False
    saved_at: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    is_newest: bool = False
    is_best: bool = False
    tags: tuple[str, ...] = ()
    other_hosts: tuple[str, ...] = ()
    manifest_stamp: int = 0

    @property
    def marks(self) -> tuple[str, ...]:
        """What the list calls it: best, newest, and the user's tags."""
        own = [
            word for word, is_so in (("best", self.is_best), ("newest", self.is_newest)) if is_so
        ]
        return (*own, *self.tags)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of the checkpoints of a run.

    Attributes:
        run: the run.
        checkpoints: newest first; what is being written comes before what is complete.
        pruned_next: steps that go when the run saves once more; None where that cannot be said.
        keep: newest ones that pruning spares; None where the config cannot be read.
        save_every: steps between saves; None where it saves at other times, or never.
        max_steps: the config's limit, None where it has none.
        model: what the run begins with, None where it names none.
        resumes: the checkpoint of another run that it goes on from, None where there is none.
        prompt: the first of its sample prompts, "" where it has none.
    """

    run: RunFolder
    checkpoints: tuple[CheckpointFacts, ...]
    pruned_next: tuple[int, ...] | None = None
    keep: int | None = None
    save_every: int | None = None
    max_steps: int | None = None
    model: Path | None = None
    resumes: Path | None = None
    prompt: str = ""

    @property
    def newest(self) -> CheckpointFacts | None:
        """The newest complete checkpoint."""
        return next((each for each in self.checkpoints if each.is_newest), None)


def run_facts(run: RunFolder) -> RunFacts:
    """Say what is known of the checkpoints of a run."""
    found = list_checkpoints(run)
    steps = {each.step for each in found}
    losses = losses_at(run, steps)
    evaluations, saved = _events_of(run)
    complete = [each.step for each in found if each.is_complete]
    newest = max(complete, default=None)
    best = read_best(run)
    try:
        tags = read_tags(run)
    except RunError:
        tags = {}
    facts = [
        _facts(
            each,
            loss=losses.get(each.step),
            eval_loss=evaluations.get(each.step),
            saved_at=saved.get(each.step),
            is_newest=each.step == newest,
            is_best=best is not None and each.is_complete and each.step == best.step,
            tags=tuple(tags.get(each.path.name, [])),
        )
        for each in found
    ]
    facts += _partials(run)
    facts.sort(key=lambda each: (each.step, each.is_partial), reverse=True)
    config = _config(run)
    if config is None:
        return RunFacts(run=run, checkpoints=tuple(facts))
    saving = config.checkpoints
    resumes = saving.resume not in ("auto", "no")
    return RunFacts(
        run=run,
        checkpoints=tuple(facts),
        pruned_next=_pruned_next(run, saving.keep, newest),
        keep=saving.keep,
        save_every=saving.every_steps if saving.save_strategy == "steps" else None,
        max_steps=config.training.max_steps,
        model=Path(config.model.path) if config.model.path is not None else None,
        resumes=Path(saving.resume).expanduser() if resumes else None,
        prompt=next(iter(config.samples.prompts), ""),
    )


def losses_at(run: RunFolder, steps: Iterable[int]) -> dict[int, float | None]:
    """Give the training loss at each of ``steps``: of the last record at it or before it."""
    wanted = sorted(set(steps))
    if not wanted:
        return {}
    logged: dict[int, float | None] = {}
    for line in _lines(run.metrics):
        try:
            record = msgspec.json.decode(line.content, type=_LossAt)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        logged[record.step] = record.loss
    known = sorted(logged)
    found: dict[int, float | None] = {}
    for step in wanted:
        before = [each for each in known if each <= step]
        if before:
            found[step] = logged[before[-1]]
    return found


class _LossAt(msgspec.Struct):
    step: int
    loss: float | None = None


def _events_of(run: RunFolder) -> tuple[dict[int, float | None], dict[int, float]]:
    """Give the evaluation losses and the times of saving, by step; the last word counts."""
    evaluations: dict[int, float | None] = {}
    saved: dict[int, float] = {}
    for line in _lines(run.events):
        try:
            event = decode_event(line.content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(event, EvaluationEvent):
            evaluations[event.step] = event.loss
        elif isinstance(event, CheckpointEvent):
            saved[event.step] = event.time
    return evaluations, saved


def _facts(
    found: Checkpoint,
    *,
    loss: float | None,
    eval_loss: float | None,
    saved_at: float | None,
    is_newest: bool,
    is_best: bool,
    tags: tuple[str, ...],
) -> CheckpointFacts:
    folder = CheckpointFolder(found.path)
    names: list[str] = []
    try:
        names = list(read_manifest(found.path).files)
        stamp = folder.manifest.stat()
    except (RunError, OSError):
        stamp = None
    state = folder.training_state.name + "/"
    return CheckpointFacts(
        path=found.path,
        step=found.step,
        bytes=found.bytes or bytes_in(found.path),
        problem=found.problem,
        num_files=len(names),
        num_weight_files=sum(_holds_weights(name) for name in names),
        has_resume=any(name.startswith(state) for name in names),
        saved_at=saved_at if saved_at is not None or stamp is None else stamp.st_mtime,
        loss=loss,
        eval_loss=eval_loss,
        is_newest=is_newest,
        is_best=is_best,
        tags=tags,
        other_hosts=found.other_hosts,
        manifest_stamp=stamp.st_mtime_ns if stamp is not None else 0,
    )


def _lines(path: Path) -> list[Line]:
    try:
        return read_lines(path)[0]
    except OSError:
        return []


def _holds_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS_SUFFIX) and "/" not in name


def _partials(run: RunFolder) -> list[CheckpointFacts]:
    """Give what is being written, or was left by a crash."""
    try:
        entries = list(run.checkpoints.iterdir())
    except OSError:
        return []
    found = []
    for path in entries:
        if not path.name.endswith(PARTIAL_SUFFIX) or path.is_symlink() or not path.is_dir():
            continue
        step = step_of(path.name.removesuffix(PARTIAL_SUFFIX))
        if step is not None:
            found.append(
                CheckpointFacts(
                    path=path,
                    step=step,
                    bytes=bytes_in(path),
                    problem="was never completed",
                    is_partial=True,
                )
            )
    return found


def models_in_use(runs: Iterable[RunFacts], at_work: Collection[Path]) -> dict[Path, str]:
    """Say which folders runs need as they are, and what for.

    Args:
        runs: all that are known.
        at_work: folders of those of them that processes are at work on.

    Returns:
        By folder: what runs begin with, and checkpoints of others that they would go on from.
    """
    found: dict[Path, str] = {}
    for facts in runs:
        if facts.model is not None:
            found[facts.model] = f"{facts.run.name} began with it"
        # A run that has saved goes on from its own newest checkpoint.
        needs_it = facts.newest is None or facts.run.path in at_work
        if facts.resumes is not None and needs_it:
            found[facts.resumes] = f"{facts.run.name} goes on from it"
    return found


def bytes_in(folder: Path) -> int:
    """Sum up the files under a folder; links count as links, and what has just gone as nothing."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(at) / name).lstat().st_size
            except OSError:
                continue
    return total


def _pruned_next(run: RunFolder, keep: int, newest: int | None) -> tuple[int, ...] | None:
    try:
        return tuple(prunable_in(run, keep, coming=(newest or 0) + 1))
    except RunError:
        return None


def _config(run: RunFolder) -> Config | None:
    try:
        return read_resolved(run.config)
    except (WorkbenchError, OSError):
        return None
