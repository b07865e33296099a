"""Which files hold the weights of a model folder: by their names and indexes, no tensor is read.

Four forms are known: safetensors and ``.bin``, in one file or in shards with an index. Where
several are there the first complete one counts, in the order in which transformers looks. Serves
both sides: what is missing is known before a process starts. Invariant: no file outside the folder
is named, but for the links by which the hub's own cache is made.
"""

import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workbench.config.inherit import is_file, is_folder
from workbench.errors import RunError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"

_FORMS = (SINGLE_FILE, INDEX_FILE, BIN_FILE, BIN_INDEX_FILE)
_MAX_INDEX_BYTES = 100_000_000
_SHOWN_NAMES = 5
# Where the hub's cache keeps files: its snapshots are links to them, and so are folders that older
# versions of ``hf download --local-dir`` have made.
_BLOB = re.compile(r".*/models--[^/]+/blobs/[^/]+")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights.

    Attributes:
        listed_in: the file or index that was chosen.
        files: all of them are there, in the order of their names.
        holders: which file holds a tensor, by its name, as the index says; None without an index.
        notice: what is odd about the folder, "" where nothing is.
    """

    listed_in: Path
    files: tuple[Path, ...]
    holders: Mapping[str, Path] | None
    notice: str = ""


def find_weight_files(folder: Path) -> WeightFiles:
    """Say which files hold the weights of a model folder.

    Raises:
        RunError: there is no such folder, there are no weights, an index is none, names what is not
            in the folder, or a file is a link out of it.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise RunError(
            "there is no such model folder", where=str(folder), remedy="check model.path"
        )
    there = [folder / name for name in _FORMS if is_file(folder / name)]
    if not there:
        raise _no_weights(folder)
    absent: dict[Path, list[str]] = {}
    for listed_in in there:
        holders = _read_index(listed_in) if listed_in.suffix == ".json" else None
        names = sorted(set(holders.values())) if holders is not None else [listed_in.name]
        absent[listed_in] = [name for name in names if not _is_beside(folder, name)]
        if absent[listed_in]:
            if len(absent[listed_in]) < len(names):
                break  # half of a download: what is lacking is told, nothing else is taken
            continue
        files = tuple(file_inside(folder, name) for name in names)
        held = None if holders is None else {name: folder / file for name, file in holders.items()}
        return WeightFiles(listed_in, files, held, _notice(listed_in, absent))
    raise _shards_absent(absent)


def missing_weight_files(folder: Path | str) -> list[str]:
    """Name the weight files a model folder should have and has not; [] where it is complete.

    Raises:
        RunError: an index cannot be read, or a file is a link out of the folder.
    """
    folder = Path(folder)
    there = [folder / name for name in _FORMS if is_file(folder / name)]
    if not there:
        return [SINGLE_FILE]
    try:
        find_weight_files(folder)
    except _ShardsAbsentError as error:
        return error.names
    return []


def check_whole(files: Iterable[Path]) -> None:
    """See that safetensors end where their headers say: a download that broke off does not.

    Raises:
        RunError: one is cut short, or begins with no header.
    """
    for path in files:
        if path.suffix == ".safetensors" and (what := _flaw_of(path)) is not None:
            raise RunError(what, where=str(path), remedy="download the file anew")


def _flaw_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if length > min(size - 8, _MAX_INDEX_BYTES):
                return "is no safetensors file, or is cut short: it has no complete header"
            header = msgspec.json.decode(file.read(length), type=dict[str, _Held])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"has no header that can be read: {error}"
    end = max((each.data_offsets[1] for each in header.values()), default=0)
    if end == size - 8 - length:
        return None
    return f"has {size - 8 - length:,} bytes of tensors, its header lists {end:,}: is it complete?"


class _Held(msgspec.Struct):
    """What a header says of one tensor; of its metadata nothing."""

    data_offsets: tuple[int, int] = (0, 0)


def file_inside(folder: Path, name: str) -> Path:
    """Give a file of a model folder, which may be a link only within it, or into the hub's cache.

    Raises:
        RunError: it is a link to somewhere else, or may not be read.
    """
    path = folder / name
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if target.is_relative_to(home) or _BLOB.fullmatch(target.as_posix()):
        if os.path.exists(path) and not os.access(path, os.R_OK, effective_ids=True):  # noqa: PTH110
            raise RunError("may not be read", where=str(path), remedy="check its permissions")
        return path
    raise RunError(
        f"{name} is a link out of the folder, to {target}",
        where=str(folder),
        remedy="put the file itself there, or name the folder that holds it",
    )


class _ShardsAbsentError(RunError):
    """An index names files that are not there."""

    names: list[str]


def _is_beside(folder: Path, name: str) -> bool:
    """Say whether a name is that of a file right in the folder; a path is not."""
    return name not in ("", ".", "..") and "/" not in name and is_file(folder / name)


def _read_index(index: Path) -> dict[str, str]:
    """Read which file holds which tensor.

    Raises:
        RunError: it is no index of weights, or lists none.
    """
    file_inside(index.parent, index.name)
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        stated: Any = json.loads(index.read_bytes())["weight_map"]
        holders = {str(name): str(file) for name, file in stated.items()}
        if not holders:
            raise ValueError("it lists no tensor")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            "is not an index of weights", where=str(index), remedy="copy the model folder anew"
        ) from error
    return holders


def _notice(chosen: Path, absent: Mapping[Path, list[str]]) -> str:
    stale = [index.name for index in absent if index != chosen]
    if not stale:
        return ""
    return (
        f"{' and '.join(stale)} is stale: none of the files it names is here; "
        f"{chosen.name} is read in its place"
    )


def _shards_absent(absent: Mapping[Path, list[str]]) -> RunError:
    """Say what the last index that was looked at lacks, the first one if all lack everything."""
    lacks_some = [index for index, names in absent.items() if any(_there(index, names))]
    index = lacks_some[0] if lacks_some else next(iter(absent))
    names = absent[index]
    error = _ShardsAbsentError(
        f"the index names {some(names)}, not in this folder",
        where=str(index),
        remedy="download the missing shards, or remove an index left by another format",
    )
    error.names = names
    return error


def _there(index: Path, absent: Iterable[str]) -> list[str]:
    return sorted(set(_read_index(index).values()) - set(absent))


def _no_weights(folder: Path) -> RunError:
    older = sorted(
        path.name
        for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf", "*.msgpack", "*.h5")
        for path in folder.glob(pattern)
    )
    if older:
        return RunError(
            f"has no weights by the names of Hugging Face, but {some(older)}",
            where=str(folder),
            remedy=f"download {SINGLE_FILE}, or {BIN_FILE}, or shards with their index",
        )
    return RunError(
        f"has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}, nor {BIN_FILE}",
        where=str(folder),
        remedy="download the .safetensors files, or set model.weights: random",
    )


def some(names: list[str]) -> str:
    """List names, of many the first."""
    rest = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
