"""Where the commands speak: results on stdout, everything else on stderr. The only ``print``s.

Invariant: what a machine reads (``--json``, shown configs, records) is alone on stdout.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from workbench.errors import WorkbenchError


def result(text: str) -> None:
    """Write a line, or lines, of the result."""
    print(text, flush=True)


def result_json(value: object) -> None:
    """Write one JSON value as one line of the result; it may hold no NaN."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json), flush=True)


def result_record(record: msgspec.Struct) -> None:
    """Write a record as one line of JSON, as it stands in its file; null stands for NaN."""
    print(msgspec.json.encode(record).decode(), flush=True)


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is no JSON")


def piece(text: str) -> None:
    """Write a part of the result, without ending the line."""
    print(text, end="", flush=True)


def ask(prompt: str) -> str:
    """Read a line from a person, or from a pipe, which is not prompted; EOFError at the end."""
    return input(prompt if sys.stdin.isatty() else "")


def narrate(text: str) -> None:
    """Tell a person what is going on."""
    print(text, file=sys.stderr, flush=True)


def report_error(error: WorkbenchError) -> None:
    """Show a mistake that someone can mend: what, where and what to do, without a traceback."""
    print(error, file=sys.stderr, flush=True)


def usage_error(text: str) -> None:
    """Show what is wrong with the command line."""
    print(f"workbench: {text}", file=sys.stderr, flush=True)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Line up rows of cells, two blanks between columns.

    Args:
        rows: all of equal length.
        right: columns that are set flush right, such as numbers.
    """
    widths = (
        [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    )
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def write_any_character() -> None:
    """Let a terminal without the characters we use show substitutes, in place of a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def stop_writing() -> None:
    """Let nothing more be written to a pipe that nobody reads, at exit neither."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
