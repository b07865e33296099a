"""Short workers: children that print newline-delimited JSON and end when their stdin closes.

Knows how to start one and read what it says, nothing of what it does. Invariant: however the caller
leaves, the worker's stdin is closed and the worker is gone.
"""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from workbench.errors import RunError

_COMPLAINTS = ("finding", "refused")
_LAST_STDERR_BYTES = 4000
_END_SECONDS = 10.0
_SILENT_SECONDS = 0.25
_READ_BYTES = 1 << 20


def run_worker(
    module: str, arguments: Sequence[str], request: object
) -> Generator[dict[str, Any] | None, None, None]:
    """Start ``python -m MODULE ARGUMENTS``, send it one JSON line, give each record it prints.

    Args:
        module: a package of the worker side.
        arguments: behind the module.
        request: what its first line of stdin says.

    Yields:
        Records; None four times a second while there is none, so that whoever waits for a slow
        worker can leave.

    Raises:
        RunError: it died or left without its last record, printed something that is no record, or
            stayed after its last line.
    """
    # A file, not a pipe: nobody reads it before the end, and a full pipe would hold the worker up.
    diagnostics = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, with the rest
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=diagnostics,
        # Ctrl-C in the terminal is for us; the worker ends when its stdin closes.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    where = f"python -m {module} {' '.join(arguments)}".rstrip()
    is_done = has_complained = False
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
        for line in _lines(process.stdout.fileno()):
            if line is None:
                yield None
                continue
            try:
                record = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RunError(
                    f"printed a line that is no record: {line[:200]!r}",
                    where=where,
                    remedy="run it by hand to see more",
                ) from error
            is_done = is_done or record.get("type") == "done"
            has_complained = has_complained or record.get("type") in _COMPLAINTS
            yield record
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            status = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RunError(
                "does not end", where=where, remedy="run it by hand to see more"
            ) from error
        # Nothing but a last record, or a complaint with its status, says that the work was done.
        if not is_done and not (has_complained and status == 2):
            diagnostics.seek(0)
            said = diagnostics.read()[-_LAST_STDERR_BYTES:].decode("utf-8", errors="replace")
            last = said.strip().rsplit("\n", 1)[-1]
            raise _died(status, last, where)
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
        diagnostics.close()


def _died(status: int, last_words: str, where: str) -> RunError:
    """Say how a worker ended that should not have, by signal or by its own status."""
    said = f": {last_words}" if last_words else " without a word"
    if status < 0:
        return RunError(
            f"was ended by signal {-status} ({signal.strsignal(-status)}){said}",
            where=where,
            remedy="look whether memory ran out, and start it again",
        )
    return RunError(
        f"ended with status {status}{said}", where=where, remedy="run it by hand to see more"
    )


def _lines(descriptor: int) -> Iterator[bytes | None]:
    """Give the lines of a pipe to its end, None where none comes for a while."""
    rest = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(_SILENT_SECONDS):
                yield None
                continue
            content = os.read(descriptor, _READ_BYTES)
            if not content:
                break
            rest += content
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield bytes(line)
    if rest:
        yield bytes(rest)
