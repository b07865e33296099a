"""Model weights in safetensors: read, drawn at random, written in shards.

Tensors go to disk one at a time, from wherever they live, hashed as they pass. Tied weights are
stored once. No pickle is read or written.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import RunError
from workbench.model.decoder import HEAD, parameter_shapes
from workbench.model.families import Dimensions
from workbench.runs.atomic import sync_folder
from workbench.runs.manifest import WrittenFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4 << 30

_CHUNK_BYTES = 16 << 20
_SHOWN_NAMES = 5
_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
}


class _TensorPart(Protocol):
    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _TensorFile(Protocol):
    """What we use of an opened safetensors file, which comes without types."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> _TensorPart: ...


def read_weights(folder: Path, dims: Dimensions, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read all parameters of a model folder into host memory.

    Args:
        folder: with model.safetensors, or shards and their index.
        dims: what config.json says the model is.
        dtype: to convert to while reading, tensor by tensor.

    Returns:
        Name to tensor in Hugging Face order; a tied head is not in it.

    Raises:
        RunError: no weights, a shard of the index is absent, or a tensor is missing, unexpected,
            of another shape or not of a floating type; all such names are listed.
    """
    return {name: tensor.to(dtype) for name, tensor in iterate_weights(folder, dims)}


def iterate_weights(folder: Path, dims: Dimensions) -> Iterator[tuple[str, Tensor]]:
    """Read parameters one at a time, in Hugging Face order, as they are stored.

    Raises:
        RunError: as ``read_weights``, before the first tensor is given.
    """
    holders = find_tensors(folder)
    shapes = parameter_shapes(dims)
    opened = {path: _open(path) for path in dict.fromkeys(holders.values())}
    problems = _compare(holders, opened, shapes, dims)
    if problems:
        raise RunError(
            "; ".join(problems),
            where=str(folder),
            remedy="use weights and config.json of the same model",
        )
    for name in shapes:
        path = holders[name]
        try:
            yield name, opened[path].get_tensor(name)
        except SafetensorError as error:
            raise _unreadable(path, error) from error


def find_tensors(folder: Path) -> dict[str, Path]:
    """Say for each tensor of a model folder which file holds it.

    Raises:
        RunError: there are no weights, or the index names a file that is not there.
    """
    folder = Path(folder)
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.is_file():
        return _find_sharded(folder, index)
    if single.is_file():
        return dict.fromkeys(_open(single).keys(), single)
    if not folder.is_dir():
        raise RunError(
            "there is no such model folder", where=str(folder), remedy="check model.path"
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise RunError(
            "holds pickled weights only, which are never loaded",
            where=str(folder),
            remedy="download the model's .safetensors files",
        )
    raise RunError(
        f"has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}",
        where=str(folder),
        remedy="download the .safetensors files, or set model.weights: random",
    )


def _find_sharded(folder: Path, index: Path) -> dict[str, Path]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        holders = {str(name): folder / str(file) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "is not an index of weights", where=str(index), remedy="copy the model folder anew"
        ) from error
    outside = sorted({path.name for path in holders.values() if path.parent != folder})
    absent = sorted({path.name for path in holders.values() if not path.is_file()})
    if absent or outside or not holders:
        names = _some(absent or outside) if holders else "no file at all"
        raise RunError(
            f"the index names {names}, not in this folder",
            where=str(index),
            remedy="download the missing shards, or remove an index left by another format",
        )
    return holders


def _open(path: Path) -> _TensorFile:
    try:
        return cast(_TensorFile, safe_open(path, framework="pt", device="cpu"))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"cannot be read as safetensors: {error}",
        where=str(path),
        remedy="copy the file anew, it may be cut short",
    )


def _compare(
    holders: Mapping[str, Path],
    opened: Mapping[Path, _TensorFile],
    shapes: Mapping[str, tuple[int, ...]],
    dims: Dimensions,
) -> list[str]:
    present = {path: set(file.keys()) for path, file in opened.items()}
    found = {name: path for name, path in holders.items() if name in present[path]}
    missing = [name for name in shapes if name not in found]
    unexpected = [name for name in found if name not in shapes and not _may_be_ignored(name, dims)]
    misshapen, mistyped = [], []
    for name, shape in shapes.items():
        if name not in found:
            continue
        part = opened[found[name]].get_slice(name)
        if tuple(part.get_shape()) != shape:
            misshapen.append(f"{name} is {list(part.get_shape())}, not {list(shape)}")
        if part.get_dtype() not in _CODES.values():
            mistyped.append(f"{name} is {part.get_dtype()}")
    problems = []
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_some(unexpected)}")
    if misshapen:
        problems.append(f"of another shape: {_some(misshapen)}")
    if mistyped:
        problems.append(f"not of a floating type: {_some(mistyped)}")
    return problems


def _may_be_ignored(name: str, dims: Dimensions) -> bool:
    """Say whether a tensor is a copy or a constant that older writers stored."""
    return name.endswith("rotary_emb.inv_freq") or (dims.tied and name == HEAD)


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def random_weights(dims: Dimensions, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw every parameter; each depends on the seed and its own name alone.

    Args:
        dims: of the model.
        seed: any whole number from 0.
        dtype: of the result; the draw itself is fp32.

    Returns:
        Name to tensor in Hugging Face order: matrices normal with ``initializer_range``, norms
        one.
    """
    weights = {}
    for name, shape in parameter_shapes(dims).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=dtype)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.empty(shape, dtype=torch.float32)
        drawn.normal_(0.0, dims.initializer_range, generator=generator)
        weights[name] = drawn.to(dtype)
    return weights


def write_weights(
    folder: Path,
    names_and_tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, WrittenFile]:
    """Write weights as Hugging Face does, durable when this returns.

    One file ``model.safetensors`` when all fits into a shard, else shards and their index. Each
    tensor is copied to the host when its turn comes.

    Args:
        folder: exists, usually a checkpoint still ``.partial``.
        names_and_tensors: in the order to be stored; a tied head is left out by the caller.
        max_shard_bytes: no shard holds more, unless a single tensor does.

    Returns:
        File name to its size and SHA-256, the index included.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    tensors = dict(names_and_tensors)
    shards = _plan_shards(tensors, max_shard_bytes)
    written: dict[str, WrittenFile] = {}
    if len(shards) == 1:
        written[SINGLE_FILE] = write_safetensors(folder / SINGLE_FILE, tensors)
    else:
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            written[file] = write_safetensors(
                folder / file, {name: tensors[name] for name in names}
            )
            weight_map |= dict.fromkeys(names, file)
        total = sum(_num_bytes(tensor) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        content = json.dumps(index, indent=2).encode() + b"\n"
        written[INDEX_FILE] = _write_file(folder / INDEX_FILE, [content])
    sync_folder(folder)
    return written


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> WrittenFile:
    """Write one safetensors file, hashing while it goes; the file is durable, its name not yet.

    Source: the format's description in the safetensors repository: eight bytes of header length,
    a JSON header, then the tensors' bytes without gaps.
    """
    return _write_file(path, _safetensors_bytes(tensors))


def _plan_shards(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = _num_bytes(tensor)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _safetensors_bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + _num_bytes(tensor)
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of eight
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        content = memoryview(flat.numpy().data)
        for chunk in range(math.ceil(len(content) / _CHUNK_BYTES)):
            yield content[chunk * _CHUNK_BYTES : (chunk + 1) * _CHUNK_BYTES]


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> WrittenFile:
    digest = hashlib.sha256()
    total = 0
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            total += len(chunk)
        os.fsync(file.fileno())
    return WrittenFile(total, digest.hexdigest())
