"""The weights of a model folder: found and compared, loaded, drawn at random, written in shards.

Tensors go from files into the memory they belong to and back, without a second model in between.
Tied weights are stored once. Safetensors and ``.bin`` are read, safetensors are written; no pickle
is ever run.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from workbench.config.weight_files import INDEX_FILE as INDEX_FILE
from workbench.config.weight_files import SINGLE_FILE as SINGLE_FILE
from workbench.config.weight_files import find_weight_files, some
from workbench.errors import RunError
from workbench.model.bin_reader import read_bin_header
from workbench.model.decoder import HEAD, parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.safetensors_reader import (
    StoredTensor,
    read_header,
    read_into,
    read_tensor,
)
from workbench.model.safetensors_writer import (
    MAX_SHARD_BYTES,
    num_bytes_of,
    plan_shards,
    write_chunks,
    write_files,
)
from workbench.runs.atomic import sync_folder
from workbench.runs.manifest import WrittenFile

logger = logging.getLogger(__name__)

_DRAWN_ELEMENTS = 4 << 20  # at a time, by one thread: 16 MiB
_MAX_DRAWING_THREADS = 8


def read_weights(folder: Path, dims: Dimensions, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read all parameters of a model folder into host memory.

    Args:
        folder: with safetensors or ``.bin``, in one file or in shards with their index.
        dims: what config.json says the model is.
        dtype: to convert to while reading, tensor by tensor.

    Returns:
        Name to tensor in Hugging Face order; a tied head is not in it.

    Raises:
        RunError: no weights, a shard of the index is absent, or a tensor is missing, unexpected,
            of another shape or not of a floating type; all such names are listed. Or, once it is
            read, a tensor holds a NaN or an infinity.
    """
    stored = stored_weights(folder, dims)  # what sizes nobody has stored is never made room for
    weights = {name: torch.empty(each.shape, dtype=dtype) for name, each in stored.items()}
    read_into(((each, weights[name]) for name, each in stored.items()), must_be_finite=True)
    return weights


def iterate_weights(folder: Path, dims: Dimensions) -> Iterator[tuple[str, Tensor]]:
    """Read parameters one at a time, in Hugging Face order, as they are stored.

    Raises:
        RunError: as ``read_weights``; but for what is not finite, before the first tensor is given.
    """
    for name, stored in stored_weights(folder, dims).items():
        yield name, read_tensor(stored, must_be_finite=True)


def load_into(folder: Path, dims: Dimensions, destinations: Mapping[str, Tensor]) -> None:
    """Read all parameters of a model folder straight into their places.

    Host memory beside the destinations stays below 256 MiB.

    Args:
        folder: with safetensors or ``.bin``, in one file or in shards with their index.
        dims: what config.json says the model is.
        destinations: every parameter by Hugging Face name; contiguous, on the host or a device,
            of any floating dtype, which may differ from the file's.

    Raises:
        RunError: as ``read_weights``; but for what is not finite, before the first byte of a tensor
            is read.
    """
    weights = stored_weights(folder, dims)
    assert weights.keys() == destinations.keys(), weights.keys() ^ destinations.keys()
    read_into(
        ((stored, destinations[name]) for name, stored in weights.items()), must_be_finite=True
    )


def stored_weights(folder: Path, dims: Dimensions) -> dict[str, StoredTensor]:
    """Say where each parameter of a model folder lies; no tensor is read.

    Returns:
        In Hugging Face order; shapes are those of ``dims``, dtypes are floating ones.

    Raises:
        RunError: as ``read_weights``, but for what tensors hold: none is looked at.
    """
    found = _find_tensors(folder)
    problems = _compare(found, dims)
    if problems:
        raise RunError(
            "; ".join(problems),
            where=str(folder),
            remedy="use weights and config.json of the same model",
        )
    return {name: found[name] for name in parameter_shapes(dims)}


def find_tensors(folder: Path) -> dict[str, Path]:
    """Say for each tensor of a model folder which file holds it.

    Raises:
        RunError: there are no weights, a file of the index is not there, or one cannot be read.
    """
    return {name: stored.path for name, stored in _find_tensors(folder).items()}


