"""Prepares a model: dtype, longest document, chat template, added tokens, shards of safetensors.

Weights go from file to file one tensor at a time; then the new folder is compared with the source,
so that no model is in memory as a whole. Invariant: at the destination there is nothing, or a
folder that passed; the source is only read.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workbench.errors import RefusedError
from workbench.model.conversion_check import check_texts, compare
from workbench.model.conversion_plan import Conversion, Tell, new_tensor
from workbench.model.safetensors_writer import (
    MAX_SHARD_BYTES,
    num_bytes_of,
    plan_shards,
    write_in_turn,
)
from workbench.model.weights import SINGLE_FILE, write_index
from workbench.runs.manifest import WrittenFile, write_hashed
from workbench.runs.whole_folder import whole_folder

_SLACK_BYTES = 16 << 20


@dataclass(frozen=True)
class Converted:
    """A folder that was made.

    Attributes:
        path: of it.
        files: name to size and hash.
        difference: of its logits from the source's, both with weights of the new dtype, relative.
        rounding: how far the new dtype alone moves the logits, relative; 0 where it is the old one.
    """

    path: Path
    files: Mapping[str, WrittenFile]
    difference: float
    rounding: float

    @property
    def bytes(self) -> int:
        """Sum over all files."""
        return sum(written.bytes for written in self.files.values())


def convert(
    conversion: Conversion,
    destination: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    tell: Tell = lambda stage, done, total: None,
) -> Converted:
    """Make the new folder, and prove that it is the same model.

    Args:
        conversion: what it comes to.
        destination: a folder that is not there yet.
        max_shard_bytes: no file of weights holds more, unless a single tensor does.
        tell: how far it is.

    Raises:
        RunError: the destination is taken or cannot be written, or a weight is not finite.
        RefusedError: there is no room.
        WorkbenchError: the new folder is not the same model. Nothing is at the destination then.
    """
    with whole_folder(destination, conversion.source) as partial:
        free = shutil.disk_usage(partial).free
        needed = conversion.num_bytes + _SLACK_BYTES
        if free < needed:
            raise RefusedError(
                f"needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free",
                where=str(destination.parent),
                remedy="free space, or name a folder on another disk",
            )
        files = {
            name: write_hashed(partial / name, content)
            for name, content in conversion.small_files.items()
        }
        check_texts(conversion, partial)
        files |= _write_weights(conversion, partial, max_shard_bytes, tell)
        difference, rounding = compare(conversion, partial, tell)
    return Converted(destination, files, difference, rounding)


def _write_weights(
    conversion: Conversion, partial: Path, max_shard_bytes: int, tell: Tell
) -> dict[str, WrittenFile]:
    shards = plan_shards(partial / SINGLE_FILE, conversion.kinds, max_shard_bytes)
    total = sum(num_bytes_of(kind) for kind in conversion.kinds.values())
    done = 0

    def tensors(names: Sequence[str]) -> Iterator[Tensor]:
        nonlocal done
        for name in names:
            tell("writing", done, total)
            yield new_tensor(conversion, name)
            done += num_bytes_of(conversion.kinds[name])

    written = {
        path.name: write_in_turn(path, kinds, tensors(list(kinds)))
        for path, kinds in shards.items()
    }
    tell("writing", total, total)
    return written | write_index(shards)
