"""Write safetensors from wherever tensors live, hashed while they go, durable when it returns.

Host tensors are written from their own memory. Device tensors pass two pinned buffers of 16 MiB:
the next piece comes down while the last is hashed and written. One core hashes 1.2 to 2 GB/s, so
large files are divided, and several are written at once. Knows files and tensors, no model.
"""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.model.safetensors_reader import CHUNK_BYTES, CODES, memory_of, pinned_pair
from workbench.runs.manifest import WrittenFile

MAX_SHARD_BYTES = 2 << 30
"""No file is longer, unless a single tensor is."""

_MAX_THREADS = 8  # files at once; each hashes in one thread more


def plan_shards(
    path: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[Path, dict[str, Tensor]]:
    """Divide tensors among as few files as a limit of their length allows, in order.

    Args:
        path: of the file where one holds everything; of several the names are
            ``<stem>-00001-of-00003.safetensors``.
        tensors: by name, in the order they are to be stored.
        max_shard_bytes: no file holds more, unless a single tensor does.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = num_bytes_of(tensor)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:
        return {path: shards[0]}
    return {
        path.with_stem(f"{path.stem}-{number:05d}-of-{len(shards):05d}"): shard
        for number, shard in enumerate(shards, start=1)
    }


def write_files(files: Mapping[Path, Mapping[str, Tensor]]) -> dict[Path, WrittenFile]:
    """Write several files at once, each as ``write_safetensors`` does.

    Raises:
        OSError: a file cannot be written, or the disk is full; no other is begun then.
    """
    num_threads = min(_MAX_THREADS, max(2, len(os.sched_getaffinity(0)) // 2), len(files))
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        writing = {
            path: threads.submit(write_safetensors, path, tensors)
            for path, tensors in files.items()
        }
        try:
            return {path: file.result() for path, file in writing.items()}
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> WrittenFile:
    """Write one file, hashing while it goes; the file is durable, its name not yet.

    Args:
        path: of the file.
        tensors: by name, in the order they are to be stored; on the host or a device.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    return write_in_turn(path, tensors, tensors.values())


def write_in_turn(
    path: Path, kinds: Mapping[str, Tensor], tensors: Iterable[Tensor]
) -> WrittenFile:
    """Write one file of tensors that need not be in memory together.

    Args:
        path: of the file.
        kinds: a tensor of the shape and dtype of each, by name; what they hold does not matter.
        tensors: those to be stored, in that order, each asked for when the one before is written.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    return write_chunks(path, _chunks(kinds, tensors))


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> WrittenFile:
    """Write a file from pieces; one thread hashes a piece while another writes it.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    digest = hashlib.sha256()
    total = 0
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        for chunk in chunks:
            hashed = hashing.submit(digest.update, chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            # The kernel begins to send the piece to the disk. Otherwise most of that waits for
            # fsync: 640 MiB took 3.9 s in place of 1.5 (medians of nine).
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), total, len(chunk), os.POSIX_FADV_DONTNEED)
            total += len(chunk)
            hashed.result()  # the buffer behind the chunk is used again
        os.fsync(file.fileno())
    return WrittenFile(total, digest.hexdigest())


def num_bytes_of(tensor: Tensor) -> int:
    """Count the bytes that a tensor takes in a file."""
    return tensor.numel() * tensor.element_size()


def _chunks(kinds: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield _header(kinds)
    on_way: _OnWay | None = None
    buffers: _Buffers | None = None
    for piece in _pieces(tensors):
        if piece.device.type == "cpu":
            next_on_way = None
        else:
            buffers = buffers or _Buffers(piece.device)
            next_on_way = buffers.bring(piece)
        if on_way is not None:
            yield on_way.arrived()
        if next_on_way is None:
            yield memory_of(piece)
        on_way = next_on_way
    if on_way is not None:
        yield on_way.arrived()


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + num_bytes_of(tensor)
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text


def _pieces(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Cut tensors into pieces of bytes where they live."""
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), CHUNK_BYTES):
            yield flat[begin : begin + CHUNK_BYTES]


@dataclass(frozen=True)
class _OnWay:
    """A piece that is being copied down: where to, when it is there, and what keeps it alive."""

    memory: Tensor
    copied: torch.cuda.Event
    piece: Tensor

    def arrived(self) -> memoryview:
        """Wait for the copy; give its bytes."""
        self.copied.synchronize()
        return memory_of(self.memory)


class _Buffers:
    """Two pinned buffers that pieces of a device come down to in turn."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # whatever changes the tensors has to end first
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memories = pinned_pair()
        self._turn = 0

    def bring(self, piece: Tensor) -> _OnWay:
        """Begin to copy a piece into the buffer that is not being written."""
        self._turn ^= 1
        memory = self._memories[self._turn][: piece.numel()]
        with torch.cuda.stream(self._stream):
            memory.copy_(piece, non_blocking=True)
            return _OnWay(memory, self._stream.record_event(), piece)
