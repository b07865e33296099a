"""Tables as parts of a data set: Parquet files, and what the hub's library made of a data set.

Rows are read a few hundred at a time, only the columns that a row's form needs, and become plain
Python. A null in a table is a key that is not there: columns cannot leave a key out.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench.data.formats import KEYS_OF_FORM, Format
from workbench.data.raw_rows import RawRow, hash_files, reading
from workbench.errors import DataError

_ROWS_AT_ONCE = 256
_PARQUET_MARK = b"PAR1"
_TURNS = ("conversations", "messages")


@dataclass(frozen=True, eq=False)
class TablePart:
    """The rows of one table, which may lie in several files.

    Attributes:
        files: in the order of their rows.
        label: its name as complaints show it.
        form: of its rows.
        num_rows: how many all files hold.
        borders: (files + 1,) int64, the number of each file's first row, then ``num_rows``.
    """

    files: tuple[Path, ...]
    label: str
    form: Format
    num_rows: int
    borders: NDArray[np.int64]

    def fingerprint(self) -> str:
        """Give the sha256 of the files' content."""
        return hash_files(list(self.files))

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read rows ``start`` to before ``stop``, a few hundred at a time."""
        for number, file in enumerate(self.files):
            first, end = int(self.borders[number]), int(self.borders[number + 1])
            begin, limit = max(start, first), min(stop, end)
            if begin >= limit:
                continue
            values = _read(file, begin - first, limit - first, KEYS_OF_FORM[self.form], self.label)
            for index, (value, problem) in enumerate(values, start=begin):
                yield RawRow(file, self.where(index), value, problem)

    def where(self, index: int) -> str:
        """Give the table's name with the row's number."""
        return f"{self.label} row {index + 1:,}"


def count_rows(files: Sequence[Path], label: str) -> NDArray[np.int64]:
    """Give the ``borders`` of a table.

    Raises:
        DataError: a file cannot be read or is no table.
    """
    counts = [_num_rows(file, label) for file in files]
    return np.cumsum([0, *counts], dtype=np.int64)


def column_names(file: Path, label: str) -> list[str]:
    """Name the columns of a table's file.

    Raises:
        DataError: it cannot be read or is no table.
    """
    with _readable(file, label):
        if file.suffix == ".parquet":
            return list(pq.read_schema(file).names)
        return list(_stream(file).schema.names)


def _num_rows(file: Path, label: str) -> int:
    with _readable(file, label):
        if file.suffix == ".parquet":
            _check_marks(file, label)
            return int(pq.read_metadata(file).num_rows)
        return sum(batch.num_rows for batch in _stream(file))


def _check_marks(file: Path, label: str) -> None:
    with file.open("rb") as opened:
        begin = opened.read(len(_PARQUET_MARK))
        opened.seek(max(0, file.stat().st_size - len(_PARQUET_MARK)))
        if begin != _PARQUET_MARK or opened.read() != _PARQUET_MARK:
            raise DataError(
                "does not begin and end as a Parquet file does",
                where=label,
                remedy="fetch or write it anew",
            )


def _stream(file: Path) -> Any:  # noqa: ANN401  pyarrow has no types
    return pa.ipc.open_stream(pa.memory_map(str(file)))


def _read(
    file: Path, start: int, stop: int, keys: Sequence[str], label: str
) -> Iterator[tuple[object, str | None]]:
    """Give value and problem of the rows ``start`` to before ``stop`` of one file."""
    with _readable(file, label):
        for skipped, batch in _batches(file, start, stop, keys):
            first, end = max(start - skipped, 0), min(stop - skipped, batch.num_rows)
            for begin in range(first, end, _ROWS_AT_ONCE):
                piece = batch.slice(begin, min(_ROWS_AT_ONCE, end - begin))
                try:
                    yield from [(row, None) for row in _rows_of(piece)]
                except UnicodeDecodeError:
                    yield from (_one(piece.slice(row, 1)) for row in range(piece.num_rows))


def _one(piece: Any) -> tuple[object, str | None]:  # noqa: ANN401  pyarrow has no types
    try:
        return _rows_of(piece)[0], None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8: byte 0x{error.object[error.start]:02x}"


def _batches(file: Path, start: int, stop: int, keys: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Give batches that hold the rows, each with the number of rows before it."""
    skipped = 0
    if file.suffix != ".parquet":
        for batch in _stream(file):
            if skipped < stop and skipped + batch.num_rows > start:
                yield skipped, batch.select([name for name in batch.schema.names if name in keys])
            skipped += batch.num_rows
        return
    with pq.ParquetFile(file, memory_map=True) as table:
        columns = [name for name in table.schema_arrow.names if name in keys]
        for group in range(table.num_row_groups):
            num_rows = table.metadata.row_group(group).num_rows
            if skipped < stop and skipped + num_rows > start:
                before = skipped
                for batch in table.iter_batches(_ROWS_AT_ONCE, [group], columns=columns):
                    yield before, batch
                    before += batch.num_rows
            skipped += num_rows


def _rows_of(piece: Any) -> list[dict[str, Any]]:  # noqa: ANN401  pyarrow has no types
    """Give rows as JSON would hold them: without nulls, and turns as a list of objects."""
    as_json = {field.name: field.type for field in piece.schema if _holds_json(field.type)}
    rows = []
    for row in piece.to_pylist():
        for name, kind in as_json.items():
            row[name] = _decoded(row[name], kind)
        rows.append(
            {
                key: _as_list(_without_nulls(value)) if key in _TURNS else _without_nulls(value)
                for key, value in row.items()
                if value is not None
            }
        )
    return rows


def _holds_json(kind: Any) -> bool:  # noqa: ANN401  pyarrow has no types
    """Say whether values are JSON as text: what ``datasets`` makes of columns of mixed types."""
    if getattr(kind, "extension_name", None) == "arrow.json":
        return True
    if pa.types.is_struct(kind):
        return any(_holds_json(field.type) for field in kind)
    return _is_list(kind) and _holds_json(kind.value_type)


def _is_list(kind: Any) -> bool:  # noqa: ANN401  pyarrow has no types
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )


def _decoded(value: Any, kind: Any) -> Any:  # noqa: ANN401  any JSON value
    if value is None or not _holds_json(kind):
        return value
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if _is_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    return json.loads(value)


def _without_nulls(value: Any) -> Any:  # noqa: ANN401  any JSON value
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _as_list(turns: Any) -> Any:  # noqa: ANN401  any JSON value
    """Turn an object of lists, as the hub's older data sets hold turns, into a list of objects."""
    if not isinstance(turns, dict) or not turns:
        return turns
    columns = list(turns.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return turns
    return [dict(zip(turns, values, strict=True)) for values in zip(*columns, strict=True)]


@contextmanager
def _readable(file: Path, label: str) -> Iterator[None]:
    """Turn a refusal to read a table into an error that names it."""
    try:
        with reading(file):
            yield
    except (pa.ArrowException, EOFError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"is no readable table: {said}", where=label, remedy="fetch or write it anew"
        ) from error
