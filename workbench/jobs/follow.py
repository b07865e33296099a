"""What a run's files say, read on from where the last look ended: no socket needed.

Every update carries the byte where its record begins, so that news from a socket can be fitted to
it. Invariant: each whole line is given once, in the order of its file; a line that is no record of
ours is passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from workbench.control.messages import Status, Topic
from workbench.runs.events import AnyEvent
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.runs.outcome import Outcome

LOG_HISTORY_BYTES = 512 << 10
"""Of an old log, how much is read at first; the file itself has all of it."""

_LARGEST_READ_BYTES = 4 << 20
_decode_event = msgspec.json.Decoder(AnyEvent).decode
_decode_metrics = msgspec.json.Decoder(MetricsRecord).decode


@dataclass(frozen=True)
class MetricsUpdate:
    """A metrics record."""

    offset: int
    record: MetricsRecord


@dataclass(frozen=True)
class EventUpdate:
    """A thing that happened."""

    offset: int
    event: AnyEvent


@dataclass(frozen=True)
class LogUpdate:
    """Whole lines of the log, with their newlines."""

    offset: int
    text: str


@dataclass(frozen=True)
class StatusUpdate:
    """What the supervisor says of the job, every other second."""

    status: Status


@dataclass(frozen=True)
class LinkUpdate:
    """The supervisor answers, or does not since ``since`` (epoch seconds) because of ``reason``."""

    connected: bool
    reason: str
    since: float


@dataclass(frozen=True)
class EndedUpdate:
    """How the job ended; the last update. The state lost is a conclusion, not in any file yet."""

    outcome: Outcome


Update = MetricsUpdate | EventUpdate | LogUpdate | StatusUpdate | LinkUpdate | EndedUpdate
FileUpdate = MetricsUpdate | EventUpdate | LogUpdate


class FileReader:
    """Reads a run's three growing files; ``offsets`` are the bytes where the next looks begin."""

    def __init__(self, run: RunFolder, log_history_bytes: int = LOG_HISTORY_BYTES) -> None:
        self._run = run
        self.offsets: dict[Topic, int] = {"events": 0, "metrics": 0, "log": 0}
        self._log_history_bytes = log_history_bytes
        self._has_read_log = False

    def read(self, *topics: Topic) -> Iterator[FileUpdate]:
        """Give everything new in the files of these topics, of all three by default."""
        for topic in topics or ("events", "metrics", "log"):
            if topic == "log":
                yield from self._read_log()
            else:
                yield from self._read_records(topic)

    def _read_records(self, topic: Topic) -> Iterator[FileUpdate]:
        path = self._run.events if topic == "events" else self._run.metrics
        lines, self.offsets[topic] = read_lines(path, self.offsets[topic])
        for line in lines:
            update = decode_record(topic, line.offset, line.content)
            if update is not None:
                yield update

    def _read_log(self) -> Iterator[LogUpdate]:
        while True:
            begin = self.offsets["log"]
            try:
                with self._run.log.open("rb") as file:
                    size = file.seek(0, 2)
                    if size < begin:
                        begin = 0
                    skip_half_a_line = False
                    if not self._has_read_log and size > self._log_history_bytes:
                        begin, skip_half_a_line = size - self._log_history_bytes, True
                    file.seek(begin)
                    data = file.read(_LARGEST_READ_BYTES)
            except OSError:
                return
            self._has_read_log = True
            if skip_half_a_line:
                skipped = data.find(b"\n") + 1
                begin, data = begin + skipped, data[skipped:]
            whole = data.rfind(b"\n") + 1
            if whole == 0 and len(data) == _LARGEST_READ_BYTES:
                whole = len(data)  # a line without end is given in pieces, rather than never
            self.offsets["log"] = begin + whole
            if whole == 0:
                return
            yield LogUpdate(begin, data[:whole].decode("utf-8", errors="replace"))


def decode_record(topic: Topic, offset: int, content: bytes) -> FileUpdate | None:
    """Give the update for a line of events or metrics, None for a line that is no record."""
    try:
        if topic == "events":
            return EventUpdate(offset, _decode_event(content))
        return MetricsUpdate(offset, _decode_metrics(content))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
