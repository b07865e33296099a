"""A row as a file states it, and the part of a data set that gives such rows in order.

Knows nothing of conversations. Invariant: a part holds paths and numbers, never rows: it may be
handed to another process, and what it takes in memory does not grow with the text.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workbench.data.formats import Format
from workbench.errors import DataError


@dataclass(frozen=True)
class RawRow:
    """One row as its file states it.

    Attributes:
        file: where it stands.
        where: file name and row or line, as complaints show it.
        value: parsed; None when ``problem`` says why there is none.
        problem: what is wrong with the row as a whole.
        remedy: against the problem, where a better one is known than ``formats.ROW_REMEDY``.
    """

    file: Path
    where: str
    value: object
    problem: str | None = None
    remedy: str | None = None


class Part(Protocol):
    """One file of a data set, or one split of a data set of the hub."""

    @property
    def label(self) -> str:
        """Its name as complaints show it."""

    @property
    def num_rows(self) -> int:
        """How many rows it holds, those that cannot be read included."""

    @property
    def form(self) -> Format:
        """The form of its rows: as the config states it, or as its first readable row shows."""

    def fingerprint(self) -> str:
        """Give the sha256 of the content, 64 hexadecimal digits; the name does not count.

        Raises:
            DataError: the file cannot be read any more.
        """

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read rows ``start`` (from 0) to before ``stop``, one at a time.

        Raises:
            DataError: the file cannot be read any more.
        """

    def where(self, index: int) -> str:
        """Say where row ``index`` (from 0) stands, as complaints show it."""


def hash_files(files: list[Path]) -> str:
    """Give the sha256 of files one after the other, as 64 hexadecimal digits.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        with reading(path), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read a file into an error that names it.

    Raises:
        DataError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            remedy="check its permissions and its disk",
        ) from error
