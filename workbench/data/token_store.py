"""Tokens of documents in flat files: written as they come, read by mapping, never whole in memory.

Knows numbers, no text. Invariant: document i is ``ids[offsets[i]:offsets[i + 1]]``, and its first
token is no target.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, type[np.generic]] = {
    "ids": np.int32,
    "targets": np.bool_,
    "offsets": np.int64,
    "parts": np.int32,
    "rows": np.int64,
}


@dataclass(frozen=True)
class TokenStore:
    """Documents end to end.

    Attributes:
        ids: (tokens,) int32.
        targets: (tokens,) bool, True where the token counts in the loss.
        offsets: (documents + 1,) int64, ascending from 0; where each document begins, and the end.
        parts: (documents,) int32, which part of the data (a file, say) it came from.
        rows: (documents,) int64, its row within that part, from 0.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    parts: NDArray[np.int32]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return self.parts.size

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(documents,) int32, tokens of each."""
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class Documents:
    """Some documents on their way into a store.

    Attributes:
        ids: (tokens,) int32, end to end.
        targets: (tokens,) bool.
        lengths: (documents,) int64, tokens of each.
        rows: (documents,) int64, row within their part.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    rows: NDArray[np.int64]


class TokenStoreWriter:
    """Appends documents to the files of a folder; what it is given it does not keep.

    Args:
        folder: to make; the files lie in it.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._end = 0
        self.highest_id = -1
        with contextlib.ExitStack() as opened:
            self._files: dict[str, BinaryIO] = {
                name: opened.enter_context((folder / name).open("wb")) for name in _DTYPES
            }
            self._write("offsets", np.zeros(1, dtype=np.int64))
            self._opened = opened.pop_all()

    def __enter__(self) -> "TokenStoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._opened.close()
        else:
            # What could not be written is told already; a file that is closed writes it once more.
            with contextlib.suppress(OSError):
                self._opened.close()

    def append(self, part: int, documents: Documents) -> None:
        """Write documents of one part behind the others.

        Raises:
            OSError: there is no space, or the disk fails.
        """
        if not documents.lengths.size:
            return
        offsets = self._end + np.cumsum(documents.lengths, dtype=np.int64)
        self._end = int(offsets[-1])
        assert documents.ids.size == documents.targets.size == int(documents.lengths.sum())
        self._write("ids", documents.ids)
        self._write("targets", documents.targets)
        self._write("offsets", offsets)
        self._write("parts", np.full(documents.lengths.size, part, dtype=np.int32))
        self._write("rows", documents.rows)
        self.highest_id = max(self.highest_id, int(documents.ids.max()))

    def _write(self, name: str, values: NDArray[Any]) -> None:
        assert values.dtype == _DTYPES[name], (name, values.dtype)
        self._files[name].write(np.ascontiguousarray(values).data)


def open_token_store(folder: Path) -> TokenStore:
    """Map the files of a store.

    Raises:
        OSError: a file cannot be read.
        ValueError: the files do not belong together.
    """
    arrays = {name: _map(folder / name, dtype) for name, dtype in _DTYPES.items()}
    store = TokenStore(**arrays)
    tokens, documents = store.ids.size, store.parts.size
    sizes = (store.targets.size, store.offsets.size - 1, store.rows.size)
    if sizes != (tokens, documents, documents) or store.offsets[-1] != tokens:
        raise ValueError(f"the files of {folder.name} do not belong together")
    return store


def sync_files(folder: Path) -> None:
    """Make every file of a folder, and the folder itself, durable."""
    for path in _walk(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path
    yield folder


def _map(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    size = path.stat().st_size
    if size % np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} ends within a number")
    if size == 0:  # nothing cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
