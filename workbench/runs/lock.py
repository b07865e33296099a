"""The lock of a run folder: one job at a time, let go by the kernel when its holder dies."""

import fcntl
import os
from pathlib import Path


class RunLock:
    """An exclusive hold on one run folder until ``release`` or the end of this process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; the file stays, so that all who come later lock the same one."""
        os.close(self._descriptor)


def take_lock(path: Path) -> RunLock | None:
    """Take the lock at once, or give None while somebody holds it.

    Children do not inherit it: the lock says that the supervisor lives, nothing else.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return RunLock(descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock; a missing file is not locked, and none is made."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
