"""JSON lists and JSON lines as parts of a data set: where each row begins and ends, read lazily.

A list is cut into rows without parsing them, so a file of 300 MB costs 16 bytes a row in memory. A
row that is no JSON says so when it is read; only a file whose rows cannot be told apart is an
error. Knows nothing of conversations but how to tell their form.
"""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec
import numpy as np
from numpy.typing import NDArray

from workbench.data.formats import Format
from workbench.data.raw_rows import RawRow, hash_files, reading
from workbench.errors import DataError

_BLANK = b" \t\r\n"
_LAST_COMMA = "a comma behind the last entry"
_NULL_BYTE = "contains a null byte"
_SAVE_AS_UTF_8 = "save the file anew as UTF-8 text"


@dataclass(frozen=True, eq=False)
class JsonPart:
    """The rows of one JSON file.

    Attributes:
        file: the file that the config names.
        label: its name as complaints show it.
        form: of its rows.
        index: where they stand.
    """

    file: Path
    label: str
    form: Format
    index: "RowIndex"

    @property
    def num_rows(self) -> int:
        """How many rows it holds, those that cannot be read included."""
        return len(self.index.spans)

    def fingerprint(self) -> str:
        """Give the sha256 of the file's content."""
        return hash_files([self.file])

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read rows ``start`` to before ``stop``, one at a time."""
        for number, value, problem in self.index.read(start, stop):
            is_encoding = problem is not None and problem.startswith(("is not UTF-8", _NULL_BYTE))
            remedy = _SAVE_AS_UTF_8 if is_encoding else None
            yield RawRow(self.file, self.where(number), value, problem, remedy)

    def where(self, index: int) -> str:
        """Give the file's name with the row's number, or its line in JSON lines."""
        return self.index.where(self.label, index)


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Where the rows of a JSON file stand.

    Attributes:
        file: holds the bytes.
        spans: (rows, 2) int64, offset of each row's first byte and of the one after its last.
        lines: (rows,) int64, the line of each row, from 1; None in a list.
    """

    file: Path
    spans: NDArray[np.int64]
    lines: NDArray[np.int64] | None

    def where(self, label: str, index: int) -> str:
        """Name a row, as complaints show it."""
        if self.lines is None:
            return f"{label} row {index + 1:,}"
        return f"{label}:{self.lines[index]}"

    def read(self, start: int, stop: int) -> Iterator[tuple[int, object, str | None]]:
        """Give number, value and problem of the rows ``start`` to before ``stop``."""
        unit = "column" if self.lines is not None else "character"
        with reading(self.file), self.file.open("rb") as file:
            for number in range(start, stop):
                first, end = (int(offset) for offset in self.spans[number])
                file.seek(first)
                yield number, *_parse(file.read(end - first), unit)


def index_rows(file: Path, label: str, first: int = 0) -> RowIndex:
    """Find the rows of a JSON list, or JSON lines where the file does not begin with a bracket.

    In a file called .json, one object over several lines is one row.

    Args:
        file: to read.
        label: its name as complaints show it, which decides what an object at the beginning is.
        first: offset of the first byte behind a byte order mark.

    Raises:
        DataError: the file cannot be read; or it is no lines, and not JSON, or one value that is
            neither a list nor an object.
    """
    with reading(file):
        if file.stat().st_size <= first:
            return _list_index(file, [])
        with file.open("rb") as opened:
            # Not closed by hand: arrays below look into it, and the last of them takes it along.
            content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))[first:]
    begin = _first_byte(content)
    if begin is None:
        return _list_index(file, [])
    opening = content[begin]
    is_lines = opening != ord("[") and ".jsonl" in PurePath(label).suffixes
    if is_lines or (opening == ord("{") and _is_lines(file, first)):
        return _index_lines(file, first)
    try:
        if opening == ord("["):
            rows = msgspec.json.decode(content, type=list[msgspec.Raw])
        else:
            rows = [msgspec.json.decode(content, type=msgspec.Raw)]
        start_of_file = _address(content) - first
        starts = [_address(row) - start_of_file for row in rows]
        spans = [
            (start, start + memoryview(row).nbytes) for start, row in zip(starts, rows, strict=True)
        ]
    except (ValueError, RecursionError):
        # msgspec refuses what json reads: NaN, halves of surrogate pairs; and names no line.
        spans = _scan_list(content, label, first)
    if opening not in b"[{":
        raise DataError(
            "is not a list of rows", where=label, remedy="give a JSON list, or JSON lines"
        )
    return _list_index(file, spans)


def _index_lines(file: Path, first: int) -> RowIndex:
    """Find the lines that are not blank."""
    spans: list[int] = []
    lines: list[int] = []
    with reading(file), file.open("rb") as content:
        content.seek(first)
        offset = first
        for number, line in enumerate(content, start=1):
            if not line.isspace():
                spans += (offset, offset + len(line.rstrip(b"\r\n")))
                lines.append(number)
            offset += len(line)
    return RowIndex(file, np.array(spans, np.int64).reshape(-1, 2), np.array(lines, np.int64))


def _list_index(file: Path, spans: list[tuple[int, int]]) -> RowIndex:
    return RowIndex(file, np.array(spans, np.int64).reshape(-1, 2), None)


