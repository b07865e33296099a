"""Ends what a library has started for a server, once the server is gone, however it went.

vLLM runs a model in processes that outlive the one that started them, and keep its memory: of a
server that was killed they would be left behind. Each inherits a mark in its environment. A guard,
a process of its own, waits until the server's end of a pipe closes and then ends all that bear the
mark. Invariant: a signal goes only to a process that bears it, while a handle on it is held.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_MARK_VARIABLE = "WORKBENCH_SERVER"
_TERMINATION_SECONDS = 5.0
_LOOK_SECONDS = 0.1


def post_guard() -> None:
    """Mark whatever this process starts from now on, and have it ended with this process."""
    mark = secrets.token_hex(8)
    # Its stdin is the pipe; our end of it is inherited by nobody and closes when we end.
    guard = subprocess.Popen(
        [sys.executable, "-m", "workbench.inference.guard", mark],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    # Nobody waits for it: it ends after us.
    guard.returncode = 0
    _guards.append(guard)
    os.environ[_MARK_VARIABLE] = mark


_guards: list["subprocess.Popen[bytes]"] = []


def end_marked(mark: str) -> None:
    """End every process that bears a mark, those that do not end by themselves after a while."""
    for number, seconds in ((signal.SIGTERM, _TERMINATION_SECONDS), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + seconds
        for pid in marked(mark):
            _send(mark, pid, number)
        while any(marked(mark)):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)


def marked(mark: str) -> Iterator[int]:
    """Give the processes that bear a mark."""
    for path in Path("/proc").glob("[0-9]*"):
        if _bears(mark, int(path.name)):
            yield int(path.name)


def _bears(mark: str, pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{_MARK_VARIABLE}={mark}".encode() in environment


def _send(mark: str, pid: int, number: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The handle pins the process: what its environment says now is said of this very one.
        if _bears(mark, pid):
            signal.pidfd_send_signal(handle, number)
    except OSError:
        pass
    finally:
        os.close(handle)


if __name__ == "__main__":
    # Ctrl-C in a terminal is the server's business, and its end is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    end_marked(sys.argv[1])