def _find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Say where each tensor that a folder lists lies; none that its files lack.

    Raises:
        RunError: there are no weights, a file of the index is not there, or one cannot be read.
    """
    found = find_weight_files(folder)
    if found.notice:
        logger.warning("%s: %s", folder, found.notice)
    headers = {path: _read_header(path) for path in found.files}
    if found.holders is None:
        (tensors,) = headers.values()
        return tensors
    return {
        name: headers[path][name] for name, path in found.holders.items() if name in headers[path]
    }


def _read_header(path: Path) -> dict[str, StoredTensor]:
    return read_header(path) if path.suffix == ".safetensors" else read_bin_header(path)


def _compare(found: Mapping[str, StoredTensor], dims: Dimensions) -> list[str]:
    shapes = parameter_shapes(dims)
    missing = [name for name in shapes if name not in found]
    unexpected = [name for name in found if name not in shapes and not _may_be_ignored(name, dims)]
    misshapen, mistyped = [], []
    for name in (name for name in shapes if name in found):
        stored = found[name]
        if stored.shape != shapes[name]:
            misshapen.append(f"{name} is {list(stored.shape)}, not {list(shapes[name])}")
        if stored.dtype is None or not stored.dtype.is_floating_point:
            mistyped.append(f"{name} is {stored.code}")
    problems = []
    if missing:
        problems.append(f"missing: {some(missing)}")
    if unexpected:
        problems.append(f"unexpected: {some(unexpected)}")
    if misshapen:
        problems.append(f"of another shape: {some(misshapen)}")
    if mistyped:
        problems.append(f"not of a floating type: {some(mistyped)}")
    return problems


def _may_be_ignored(name: str, dims: Dimensions) -> bool:
    """Say whether a tensor is a copy or a constant that older writers stored."""
    return name.endswith("rotary_emb.inv_freq") or (dims.tied and name == HEAD)


def random_weights(dims: Dimensions, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw every parameter; each depends on the seed and its own name alone.

    Args:
        dims: of the model.
        seed: any whole number from 0.
        dtype: of the result; the draw itself is fp32.

    Returns:
        Name to tensor in Hugging Face order: matrices normal with ``initializer_range``, norms
        one, biases zero.
    """
    weights = {
        name: torch.empty(shape, dtype=dtype) for name, shape in parameter_shapes(dims).items()
    }
    random_into(dims, seed, dtype, weights)
    return weights


def random_into(
    dims: Dimensions, seed: int, dtype: torch.dtype, destinations: Mapping[str, Tensor]
) -> None:
    """Draw every parameter into its place, bit for bit as ``random_weights`` does.

    Args:
        dims: of the model.
        seed: any whole number from 0.
        dtype: that drawn numbers are rounded to before they go to their places.
        destinations: every parameter by Hugging Face name; contiguous, on the host or a device.
    """
    shapes = parameter_shapes(dims)
    assert shapes.keys() == destinations.keys(), shapes.keys() ^ destinations.keys()
    num_threads = min(_MAX_DRAWING_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as threads:
        drawn = [
            threads.submit(draw_into, destinations[name], dims, seed=seed, name=name, dtype=dtype)
            for name in shapes
        ]
    for each in drawn:
        each.result()


def draw_into(
    destination: Tensor, dims: Dimensions, *, seed: int, name: str, dtype: torch.dtype
) -> None:
    """Draw one parameter into its place, as ``random_into`` draws all; takes 16 MiB beside it."""
    if destination.dim() == 1:
        destination.fill_(0.0 if name.endswith(".bias") else 1.0)
        return
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    flat = destination.detach().view(-1)
    for chunk in _draws_alike(flat):
        drawn = torch.empty(chunk.shape, dtype=torch.float32)
        drawn.normal_(0.0, dims.initializer_range, generator=generator)
        chunk.copy_(drawn.to(dtype))


def _draws_alike(flat: Tensor) -> Iterator[Tensor]:
    """Cut a tensor such that its parts, drawn in turn, get what one draw would give.

    torch draws normal numbers by sixteens, the last ones anew when sixteen does not divide their
    number: each part but the last is a multiple of sixteen, and none is shorter than that.
    """
    begin = 0
    while flat.numel() - begin >= _DRAWN_ELEMENTS + 16:
        yield flat[begin : begin + _DRAWN_ELEMENTS]
        begin += _DRAWN_ELEMENTS
    yield flat[begin:]


def write_weights(
    folder: Path,
    names_and_tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, WrittenFile]:
    """Write weights as Hugging Face does, durable when this returns.

    One file ``model.safetensors`` when all fits into a shard, else shards and their index, several
    written at once. Host tensors are written from where they are.

    Args:
        folder: exists, usually a checkpoint still ``.partial``.
        names_and_tensors: in the order to be stored; a tied head is left out by the caller.
        max_shard_bytes: no shard holds more, unless a single tensor does.

    Returns:
        File name to its size and SHA-256, the index included.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    shards = plan_shards(folder / SINGLE_FILE, dict(names_and_tensors), max_shard_bytes)
    written = {path.name: file for path, file in write_files(shards).items()}
    written |= write_index(shards)
    sync_folder(folder)
    return written


def write_index(shards: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, WrittenFile]:
    """Write beside the shards of a model which of them holds what; nothing where there is one.

    Args:
        shards: as ``plan_shards`` gives them.

    Returns:
        File name of the index to its size and SHA-256.
    """
    if len(shards) == 1:
        return {}
    tensors = [tensor for shard in shards.values() for tensor in shard.values()]
    index = {
        "metadata": {"total_size": sum(map(num_bytes_of, tensors))},
        "weight_map": {name: path.name for path, shard in shards.items() for name in shard},
    }
    content = json.dumps(index, indent=2).encode() + b"\n"
    folder = next(iter(shards)).parent
    return {INDEX_FILE: write_chunks(folder / INDEX_FILE, [content])}
