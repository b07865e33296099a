"""What happened, on disk before it is news: events.jsonl, and the news of all three files.

Knows viewers only as somebody to whom news can be offered. Invariant: news may be dropped for a
slow viewer, and no record is told that is not in its file.
"""

import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from workbench.control.messages import Event, FromSupervisor, Log, Topic
from workbench.runs.events import AnyEvent
from workbench.runs.json_lines import LineWriter
from workbench.runs.layout import RunFolder

logger = logging.getLogger(__name__)

LARGEST_LOG_BYTES = 128 << 10
"""Of one message: control characters grow sixfold in JSON, and a line holds 1 MiB."""


class Listener(Protocol):
    """A viewer that may have subscribed."""

    def offer(self, topic: Topic, news: FromSupervisor) -> None:
        """Send news of a topic unless the viewer did not ask for it, or is slow."""


class Recorder:
    """Writes events.jsonl and tells viewers what was written to the run's files."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._events = LineWriter(run.events)
        self._log_offset = file_size(run, "log")
        self.log_begin = self._log_offset

    def record(self, event: AnyEvent, listeners: Iterable[Listener]) -> None:
        """Append an event, then tell it."""
        try:
            offset = self._events.append(event)
        except OSError as error:
            # The job must outlive a full disk: the event is lost, and said in supervisor.log.
            logger.error("cannot write %s: %s: %s", self._run.events, error, event)
            return
        news = Event(offset=offset, record=msgspec.to_builtins(event))
        for listener in listeners:
            listener.offer("events", news)

    def tell_log(self, listeners: Iterable[Listener]) -> None:
        """Tell what log.txt has grown by since the last call, whole lines only."""
        size = file_size(self._run, "log")
        if size <= self._log_offset:
            return
        # Whoever listens late or slowly reads the file: only the newest lines are news.
        begin = max(self._log_offset, size - LARGEST_LOG_BYTES)
        try:
            with self._run.log.open("rb") as file:
                file.seek(begin)
                data = file.read(size - begin)
        except OSError:
            # Somebody took it away; the job goes on without it.
            return
        if begin > self._log_offset:
            skipped = data.find(b"\n") + 1
            begin, data = begin + skipped, data[skipped:]
        whole = data.rfind(b"\n") + 1
        if whole == 0:
            return
        self._log_offset = begin + whole
        news = Log(offset=begin, text=text_of_same_length(data[:whole]))
        for listener in listeners:
            listener.offer("log", news)

    def close(self) -> None:
        """Close events.jsonl."""
        self._events.close()


def file_size(run: RunFolder, topic: Topic) -> int:
    """Give the size of the file behind a topic, 0 while there is none."""
    path = {"events": run.events, "metrics": run.metrics, "log": run.log}[topic]
    try:
        return path.stat().st_size
    except OSError:
        return 0


def text_of_same_length(data: bytes) -> str:
    """Decode lines of UTF-8 so that the text, encoded again, has as many bytes.

    In a line that is not UTF-8 each byte beyond ASCII becomes a question mark.
    """
    return "".join(_decoded(line) for line in data.splitlines(keepends=True))


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.translate(_ASCII_OR_QUESTION_MARK).decode("ascii")


_ASCII_OR_QUESTION_MARK = bytes(byte if byte < 128 else ord("?") for byte in range(256))
