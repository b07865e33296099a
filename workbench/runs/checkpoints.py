"""The checkpoints of a run: list, newest complete, best, prune.

Knows file names and manifests, nothing of what the files hold. Invariant: time stamps decide
nothing, ``.partial`` folders are never read, and only complete checkpoints are pruned.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from workbench.errors import RunError
from workbench.runs.atomic import sync_folder, write_atomically
from workbench.runs.layout import PARTIAL_SUFFIX, RunFolder, step_of
from workbench.runs.manifest import disagreements, problem_of, read_manifest

logger = logging.getLogger(__name__)

KEEP_TAG = "keep"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder; ``problem`` says why it is not complete, None where it is.

    Attributes:
        path: of the folder.
        step: as its name says.
        bytes: of its files, as its manifest says.
        problem: why it is not complete.
        other_hosts: that hold parts of it; none where all of it is here.
    """

    path: Path
    step: int
    bytes: int
    problem: str | None
    other_hosts: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """The manifest agrees in names and sizes."""
        return self.problem is None


class Best(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoint is the best, and its validation loss at that very step."""

    step: int
    loss: float


def list_checkpoints(run: RunFolder) -> list[Checkpoint]:
    """Give every checkpoint of a run by ascending step, incomplete ones with their problem."""
    found: list[Checkpoint] = []
    try:
        entries = sorted(run.checkpoints.iterdir())
    except OSError:
        return []
    for path in entries:
        step = step_of(path)
        if step is None or path.is_symlink() or not path.is_dir():
            continue
        found.append(_look_at(path, step))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_complete(run: RunFolder) -> Checkpoint | None:
    """Give the checkpoint with the highest step whose manifest agrees, or None."""
    return next((found for found in reversed(list_checkpoints(run)) if found.is_complete), None)


def resume_point(run: RunFolder, wanted: str, *, is_restart: bool = False) -> Path | None:
    """Say which checkpoint a start goes on from; None begins at step 0.

    A run that has a checkpoint of its own goes on from its newest one, whatever it began from.

    Args:
        run: the run.
        wanted: ``checkpoints.resume``: auto, no, or the path of a checkpoint.
        is_restart: torchrun starts the same attempt again after a failure.

    Raises:
        RunError: the path holds no complete checkpoint, or ``no`` meets checkpoints of the run.
    """
    newest = newest_complete(run)
    if newest is not None:
        if wanted == "no" and not is_restart:
            raise RunError(
                f"checkpoints.resume is no, but {newest.path.name} is there",
                where=str(run.path),
                remedy="choose another training.output_dir, or resume",
            )
        return newest.path
    if wanted in ("auto", "no"):
        return None
    return checkpoint_folder(Path(wanted).expanduser())


def checkpoint_folder(path: Path) -> Path:
    """Find the folder with weights that ``path`` means.

    Args:
        path: a run folder (its newest complete checkpoint is taken), a checkpoint, or any model
            folder in Hugging Face layout.

    Returns:
        A folder that stays the same: a link such as ``latest`` may lead to another step between
        two files that are read, so it is followed once, here.

    Raises:
        RunError: nothing complete is there.
    """
    if not path.is_dir():
        raise RunError(
            "no such folder", where=str(path), remedy="name a run, a checkpoint or a model folder"
        )
    if path.name.endswith(PARTIAL_SUFFIX):
        raise RunError(
            "is a checkpoint that was never completed",
            where=str(path),
            remedy="name a complete checkpoint or the run folder",
        )
    if step_of(path.resolve()) is not None:
        path = path.resolve() if path.is_symlink() else path
        if problem := problem_of(path):
            raise RunError(
                f"the checkpoint is not complete: {problem}",
                where=str(path),
                remedy="name another checkpoint or the run folder",
            )
        return path
    run = RunFolder(path)
    if not run.checkpoints.is_dir() and not run.config.exists():
        return path
    newest = newest_complete(run)
    if newest is None:
        raise RunError(
            "the run has no complete checkpoint",
            where=str(path),
            remedy="wait for its first save, or ask for one: workbench control save",
        )
    return newest.path


Choice = Literal["latest", "best"] | int
"""Which checkpoint of a run: the newest complete one, the best, or that of a step."""


def choose_checkpoint(run: RunFolder, choice: Choice) -> Checkpoint:
    """Find the checkpoint that is meant.

    Raises:
        RunError: there is none such, or it is not complete.
    """
    found = list_checkpoints(run)
    if choice == "latest":
        if newest := newest_complete(run):
            return newest
        raise _no_such("the run has no complete checkpoint", run, found)
    if choice == "best":
        best = read_best(run)
        if best is None:
            raise _no_such("no checkpoint is marked as the best", run, found)
        choice = best.step
    chosen = next((each for each in found if each.step == choice), None)
    if chosen is None:
        raise _no_such(f"there is no checkpoint of step {choice}", run, found)
    if chosen.problem is not None:
        raise _no_such(f"{chosen.path.name} is not complete: {chosen.problem}", run, found)
    return chosen


def _no_such(what: str, run: RunFolder, found: Iterable[Checkpoint]) -> RunError:
    steps = [str(each.step) for each in found if each.is_complete]
    remedy = (
        f"name one that is: --step {' | '.join(steps)}"
        if steps
        else "wait for its first save, or ask for one: workbench control save"
    )
    return RunError(what, where=str(run.path), remedy=remedy)


def run_of(checkpoint: Path) -> RunFolder | None:
    """Give the run in whose folder a checkpoint lies; None for one that lies elsewhere."""
    real = Path(os.path.realpath(checkpoint))
    run = RunFolder(real.parent.parent)
    is_inside = step_of(real) is not None and real.parent == run.checkpoints
    return run if is_inside and run.config.exists() else None


def read_best(run: RunFolder) -> Best | None:
    """Give the best checkpoint as recorded, or None where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(run.best.read_bytes(), type=Best)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_best(run: RunFolder, best: Best) -> None:
    """Record the best checkpoint, durable when this returns."""
    write_atomically(run.best, msgspec.json.encode(best) + b"\n")


def read_tags(run: RunFolder) -> dict[str, list[str]]:
    """Give the user's tags by checkpoint name.

    Raises:
        RunError: tags.json is not a mapping of names to lists of tags.
    """
    try:
        return msgspec.json.decode(run.tags.read_bytes(), type=dict[str, list[str]])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot be read: {error}", where=str(run.tags), remedy="mend or remove the file"
        ) from error


