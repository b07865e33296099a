"""What the program does to a terminal, seen from outside: a real process in a real pty."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

LIMIT_SECONDS = 30.0


class Terminal:
    """A program in a pseudo-terminal of 100×30."""

    def __init__(self, project: Path, *arguments: str, **environment: str) -> None:
        self._main, other = pty.openpty()
        ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench", "-p", str(project), *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(other)
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        """Read what it draws until a text was in it."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} not within {LIMIT_SECONDS:.0f} s: {self.seen[-2000:]!r}"
            if select.select([self._main], [], [], left)[0]:
                self.seen += os.read(self._main, 65536)

    def read_to_the_end(self) -> None:
        """Read until the process is gone."""
        while True:
            ready = select.select([self._main], [], [], LIMIT_SECONDS)[0]
            assert ready, "it does not end"
            try:
                data = os.read(self._main, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            self.seen += data
        self.process.wait(LIMIT_SECONDS)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._main, keys)

    def modes(self) -> list[object]:
        """What the terminal's driver does with characters: echo, whole lines, signals."""
        return termios.tcgetattr(self._main)[:4]

    def screens(self) -> int:
        """The process that draws, a child of the one that was started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._main)


@contextmanager
def terminal(project: Path, *arguments: str, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(project, *arguments, **environment)
    try:
        yield opened
    finally:
        opened.close()


COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(?:[34]8;[25];|3[0-7]m|4[0-7]m|9[0-7]m|10[0-7]m)")


def test_leaving_gives_the_terminal_back_as_it_was(project: Path) -> None:
    with terminal(project) as opened:
        opened.read_until(b"Detach")
        assert b"\x1b[?1049h" in opened.seen
        assert COLOUR.search(opened.seen)
        opened.press(b"q")
        opened.read_to_the_end()
        assert opened.process.returncode == 0
        for ending in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l"):
            assert ending in opened.seen


def test_no_color_emits_no_colour(project: Path) -> None:
    with terminal(project, NO_COLOR="1") as opened:
        opened.read_until(b"Detach")
        opened.press(b"2")
        opened.read_until(b"No jobs yet")
        found = COLOUR.search(opened.seen)
        assert found is None, opened.seen[max(found.start() - 60, 0) : found.end() + 20]


def test_ascii_emits_nothing_else(project: Path) -> None:
    with terminal(project, "--ascii") as opened:
        opened.read_until(b"Detach")
        assert b"+--" in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", opened.seen)
        assert opened.seen.isascii()


def test_without_a_terminal_it_says_what_to_use_and_exits_with_2(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "-p", str(project)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "need a terminal" in done.stderr
    assert "--batch" in done.stderr
    assert done.stdout == ""


def test_screens_that_are_killed_leave_the_terminal_as_it_was(project: Path) -> None:
    with terminal(project) as opened:
        before = opened.modes()
        opened.read_until(b"Detach")
        assert opened.modes() != before, "the screens take the terminal as it comes"
        opened.seen = b""
        os.kill(opened.screens(), signal.SIGKILL)
        opened.read_to_the_end()
        assert opened.process.returncode == 128 + signal.SIGKILL
        for ending in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?2004l"):
            assert ending in opened.seen
        assert b"ended by SIGKILL" in opened.seen
        assert opened.modes() == before


def test_screens_leave_by_themselves_once_nobody_keeps_the_terminal(project: Path) -> None:
    with terminal(project) as opened:
        before = opened.modes()
        opened.read_until(b"Detach")
        opened.process.send_signal(signal.SIGKILL)
        opened.read_to_the_end()
        assert b"\x1b[?1049l" in opened.seen
        assert opened.modes() == before


def test_a_signal_to_end_reaches_the_screens(project: Path) -> None:
    with terminal(project) as opened:
        opened.read_until(b"Detach")
        opened.process.send_signal(signal.SIGTERM)
        opened.read_to_the_end()
        assert opened.process.returncode == 128 + signal.SIGTERM
        assert b"\x1b[?1049l" in opened.seen


def test_suspending_stops_both_processes_and_coming_back_draws_everything(project: Path) -> None:
    with terminal(project) as opened:
        opened.read_until(b"Detach")
        opened.seen = b""
        opened.press(b"\x1a")
        _, status = os.waitpid(opened.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        opened.read_until(b"\x1b[?1049l")
        opened.seen = b""
        os.killpg(opened.process.pid, signal.SIGCONT)
        opened.read_until(b"Detach")
        opened.read_until(b"CONF")  # the top bar may come in a later piece than the footer
        opened.press(b"q")
        opened.read_to_the_end()
        assert opened.process.returncode == 0


def test_a_config_that_is_not_there_is_refused_before_any_screen(project: Path) -> None:
    with terminal(project, "-t", "small/quik") as opened:
        opened.read_to_the_end()
        assert opened.process.returncode == 2
        assert b"did you mean small/quick" in b" ".join(opened.seen.split())
        assert b"\x1b[?1049h" not in opened.seen


def test_a_config_may_be_named_by_its_path(project: Path) -> None:
    with terminal(project, "-t", str(project / "configs" / "small" / "longer.yaml")) as opened:
        opened.read_until("small/longer · ".encode())  # in the header
        opened.press(b"q")
        opened.read_to_the_end()
