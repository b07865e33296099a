"""A data set of the config to its parts: files of rows, found, opened and recognised.

A row that cannot be read is a complaint that names its place; a file whose rows cannot be told
apart is an error. What is read:

* An absolute path is a file or a folder; ``owner/name`` is a data set of the hub.
* A file is read as its name ends: ``.json`` and ``.jsonl`` (either a list, or lines),
  ``.parquet``, ``.txt`` (one document); all but Parquet also packed, with ``.gz`` behind.
* A folder gives the files that are named, or all that end so, by name. Texts are passed over where
  there is anything else: a README.txt beside a data set is no data.
"""

import difflib
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from workbench.config.hub_id import looks_like_hub_id
from workbench.config.schema.data import SourceSection
from workbench.data.findings import Finding
from workbench.data.formats import KEYS_OF_FORM, Format, kind_of, recognise
from workbench.data.hub import fetch_files, load_split
from workbench.data.json_files import JsonPart, RowIndex, index_rows
from workbench.data.raw_rows import Part, reading
from workbench.data.text_files import TextPart
from workbench.data.unpacked import unpack
from workbench.errors import DataError

_TABLE, _TEXT = ".parquet", ".txt"
SUFFIXES = (".json", ".jsonl", _TABLE, _TEXT)

_SEEN_TO_RECOGNISE = 1000
_NAMES_SHOWN = 6
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NO_FORM = (
    "has none of the keys 'conversations' (ShareGPT), 'messages' (OpenAI), 'instruction' (Alpaca), "
    "'text'"
)


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


def is_of_hub(source: SourceSection) -> bool:
    """Say whether a data set is named by its id on the hub, in place of a path."""
    return not Path(source.path).is_absolute() and looks_like_hub_id(source.path)


def open_source(name: str, source: SourceSection) -> Source:
    """Find and open what a data set consists of.

    Args:
        name: of the data set in the config.
        source: where it lies, and the form of its rows.

    Raises:
        DataError: a file is not there, cannot be read, is not what its name says, or holds rows
            of no known form; the hub does not give it; or there is no row at all.
    """
    findings: list[Finding] = []
    if is_of_hub(source):
        parts = _open_hub(name, source, findings)
    else:
        parts = _open_path(name, source, findings)
    opened = Source(name, source.weight, tuple(parts), tuple(findings))
    if not opened.num_rows:
        raise DataError(
            f"{source.path} holds no conversation",
            where=f"data.sources.{name}",
            remedy="give a file with rows, or null to drop this data set",
        )
    return opened


def named_apart(sources: Sequence[Source]) -> list[Source]:
    """Put the name of the data set before file names that several data sets have.

    Args:
        sources: of one config; "a.json" of the data sets x and y becomes "x/a.json", "y/a.json".
    """
    owners: dict[str, set[str]] = {}
    for source in sources:
        for part in source.parts:
            owners.setdefault(part.label, set()).add(source.name)
    shared = {label for label, names in owners.items() if len(names) > 1}
    return [_relabelled(source, shared) for source in sources] if shared else list(sources)


def _relabelled(source: Source, labels: Set[str]) -> Source:
    """Put a data set's name before some of its labels, in parts and findings."""

    def named(label: str) -> str:
        return f"{source.name}/{label}" if label in labels else label

    parts: list[Any] = list(source.parts)  # dataclasses all of them, which a protocol cannot say
    return replace(
        source,
        parts=tuple(replace(part, label=named(part.label)) for part in parts),
        findings=tuple(replace(found, where=named(found.where)) for found in source.findings),
    )


# ---- from paths and ids to files -------------------------------------------------------------


def _open_path(name: str, source: SourceSection, findings: list[Finding]) -> list[Part]:
    if source.split is not None:
        raise DataError(
            "only a data set of the hub has splits, and this is a path",
            where=f"data.sources.{name}.split",
            remedy="leave it out; name the file of the split in place of it",
        )
    path = Path(source.path)
    files = find_files(path, source.files, findings)
    labels = source.files or [file.name for file in files]
    return _open_files(files, labels, name, source, findings)


def _open_hub(name: str, source: SourceSection, findings: list[Finding]) -> list[Part]:
    where = f"data.sources.{name}"
    if source.files and all(_kind_of(file) is not None for file in source.files):
        if source.split not in (None, "train"):
            raise DataError(
                f"named files are one split, called train, and no {source.split!r}",
                where=f"{where}.split",
                remedy="leave it out, and name the files of the split under `files`",
            )
        files = fetch_files(source.path, source.files, where)
        return _open_files(files, source.files, name, source, findings)
    split = load_split(source.path, source.files, source.split, where)
    return [_open_table(split.files, f"{source.path} {split.name}", name, source)]


def find_files(path: Path, files: Sequence[str], findings: list[Finding]) -> list[Path]:
    """Name the files of a data set: the path itself, or what it holds.

    Args:
        path: a file, or a folder.
        files: names within the folder; empty takes every data file, by name.
        findings: takes a word on texts that are passed over.

    Raises:
        DataError: the path or a file is not there, is of no known kind, or the folder holds none.
    """
    if path.is_file():
        if files:
            raise DataError(
                "is a file, so there are no files within it",
                where=str(path),
                remedy="give the folder as path, or leave `files` out",
            )
        found = [path]
    elif not path.is_dir():
        raise DataError(
            "there is no such file or folder", where=str(path), remedy=_near_in_folder(path)
        )
    elif files:
        found = [path / name for name in files]
        absent = [name for name, file in zip(files, found, strict=True) if not file.is_file()]
        if absent:
            raise DataError(
                f"does not hold {', '.join(absent)}",
                where=str(path),
                remedy=_near_in_folder(path / absent[0]),
            )
    else:
        return _data_files(path, findings)
    for file in found:
        if _kind_of(file.name) is None:
            raise DataError(
                f"is of no kind that can be read: {', '.join(SUFFIXES)}, packed with .gz or not",
                where=str(file),
                remedy="rename it if it is one of them, or convert it",
            )
    return found