def prunable(
    complete_steps: Iterable[int], keep: int, best: int | None, tagged: Collection[int]
) -> list[int]:
    """Give the steps that may go: all but the newest ``keep``, the best, and those tagged keep.

    Steps 10, 20, 30, 40 with keep 2 and best 10 give [20].
    """
    newest_first = sorted(set(complete_steps), reverse=True)
    return sorted(step for step in newest_first[keep:] if step != best and step not in tagged)


def prunable_in(run: RunFolder, keep: int, coming: int | None = None) -> list[int]:
    """Give the steps of the complete checkpoints of a run that ``prunable`` names.

    Args:
        run: the run.
        keep: newest ones that stay.
        coming: a step that is counted as if it had been saved; it is never named itself.

    Raises:
        RunError: the tags cannot be read.
    """
    spared = {f"{name}" for name, tags in read_tags(run).items() if KEEP_TAG in tags}
    tagged = {step for name in spared if (step := step_of(name)) is not None}
    best = read_best(run)
    complete = {found.step for found in list_checkpoints(run) if found.is_complete}
    if coming is not None:
        complete.add(coming)
        tagged.add(coming)
    return prunable(complete, keep, best.step if best else None, tagged)


def prune(run: RunFolder, keep: int) -> list[str]:
    """Remove the checkpoints that ``prunable`` names; give their folder names.

    A folder is renamed to ``.partial`` before its files go, so that a crash in between leaves
    nothing that looks like a checkpoint.

    Raises:
        RunError: the tags cannot be read; nothing has been removed.
        OSError: a folder cannot be removed.
    """
    removed: list[str] = []
    for step in prunable_in(run, keep):
        partial = run.partial_checkpoint(step)
        if partial.exists():
            shutil.rmtree(partial)
        run.checkpoint(step).rename(partial)
        shutil.rmtree(partial)
        removed.append(run.checkpoint(step).name)
    return removed


