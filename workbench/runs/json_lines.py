"""Files that grow by whole lines of JSON: append one, read from an offset to the last newline.

One writer per file. A reader that finds a line without its newline leaves it for later.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec


class LineWriter:
    """Appends whole lines to one file and knows the byte where each begins."""

    def __init__(self, path: Path) -> None:
        # A crash may have left half a line: the next line must not be glued to it.
        _cut_partial_line(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._offset = os.fstat(self._descriptor).st_size

    @property
    def offset(self) -> int:
        """Byte where the next line will begin."""
        return self._offset

    def append(self, record: msgspec.Struct | dict[str, object]) -> int:
        """Write one record as a line; give the byte where it begins.

        Raises:
            OSError: the disk is full; what was written of the line has been taken back.
        """
        begin = self._offset
        line = msgspec.json.encode(record) + b"\n"
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, begin)
            raise
        self._offset += len(line)
        return begin

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class Line:
    """One whole line: the byte where it begins and its content without the newline."""

    offset: int
    content: bytes


def read_lines(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """Read whole lines from ``offset`` on.

    Returns:
        (lines, next offset): the byte behind the last newline, where to go on reading. A missing
        file has no lines. A file shorter than ``offset`` was replaced and is read from its start.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < offset:
                offset = 0
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    lines: list[Line] = []
    position = offset
    for content in data[:end].split(b"\n")[:-1] if end else []:
        lines.append(Line(position, content))
        position += len(content) + 1
    return lines, offset + end


def last_line(path: Path, at_most_bytes: int = 64 << 10) -> bytes | None:
    """Give the last whole line without its newline, or None where there is none.

    Reads the end of the file only; a line longer than ``at_most_bytes`` is not found.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - at_most_bytes))
            data = file.read()
    except OSError:
        return None
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    if size > at_most_bytes:
        lines = lines[1:]
    return lines[-1] if lines else None


def _cut_partial_line(path: Path) -> None:
    try:
        with path.open("rb+") as file:
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                file.truncate(whole)
    except FileNotFoundError:
        return