def _data_files(folder: Path, findings: list[Finding]) -> list[Path]:
    kinds = {file: _kind_of(file.name) for file in sorted(folder.iterdir()) if file.is_file()}
    texts = [file for file, kind in kinds.items() if kind == _TEXT]
    others = [file for file, kind in kinds.items() if kind not in (None, _TEXT)]
    if not kinds or not (texts or others):
        raise DataError(
            f"holds no file ending in {', '.join(SUFFIXES)}, packed with .gz or not",
            where=str(folder),
            remedy="name the files under data.sources, or give another folder",
        )
    if texts and others:
        findings.append(
            Finding(
                "warning",
                str(folder),
                f"{_listed([file.name for file in texts])} passed over, beside files with rows",
                "name every file under `files` to read texts too",
            )
        )
    return others or texts


def _kind_of(name: str) -> str | None:
    """Give the suffix by which a file is read; None if it is none of ours."""
    path = PurePath(name)
    if path.suffix == ".gz":
        inner = PurePath(path.stem).suffix
        return inner if inner in SUFFIXES and inner != _TABLE else None
    return path.suffix if path.suffix in SUFFIXES else None


def _near_in_folder(absent: Path) -> str:
    try:
        held = sorted(entry.name for entry in absent.parent.iterdir())
    except OSError:
        return "check data.sources"
    near = difflib.get_close_matches(absent.name, held, n=1)
    return f"did you mean {near[0]}?" if near else "check data.sources"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    listed = ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{listed} {'is' if len(names) == 1 else 'are'}"


# ---- from files to parts ---------------------------------------------------------------------


def _open_files(
    files: Sequence[Path],
    labels: Sequence[str],
    name: str,
    source: SourceSection,
    findings: list[Finding],
) -> list[Part]:
    """Open files in order; where some cannot be used, tell the first and where the others are."""
    parts: list[Part] = []
    errors: list[DataError] = []
    for file, label in zip(files, labels, strict=True):
        try:
            parts.append(_open_file(file, label, name, source, findings))
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        first, others = errors[0], [error.where for error in errors[1:]]
        what = f"{first.what} ({_listed(others)} no better)"
        raise DataError(what, where=first.where, remedy=first.remedy) from first
    if errors:
        raise errors[0]
    return parts


def _open_file(
    file: Path, label: str, name: str, source: SourceSection, findings: list[Finding]
) -> Part:
    kind = _kind_of(label)
    if kind == _TABLE:
        return _open_table((file,), label, name, source)
    content = unpack(file, label) if file.suffix == ".gz" else file
    first = _first_offset(content, label, findings)
    if kind == _TEXT:
        if source.format not in ("auto", "text"):
            raise DataError(
                f"is a plain text, which has no {source.format} rows",
                where=label,
                remedy=f"leave data.sources.{name}.format out, or name other files",
            )
        return TextPart(file, label, content, first)
    index = index_rows(content, label, first)
    if not len(index.spans):
        what, remedy = "holds no rows", "remove it from data.sources, or fill it"
        findings.append(Finding("warning", label, what, remedy))
    return JsonPart(file, label, _form_of_rows(index, label, name, source), index)


def _open_table(files: tuple[Path, ...], label: str, name: str, source: SourceSection) -> Part:
    # pyarrow takes a fifth of a second to import, and most data sets do without.
    from workbench.data.tables import TablePart, column_names, count_rows

    borders = count_rows(files, label)
    columns = column_names(files[0], label) if files else []
    form = recognise(dict.fromkeys(columns)) if source.format == "auto" else source.format
    if form is None:
        stated = ", ".join(repr(column) for column in columns[:_NAMES_SHOWN]) or "none"
        raise DataError(
            f"{_NO_FORM}; its columns are {stated}",
            where=label,
            remedy="rename a column, or name other files under `files`",
        )
    key = KEYS_OF_FORM[form][0]
    if key not in columns:
        stated = ", ".join(repr(column) for column in columns[:_NAMES_SHOWN]) or "none"
        raise DataError(
            f"has no column {key!r} ({form}); its columns are {stated}",
            where=label,
            remedy=f"leave data.sources.{name}.format out, or name other files",
        )
    return TablePart(files, label, form, int(borders[-1]), borders)


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


def _form_of_rows(index: RowIndex, label: str, name: str, source: SourceSection) -> Format:
    """Give the form that the config states, or that of the first row that can be read."""
    if source.format != "auto":
        return source.format
    for number, value, problem in index.read(0, min(len(index.spans), _SEEN_TO_RECOGNISE)):
        if problem is None:
            form = recognise(value)
            if form is not None:
                return form
            raise DataError(
                _why_no_form(value),
                where=index.where(label, number),
                remedy=f"correct the row, or state data.sources.{name}.format",
            )
    # A file of broken lines only is reported line by line, whatever its form would have been.
    return "sharegpt"


def _why_no_form(row: object) -> str:
    if not isinstance(row, dict):
        return f"is {kind_of(row)}, not an object with turns or a text"
    keys = ", ".join(repr(key) for key in list(row)[:_NAMES_SHOWN])
    return f"{_NO_FORM}; its keys are {keys}" if row else "is an empty object"
