"""A parent that waits beside the screens and gives the terminal back when they cannot.

A program that dies by ``kill -9`` leaves the alternate screen, mouse reports and a hidden cursor
behind; only another process can mend that. Imports nothing but the standard library's small
modules: it comes before the screens. Invariant: whichever of the two dies, the other puts the
terminal right and ends too.
"""

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable
from types import FrameType

# What the screens switch on, switched off: synchronised output, the kitty keyboard, reports of
# mouse, focus, paste and size; then wrapping, plain colours, the cursor and the normal screen.
RESTORE = (
    b"\x1b[?2026l\x1b[<u"
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l"
    b"\x1b[?1004l\x1b[?2004l\x1b[?2048l"
    b"\x1b[?1049l\x1b[?7h\x1b[0m\x1b[?25h\r\n"
)

# Sent to the parent, meant for the screens. The terminal itself sends its signals to both.
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class KeeperLost:
    """The child's view of its parent: tells, once, that the parent is gone."""

    def __init__(self, reading_end: int) -> None:
        self._reading_end = reading_end

    def when_lost(self, act: Callable[[], object]) -> None:
        """Call ``act`` from a thread once the parent has died."""

        def wait() -> None:
            with contextlib.suppress(OSError):
                os.read(self._reading_end, 1)
            act()

        threading.Thread(target=wait, name="terminal keeper", daemon=True).start()


def split() -> KeeperLost | int:
    """Fork: the child gets a ``KeeperLost`` and goes on; the parent gets the exit status, later.

    The parent returns when the child has ended, with its exit status, or 128 + N after signal N,
    and then with the terminal as it was before. It stops and goes on together with the child, so
    that the shell's job control works as if there were one process.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    reading_end, writing_end = os.pipe()
    # A signal between the fork and its handler would end the parent alone: it waits until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        os.close(writing_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return KeeperLost(reading_end)
    os.close(reading_end)
    handlers = {number: signal.signal(number, _forward_to(child)) for number in _FORWARDED}
    # ctrl+z reaches the child as a key; should both get the signal, the child's stop decides.
    handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, _forward_to(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    try:
        status = _wait_for(child)
    finally:
        os.close(writing_end)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if os.WIFSIGNALED(status):
        give_back(descriptor, before)
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def give_back(descriptor: int, before: list[int | list[bytes | int]]) -> None:
    """Undo what the screens did to the terminal, unless a shell has it by now."""
    try:
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            return
    except OSError:
        pass  # no job control on this terminal: no shell can have taken it
    with contextlib.suppress(OSError, termios.error):
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
        os.write(sys.stdout.fileno(), RESTORE)


def _forward_to(child: int) -> Callable[[int, FrameType | None], None]:
    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    return forward


def _wait_for(child: int) -> int:
    """Wait until the child has ended; stop while it is stopped."""
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return status
        # The shell takes the terminal back when the process that it started has stopped; its `fg`
        # wakes the whole group, so the child needs no word from here.
        os.kill(os.getpid(), signal.SIGSTOP)