def _address(buffer: object) -> int:
    """Give the place in memory of a buffer's first byte, to tell how far apart two of them are."""
    array = np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload]
    return int(array.__array_interface__["data"][0])


def _first_byte(content: memoryview) -> int | None:
    """Find the first byte that is not blank."""
    for start in range(0, len(content), 4096):
        chunk = bytes(content[start : start + 4096])
        stripped = chunk.lstrip(_BLANK)
        if stripped:
            return start + len(chunk) - len(stripped)
    return None


def _is_lines(file: Path, first: int) -> bool:
    """Say whether a file that begins with an object holds one on each line."""
    with reading(file), file.open("rb") as content:
        content.seek(first)
        lines = (line for line in content if not line.isspace())
        if _parse(next(lines, b""), "column")[1] is not None:
            return False
        return next(lines, None) is not None


def _scan_list(content: memoryview, label: str, first: int) -> list[tuple[int, int]]:
    """Cut JSON into rows slowly, with Python's reader: lenient, and it says where a mistake is.

    Raises:
        DataError: it is not JSON.
    """
    # Bytes that are no UTF-8 pass here and are told by row, when the row is read.
    text = codecs.decode(content, "utf-8", "surrogateescape")
    spans: list[tuple[int, int]] = []
    try:
        position, byte = _skip_blank(text, 0), first
        byte += position  # blanks are one byte each
        if text[position] != "[":
            end = _end_of_value(text, position)
            _expect_end(text, end)
            return [(byte, byte + _num_bytes(text[position:end]))]
        begin, position = position, _skip_blank(text, position + 1)
        byte += position - begin
        while text[position : position + 1] != "]":
            end = _end_of_value(text, position)
            spans.append((byte, byte + _num_bytes(text[position:end])))
            begin, position = end, _skip_blank(text, end)
            separator = text[position : position + 1]
            if separator == ",":
                comma, position = position, _skip_blank(text, position + 1)
                if text[position : position + 1] == "]":
                    raise json.JSONDecodeError(_LAST_COMMA, text, comma)
            elif separator != "]":
                raise json.JSONDecodeError("Expecting ',' or ']' behind a row", text, end)
            byte = spans[-1][1] + position - begin
        _expect_end(text, position + 1)
    except json.JSONDecodeError as error:
        if "\0" in text:
            null = text.index("\0")
            raise DataError(
                _NULL_BYTE,
                where=f"{label}:{1 + text.count(chr(10), 0, null)}",
                remedy=_SAVE_AS_UTF_8,
            ) from error
        what, position = _mistake(error)
        line = text.count("\n", 0, position) + 1
        column = position - text.rfind("\n", 0, position)
        raise DataError(
            f"is not JSON: {what} at column {column}",
            where=f"{label}:{line}",
            remedy="correct the file; the mistake may begin a line earlier",
        ) from error
    except RecursionError as error:
        raise DataError(
            "is nested too deeply", where=label, remedy="give a list of conversations"
        ) from error
    return spans


_strict, _lenient = json.JSONDecoder(), json.JSONDecoder(strict=False)
_blanks = re.compile(r"[ \t\r\n]*")


def _skip_blank(text: str, position: int) -> int:
    found = _blanks.match(text, position)
    assert found is not None, "it may match nothing"
    return found.end()


def _end_of_value(text: str, position: int) -> int:
    try:
        return _strict.raw_decode(text, position)[1]
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Invalid control character"):
            raise
        try:
            return _lenient.raw_decode(text, position)[1]  # told by row, when the row is read
        except json.JSONDecodeError:
            raise error from None


def _expect_end(text: str, position: int) -> None:
    position = _skip_blank(text, position)
    if position < len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _mistake(error: json.JSONDecodeError) -> tuple[str, int]:
    """Say what is wrong with JSON, and at which character, counted from 0.

    The words are the same whichever version of Python read it.
    """
    text, position = error.doc, error.pos
    before = text[:position].rstrip()
    if error.msg.startswith("Illegal trailing comma"):
        return _LAST_COMMA, position
    if text[position : position + 1] in ("}", "]") and before.endswith(","):
        return _LAST_COMMA, len(before) - 1
    what = error.msg.removesuffix(" at")  # of "Unterminated string starting at"
    what = what[0].lower() + what[1:]
    if what.startswith("expecting"):
        found = text[position:].lstrip()[:1]
        what = f"{what} but found {repr(found) if found else 'the end'}"
    return what, position


def _parse(content: bytes, unit: str) -> tuple[object, str | None]:
    """Parse one row: its value, or None and what is wrong with it."""
    try:
        return msgspec.json.decode(content), None
    except (ValueError, RecursionError):
        pass  # json reads a little more, and says better what is wrong
    if b"\0" in content:
        return None, _NULL_BYTE
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8: byte 0x{content[error.start]:02x}"
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        what, position = _mistake(error)
        return None, f"is not JSON: {what} at {unit} {position + 1}"
    except RecursionError:
        return None, "is not JSON: nested too deeply"
    except ValueError as error:
        return None, f"is not JSON: {' '.join(str(error).split())}"
