"""A data set of the config to its parts: files of rows, found, opened and recognised.

A row that cannot be read is a complaint that names its place; a file whose rows cannot be told
apart is an error. Which files are read:

* A file is read as its name ends: ``.json`` (a list, one object, or lines), ``.jsonl``.
* A folder gives the files that are named, or all that end so, by name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.config.schema.data import SourceSection
from workbench.data.findings import Finding
from workbench.data.formats import Format, recognise
from workbench.data.json_files import JsonPart, RowIndex, index_lines, index_list
from workbench.data.raw_rows import Part, RawRow, reading
from workbench.errors import DataError

SUFFIXES = (".json", ".jsonl")

_SEEN_TO_RECOGNISE = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Source:
    """A data set, opened.

    Attributes:
        name: in the config.
        weight: times each training row is seen per epoch.
        parts: in the order of the config, or of their names.
        findings: what is odd about its files as a whole and no reason to refuse them.
    """

    name: str
    weight: float
    parts: tuple[Part, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows all parts hold, those that cannot be read included."""
        return sum(part.num_rows for part in self.parts)


def open_source(name: str, source: SourceSection) -> Source:
    """Find and open the files of a data set.

    Args:
        name: of the data set in the config.
        source: where it lies, and the form of its rows.

    Raises:
        DataError: a file is not there, cannot be read, is not what its name says, or holds rows
            of no known form; or there is no row at all.
    """
    findings: list[Finding] = []
    files = source_files(Path(source.path), source.files)
    opened = Source(
        name,
        source.weight,
        tuple(_open_file(file, name, source, findings) for file in files),
        tuple(findings),
    )
    if not opened.num_rows:
        raise DataError(
            f"{source.path} holds no conversation",
            where=f"data.sources.{name}",
            remedy="give a file with rows, or null to drop this data set",
        )
    return opened


def _open_file(file: Path, name: str, source: SourceSection, findings: list[Finding]) -> Part:
    label = file.name
    first = _first_offset(file, label, findings)
    index = index_lines(file, first) if file.suffix == ".jsonl" else index_list(file, label, first)
    if not len(index.spans):
        what, remedy = "holds no rows", "remove it from data.sources, or fill it"
        findings.append(Finding("warning", label, what, remedy))
    return JsonPart(file, label, _form(index, label, name, source), index)


def _first_offset(file: Path, label: str, findings: list[Finding]) -> int:
    """Look at a file's first bytes: give where its text begins.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    with reading(file), file.open("rb") as content:
        head = content.read(4)
    if head.startswith(_UTF_16_MARKS):
        raise DataError("is encoded as UTF-16", where=label, remedy="save the file as UTF-8")
    if not head.startswith(_BYTE_ORDER_MARK):
        return 0
    what = "begins with a byte order mark, which is left out"
    findings.append(Finding("warning", label, what, "save the file as UTF-8 without one"))
    return len(_BYTE_ORDER_MARK)


def _form(index: RowIndex, label: str, name: str, source: SourceSection) -> Format:
    """Give the form that the config states, or that of the first row that can be read."""
    if source.format != "auto":
        return source.format
    for number, value, problem in index.read(0, min(len(index.spans), _SEEN_TO_RECOGNISE)):
        if problem is None:
            form = recognise(value)
            if form is None:
                raise DataError(
                    "has neither 'conversations' (ShareGPT) nor 'messages' (OpenAI)",
                    where=index.where(label, number),
                    remedy=f"correct the row, or state data.sources.{name}.format",
                )
            return form
    # A file of broken lines only is reported line by line, whatever its form would have been.
    return "sharegpt"


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
