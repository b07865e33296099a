"""Runs convert or finalize and dies at one point after the other of what it does to the disk.

Run as ``python -m tests.model.killed_everywhere VERB SOURCE FOLDER``, VERB of convert, finalize,
gguf. A point is each file opened for writing, each fsync, and each name that is made, changed or
removed. A child dies right before its point, and the next one finds what it left. Prints one JSON
line per child; the last one went on to its end. Forked from one process, so that torch is loaded
once.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from workbench.errors import WorkbenchError
from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import convert
from workbench.model.finalize import finalize
from workbench.runs.whole_folder import MARKER, partial_of

NAMES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def hashes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != MARKER
    }


def die_at(point: int, below: Path) -> None:
    """End this process before its point-th change of the disk below a folder; 0: never."""
    seen = 0
    sync = os.fsync

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event in NAMES
        if event == "open":
            flags = arguments[2]
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if writes and str(below) in str(arguments[0]):
            count()

    def fsync(descriptor: int) -> None:
        count()
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def state_of(destination: Path, expected: dict[str, str]) -> str:
    if not destination.exists():
        return "absent"
    found = hashes_of(destination)
    return "whole" if found == expected else "empty" if not found else f"torn: {sorted(found)}"


def verb_of(name: str, source: Path) -> Callable[[Path], object]:
    if name == "convert":
        wish = Wish(dtype=torch.bfloat16)
        return lambda path: convert(plan_conversion(source, wish), path, 40_000)
    return lambda path: finalize([source], path, gguf="q8_0" if name == "gguf" else None)


def main() -> None:
    torch.set_num_threads(1)
    make = verb_of(sys.argv[1], Path(sys.argv[2]))
    folder = Path(sys.argv[3])
    destination = folder / "made" / "out"
    first = folder / "first" / "out"  # of the same name: it is in a GGUF file
    make(first)  # loads all that is imported late, too
    expected = hashes_of(first)
    for point in range(1, 1000):
        if point % 2:  # an empty folder may be there already
            destination.mkdir(parents=True, exist_ok=True)
        elif destination.exists():
            destination.rmdir()
        child = os.fork()
        if child == 0:
            die_at(point, folder / "made")
            make(destination)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        told = {
            "point": point,
            "killed": os.WIFSIGNALED(status),
            "state": state_of(destination, expected),
            "partial": partial_of(destination).exists(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        if told["state"] == "whole":
            shutil.rmtree(destination)
        if not told["killed"]:
            break
    fill(make, destination, expected)


def fill(make: Callable[[Path], object], destination: Path, expected: dict[str, str]) -> None:
    """Let files grow no larger than so much, as a disk that is full, and see what is left."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (0, 100, 1_000, 10_000, 20_000, 60_000):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                make(destination)
            except WorkbenchError as error:
                os._exit(10 + error.exit_status)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        told = {
            "limit": limit,
            "status": os.waitstatus_to_exitcode(status),
            "state": state_of(destination, expected),
            "partial": partial_of(destination).exists(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        shutil.rmtree(destination, ignore_errors=True)


if __name__ == "__main__":
    main()
