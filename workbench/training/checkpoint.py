"""Save and load checkpoints: complete or absent, never something in between.

A save checks the disk, writes into ``.partial`` while hashing, has all ranks agree, lists every
file in the manifest, renames, and only then tells anybody and prunes. A save that fails leaves
older checkpoints as they are. Knows named tensors and bytes, not the engine they come from.
"""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.model.families import Dimensions
from workbench.model.safetensors_reader import StoredTensor, read_header, read_into
from workbench.model.safetensors_writer import (
    MAX_SHARD_BYTES,
    num_bytes_of,
    plan_shards,
    write_files,
)
from workbench.model.weights import SINGLE_FILE, stored_weights, write_index
from workbench.runs import checkpoints as folders
from workbench.runs.atomic import sync_folder
from workbench.runs.layout import CheckpointFolder, RunFolder
from workbench.runs.manifest import WrittenFile, verify, write_hashed, write_manifest
from workbench.training.distributed import Ranks
from workbench.training.optimizer.exact import LOW
from workbench.training.state import (
    FORMAT_VERSION,
    SavedState,
    capture_random_states,
    restore_random_states,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Small files, the manifest, and blocks of the file system that are only partly filled.
_SLACK_BYTES = 4 << 20


class SaveError(RunError):
    """A checkpoint could not be written; older ones are untouched."""

    exit_status = 1

    def __init__(
        self, what: str, *, where: str, remedy: str, reason: Literal["no_space", "save_failed"]
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.reason: Literal["no_space", "save_failed"] = reason


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint: its folder, the bytes in it, and the seconds it took."""

    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Content:
    """What goes into every checkpoint of a run, beside counters and random states.

    Tensors are those the run works with, where they live: on the device or on the host. They are
    written from there and overwritten there; nothing may change them meanwhile.

    Attributes:
        weights: parameters by Hugging Face name, in order; a tied head is left out.
        statistics: the optimizer's tensors, ``<parameter>:<part>``.
        common: config, tokenizer, template and other small files by name.
        device: whose random state is kept.
        companions: what travels with weights, ``<parameter>:<part>``; low bits of exact weights
            have a file of their own.
    """

    weights: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    common: Mapping[str, bytes]
    device: torch.device
    companions: Mapping[str, Tensor] = field(default_factory=dict)

    def low_bits(self) -> dict[str, Tensor]:
        """Give the low halves of exact weights by parameter; none where weights are rounded."""
        ending = f":{LOW}"
        return {
            name.removesuffix(ending): tensor
            for name, tensor in self.companions.items()
            if name.endswith(ending)
        }

    def optimizer_state(self) -> dict[str, Tensor]:
        """Give statistics and all companions but low bits, ``<parameter>:<part>``."""
        travelling = {
            name: tensor for name, tensor in self.companions.items() if not name.endswith(f":{LOW}")
        }
        assert not travelling.keys() & self.statistics.keys(), "a part has two owners"
        return {**self.statistics, **travelling}


def save(
    run: RunFolder,
    content: Content,
    state: SavedState,
    ranks: Ranks,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> SavedCheckpoint:
    """Write the checkpoint of ``state.step``, by all ranks together.

    A step that is saved already is verified and kept; one that fails its verification is written
    anew.

    Args:
        run: the run.
        content: as it is after that step.
        state: counters of that step.
        ranks: all of which call this.
        max_shard_bytes: no file of tensors holds more, unless a single tensor does.

    Raises:
        SaveError: on all ranks, when any of them could not write its part.
    """
    begin = time.monotonic()
    step = state.step
    if kept := _verified(run, step, ranks):
        return kept
    partial = run.partial_checkpoint(step)
    try:
        _together(ranks, partial, lambda: _prepare(run, partial, content, ranks))
        parts = _together(
            ranks, partial, lambda: _write(partial, content, state, ranks, max_shard_bytes)
        )
        files = {name: file for part in parts for name, file in part.items()}
        _together(ranks, partial, lambda: _complete(run, step, files, ranks))
    except SaveError:
        # On a full disk the half that was written would leave no room for metrics either.
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    num_bytes = sum(file.bytes for file in files.values())
    return SavedCheckpoint(run.checkpoint(step), num_bytes, time.monotonic() - begin)


def _verified(run: RunFolder, step: int, ranks: Ranks) -> SavedCheckpoint | None:
    """Give the checkpoint of a step that is complete down to its hashes; else None."""
    begin = time.monotonic()
    found: SavedCheckpoint | None = None
    if ranks.rank == 0 and run.checkpoint(step).exists():
        try:
            num_bytes = verify(run.checkpoint(step)).total_bytes
            folders.point_latest(run)  # a crash may have come between the name and the link
            found = SavedCheckpoint(run.checkpoint(step), num_bytes, time.monotonic() - begin)
        except (RunError, OSError) as error:
            logger.warning("%s; it is written anew", error)
    return ranks.gather(found)[0]


def _together(ranks: Ranks, partial: Path, part: Callable[[], T]) -> list[T]:
    """Do a part on every rank; give all results, or fail on all ranks alike."""
    result: T | None = None
    failure: tuple[str, bool] | None = None
    try:
        result = part()
    except SaveError as error:
        failure = error.what, error.reason == "no_space"
    except OSError as error:
        failure = str(error), error.errno in (errno.ENOSPC, errno.EDQUOT)
    outcomes = ranks.gather((result, failure))
    for rank, (_, failed) in enumerate(outcomes):
        if failed is None:
            continue
        what, is_space = failed
        on_rank = f" (rank {rank})" if ranks.world_size > 1 else ""
        raise SaveError(
            f"cannot be saved: {what}{on_rank}",
            where=str(partial),
            remedy="free space or keep fewer checkpoints"
            if is_space
            else "see that the disk can be written, then save again",
            reason="no_space" if is_space else "save_failed",
        )
    return [found for found, _ in outcomes]  # type: ignore[misc]


def _prepare(run: RunFolder, partial: Path, content: Content, ranks: Ranks) -> None:
    if ranks.rank != 0:
        return
    folders.remove_partials(run)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    needed = ranks.world_size * sum(
        num_bytes_of(tensor)
        for tensors in (content.weights, content.statistics, content.companions)
        for tensor in tensors.values()
    )
    needed += sum(len(file) for file in content.common.values()) + _SLACK_BYTES
    free = shutil.disk_usage(run.checkpoints).free
    if free < needed:
        raise SaveError(
            f"checkpoint needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB free",
            where=str(partial),
            remedy="free space or keep fewer checkpoints",
            reason="no_space",
        )
    CheckpointFolder(partial).training_state.mkdir(parents=True)


def _write(
    partial: Path, content: Content, state: SavedState, ranks: Ranks, max_shard_bytes: int
) -> dict[str, WrittenFile]:
    """Write this rank's files, durable; give them by name relative to the folder."""
    folder = CheckpointFolder(partial)
    is_first = ranks.rank == 0
    weights = plan_shards(partial / SINGLE_FILE, content.weights, max_shard_bytes)
    shards = dict(weights) if is_first else {}
    shards |= plan_shards(folder.optimizer(ranks.rank), content.optimizer_state(), max_shard_bytes)
    if low_bits := content.low_bits():
        shards |= plan_shards(folder.low_bits(ranks.rank), low_bits, max_shard_bytes)
    files = {_name(path, partial): file for path, file in write_files(shards).items()}
    if is_first:
        files |= write_index(weights)
        for name, file in content.common.items():
            files[name] = write_hashed(partial / name, file)
        counters = msgspec.json.format(msgspec.json.encode(state), indent=2)
        files[_name(folder.state, partial)] = write_hashed(folder.state, counters)
    random = folder.random(ranks.rank)
    files[_name(random, partial)] = write_hashed(random, capture_random_states(content.device))
    sync_folder(folder.training_state)
    sync_folder(partial)
    return files


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _complete(run: RunFolder, step: int, files: Mapping[str, WrittenFile], ranks: Ranks) -> None:
    if ranks.rank != 0:
        return
    write_manifest(run.partial_checkpoint(step), files, step, ranks.world_size)
    # Only a checkpoint that failed its verification is still here: nothing of worth goes.
    folders.remove_damaged(run, step)
    folders.complete_checkpoint(run, step)


def note_evaluation(run: RunFolder, step: int, loss: float) -> bool:
    """Record a saved step as the best if its loss at that very step is the lowest so far.

    Returns:
        Whether it is the best; False where the step is not saved.
    """
    if not run.checkpoint(step).exists():
        return False
    best = folders.read_best(run)
    if best is not None and best.step != step and best.loss <= loss:
        return False
    folders.write_best(run, folders.Best(step=step, loss=loss))
    return True


# ---- load ----------------------------------------------------------------------------------------


def load(
    folder: Path, content: Content, dims: Dimensions, steps_per_epoch: int, ranks: Ranks
) -> SavedState:
    """Fill weights, statistics and random states from a checkpoint; give its counters.

    Any number of ranks may have written it, under any memory plan: tensors are found by parameter
    name. All names, shapes and dtypes are compared before the first tensor is overwritten.

    Args:
        folder: a complete checkpoint.
        content: whose tensors are overwritten in place.
        dims: of the model.
        steps_per_epoch: of the data at hand, which must be what it was.
        ranks: whose random state is restored.

    Raises:
        RunError: anything is missing, extra, misshapen, of another dtype or of another version.
    """
    saved = _load_state(folder)
    if saved.steps_per_epoch != steps_per_epoch:
        raise RunError(
            f"the data give {steps_per_epoch} steps per epoch, "
            f"the checkpoint was made with {saved.steps_per_epoch}",
            where=str(folder),
            remedy="restore the data files as they were, or begin a new run",
        )
    weights = stored_weights(folder, dims)
    pairs = [_pair(folder, name, stored, content.weights) for name, stored in weights.items()]
    pairs += _optimizer_pairs(folder, content.optimizer_state())
    pairs += _low_bits_pairs(folder, content.low_bits())
    read_into(pairs)
    _load_random_states(folder, ranks.rank, content.device)
    return saved


Pair = tuple[StoredTensor, Tensor]


def _optimizer_pairs(folder: Path, into: Mapping[str, Tensor]) -> list[Pair]:
    """Pair the optimizer's tensors with those in every rank's file."""
    training_state = CheckpointFolder(folder).training_state
    stored = _stored_in(training_state.glob("optimizer-*.safetensors"))
    kept, ours = _parts(stored), _parts(into)
    if kept and ours and not kept & ours:
        raise RunError(
            f"was made by another optimizer: it keeps {', '.join(sorted(kept))} per parameter, "
            f"this run's keeps {', '.join(sorted(ours))}",
            where=str(training_state),
            remedy="set optimizer.name as it was, or begin a new run from the weights: model.path",
        )
    return _pairs(training_state, "optimizer statistics", stored, into)


def _low_bits_pairs(folder: Path, into: Mapping[str, Tensor]) -> list[Pair]:
    """Pair low bits with those that were kept; zero them where none were."""
    training_state = CheckpointFolder(folder).training_state
    stored = _stored_in(training_state.glob("low_bits-*.safetensors"))
    if stored and not into:
        logger.warning("%s: low bits are left out, this run rounds its weights", folder)
        return []
    if into and not stored:
        logger.info("%s was made with rounded weights: their low bits begin at zero", folder)
        for tensor in into.values():
            tensor.zero_()
        return []
    return _pairs(training_state, "low bits", stored, into)


def _stored_in(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """Give the tensors of several files by name, in the order of the files' names."""
    stored: dict[str, StoredTensor] = {}
    for path in sorted(paths):
        try:
            stored |= read_header(path)
        except RunError as error:
            raise RunError(
                error.what, where=error.where, remedy="resume another checkpoint"
            ) from error
    return stored


def _parts(names: Iterable[str]) -> set[str]:
    """Give what stands after parameters' names."""
    return {name.rpartition(":")[2] for name in names}


def _pairs(
    where: Path, what: str, stored: Mapping[str, StoredTensor], into: Mapping[str, Tensor]
) -> list[Pair]:
    pairs = [_pair(tensor.path, name, tensor, into) for name, tensor in stored.items()]
    if missing := into.keys() - stored.keys():
        raise RunError(
            f"{what} are missing: {sorted(missing)[:5]}",
            where=str(where),
            remedy="resume another checkpoint",
        )
    return pairs


def _pair(path: Path, name: str, stored: StoredTensor, into: Mapping[str, Tensor]) -> Pair:
    """Find the place of a stored tensor, which has its shape and dtype."""
    ours = into.get(name)
    if ours is None:
        wrong = f"{name} is unknown to this run"
    elif tuple(ours.shape) != stored.shape or ours.dtype != stored.dtype:
        wrong = (
            f"{name} is {stored.dtype or stored.code} {stored.shape}, "
            f"not {ours.dtype} {tuple(ours.shape)}"
        )
    else:
        return stored, ours
    raise RunError(
        wrong, where=str(path), remedy="resume a checkpoint of this model, dtype and optimizer"
    )


def _load_state(folder: Path) -> SavedState:
    path = CheckpointFolder(folder).state
    try:
        state = msgspec.json.decode(path.read_bytes(), type=SavedState)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"cannot be read: {error}", where=str(path), remedy="resume another checkpoint"
        ) from error
    if state.version != FORMAT_VERSION:
        raise RunError(
            f"has format version {state.version}, not {FORMAT_VERSION}",
            where=str(path),
            remedy="resume with the version of workbench that wrote it",
        )
    return state


def _load_random_states(folder: Path, rank: int, device: torch.device) -> None:
    """Set every generator to where it was; a rank that did not exist then keeps its seeds."""
    path = CheckpointFolder(folder).random(rank)
    if rank > 0 and not path.exists():
        logger.warning("%s is missing: this rank did not exist when it was saved", path)
        return
    try:
        restore_random_states(path.read_bytes(), device)
    except (OSError, msgspec.DecodeError, KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot be read: {error}", where=str(path), remedy="resume another checkpoint"
        ) from error