def remove_partials(run: RunFolder) -> None:
    """Remove what crashes left behind; called by the next save."""
    if not run.checkpoints.is_dir():
        return
    for path in run.checkpoints.iterdir():
        is_ours = step_of(path.name.removesuffix(PARTIAL_SUFFIX)) is not None
        if path.name.endswith(PARTIAL_SUFFIX) and is_ours and not path.is_symlink():
            shutil.rmtree(path)


def complete_checkpoint(run: RunFolder, step: int) -> Path:
    """Turn the ``.partial`` folder of a step, manifest inside, into the checkpoint.

    Renames it, makes the name durable, and lets ``latest`` point to the newest. A folder that is
    there already is damaged: the caller has found that, and removes it by ``remove_damaged``.

    Raises:
        OSError: the rename failed, for example onto a folder that is not empty.
    """
    sync_folder(run.partial_checkpoint(step))
    run.partial_checkpoint(step).rename(run.checkpoint(step))
    sync_folder(run.checkpoints)
    point_latest(run)
    return run.checkpoint(step)


def remove_damaged(run: RunFolder, step: int) -> None:
    """Remove a checkpoint that failed its verification; ``latest`` names another one before.

    Raises:
        OSError: it cannot be removed.
    """
    if run.checkpoint(step).exists():
        point_latest(run, other_than=step)
        shutil.rmtree(run.checkpoint(step))


def point_latest(run: RunFolder, *, other_than: int | None = None) -> None:
    """Let the link ``latest`` name the newest complete checkpoint, replaced by rename.

    At any instant the link is absent or leads to a complete checkpoint, of which no part lies on
    another host. What a user put there that is no link stays, and a link that cannot be made
    spoils no save: both are logged.

    Args:
        run: the run.
        other_than: a step whose folder is about to go.
    """
    complete = [found for found in list_checkpoints(run) if found.is_complete]
    newest = max(
        (each.step for each in complete if each.step != other_than and not each.other_hosts),
        default=None,
    )
    if run.latest.exists() and not run.latest.is_symlink():
        logger.warning("%s is no link of ours and is left alone", run.latest)
        return
    try:
        if newest is None:
            run.latest.unlink(missing_ok=True)
        else:
            beside = run.path / ".latest.new"
            beside.unlink(missing_ok=True)
            target = run.checkpoint(newest).relative_to(run.path)
            beside.symlink_to(target, target_is_directory=True)
            beside.replace(run.latest)
        sync_folder(run.path)
    except OSError as error:
        logger.warning("%s cannot be made: %s", run.latest, error)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read training_state/state.json as a plain mapping, for screens and for refusals.

    Raises:
        RunError: the file is missing or not JSON.
    """
    path = checkpoint / "training_state" / "state.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot be read: {error}", where=str(path), remedy="use another checkpoint"
        ) from error


def _look_at(path: Path, step: int) -> Checkpoint:
    try:
        manifest = read_manifest(path)
    except RunError as error:
        return Checkpoint(path, step, 0, error.what)
    if manifest.step != step:
        problem = f"manifest says step {manifest.step}"
        return Checkpoint(path, step, manifest.total_bytes, problem)
    differs = next(disagreements(path, manifest), None)
    return Checkpoint(path, step, manifest.total_bytes, differs, tuple(sorted(manifest.elsewhere)))
