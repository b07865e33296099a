"""Where the commands speak: results on stdout, everything else on stderr. The only ``print``s.

Invariant: what a machine reads (``--json``, shown configs, records) is alone on stdout.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from workbench.errors import WorkbenchError


def result(text: str) -> None:
    """Write a line, or lines, of the result."""
    piece(f"{text}\n")


def result_json(value: object) -> None:
    """Write one JSON value as one line of the result; it may hold no NaN."""
    result(as_json(value))


def as_json(value: object) -> str:
    """Give a value as one line of JSON; it may hold no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)


def result_record(record: msgspec.Struct) -> None:
    """Write a record as one line of JSON, as it stands in its file; null stands for NaN."""
    result(msgspec.json.encode(record).decode())


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is no JSON")


def piece(text: str) -> None:
    """Write a part of the result, without ending the line.

    Raises:
        BrokenPipeError: nobody reads any more.
        WorkbenchError: stdout takes nothing more, such as a file on a full disk.
    """
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        stop_writing()
        raise WorkbenchError(
            f"cannot be written: {error.strerror}",
            where="stdout",
            remedy="free space, or let it go elsewhere",
        ) from error


def ask(prompt: str) -> str:
    """Read a line from a person, or from a pipe, which is not prompted; EOFError at the end."""
    return input(prompt if sys.stdin.isatty() else "")


def narrate(text: str) -> None:
    """Tell a person what is going on; where nobody reads, that stops nothing."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        stop_writing(sys.stderr)


def passing(text: str) -> None:
    """Show a line on the terminal that the next one takes the place of; "" takes it away.

    Nothing is shown where stderr is no terminal.
    """
    if not is_watched():
        return
    width = shutil.get_terminal_size().columns - 1
    try:
        print(f"\r\x1b[2K{text[:width]}", end="", file=sys.stderr, flush=True)
    except OSError:
        stop_writing(sys.stderr)


def is_watched() -> bool:
    """A person sees stderr on a terminal."""
    return sys.stderr.isatty()


def report_error(error: WorkbenchError) -> None:
    """Show a mistake that someone can mend: what, where and what to do, without a traceback."""
    narrate(str(error))


def usage_error(text: str) -> None:
    """Show what is wrong with the command line."""
    narrate(f"workbench: {text}")


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


def open_missing_streams() -> None:
    """Let a program that was started without stdin, stdout or stderr have an empty one.

    Otherwise the next file that is opened would become it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def stop_writing(stream: TextIO | None = None) -> None:
    """Let nothing more be written to stdout (or another) that takes nothing, at exit neither."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)
