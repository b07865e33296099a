"""Files to raw rows: JSON lists and JSON lines, each row knowing where it stands.

A row that is not JSON is a complaint that names its line; a file that cannot be read at all is an
error. Knows nothing of conversations.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import DataError

SUFFIXES = (".json", ".jsonl")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class RawRow:
    """One row as its file states it.

    Attributes:
        file: where it stands.
        where: file name and row or line, as complaints show it.
        value: parsed JSON; None when ``problem`` says why there is none.
        problem: what is wrong with the line.
    """

    file: Path
    where: str
    value: object
    problem: str | None = None


def source_files(path: Path, files: Sequence[str]) -> list[Path]:
    """Name the files of a source: the path itself, or what it holds.

    Args:
        path: a file, or a folder.
        files: names within the folder; empty takes every .json and .jsonl, by name.

    Raises:
        DataError: the path or a file is not there, or the folder holds no such file.
    """
    if path.is_file():
        if files:
            raise DataError(
                "is a file, so there are no files within it",
                where=str(path),
                remedy="give the folder as path, or leave `files` out",
            )
        return [path]
    if not path.is_dir():
        raise DataError(
            "there is no such file or folder", where=str(path), remedy="check data.sources"
        )
    if not files:
        found = sorted(
            file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()
        )
        if not found:
            raise DataError(
                f"holds no file ending in {' or '.join(SUFFIXES)}",
                where=str(path),
                remedy="name the files under data.sources, or give another folder",
            )
        return found
    named = [path / name for name in files]
    absent = [file.name for file in named if not file.is_file()]
    if absent:
        raise DataError(
            f"does not hold {', '.join(absent)}", where=str(path), remedy="check data.sources"
        )
    return named


def read_rows(file: Path) -> Iterator[RawRow]:
    """Read a file's rows in order.

    A .jsonl holds one JSON value per line, blank lines aside; a .json holds a list of rows, or
    lines after all.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or holds null bytes (for .json), or is
            one JSON value that is not a list.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(file), remedy="check its permissions"
        ) from error
    if content.startswith(_UTF_16_MARKS):
        raise DataError("is encoded as UTF-16", where=str(file), remedy="save the file as UTF-8")
    content = content.removeprefix(_BYTE_ORDER_MARK)
    if file.suffix == ".jsonl":
        yield from _read_lines(file, content)
    else:
        yield from _read_list(file, content)


def _read_lines(file: Path, content: bytes) -> Iterator[RawRow]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        problem = _encoding_problem(line)
        if problem is not None:
            yield RawRow(file, where, None, problem)
            continue
        try:
            yield RawRow(file, where, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield RawRow(file, where, None, f"is not JSON: {_explain(error)}")


def _read_list(file: Path, content: bytes) -> Iterator[RawRow]:
    if not content.strip():
        return
    problem = _encoding_problem(content)
    if problem is not None:
        line = 1 + content.count(b"\n", 0, _flaw_at(content))
        raise DataError(
            problem, where=f"{file.name}:{line}", remedy="save the file anew as UTF-8 text"
        )
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith(b"{"):
            yield from _read_lines(file, content)
            return
        raise DataError(
            f"is not JSON: {error.msg} at column {error.colno}",
            where=f"{file.name}:{error.lineno}",
            remedy="correct the file; the mistake may begin a line earlier",
        ) from error
    except RecursionError as error:
        raise DataError(
            "is nested too deeply", where=str(file), remedy="give a list of conversations"
        ) from error
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise DataError(
            "is not a list of rows", where=str(file), remedy="give a JSON list, or JSON lines"
        )
    for number, row in enumerate(value, start=1):
        yield RawRow(file, f"{file.name} row {number:,}", row)


def _encoding_problem(content: bytes) -> str | None:
    if b"\0" in content:
        return "contains a null byte"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8: byte 0x{content[error.start]:02x}"
    return None


def _flaw_at(content: bytes) -> int:
    null = content.find(b"\0")
    if null >= 0:
        return null
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _explain(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return re.sub(r"\s+", " ", str(error))
