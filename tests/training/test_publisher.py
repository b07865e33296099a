import json
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.tiny import tiny_run
from workbench.control.framing import encode
from workbench.control.messages import (
    PROTOCOL_VERSION,
    Evaluate,
    Failed,
    Hello,
    Leaving,
    Message,
    Pause,
    Resume,
    Save,
    Stop,
)
from workbench.errors import ControlError
from workbench.runs.events import decode_event
from workbench.training.control_point import Wish
from workbench.training.loop import Intervals
from workbench.training.publisher import Publisher

JOB = "run-1-abcdef"
SECONDS = 20.0


class Supervisor:
    """The other end of the socket: answers hello, then says and hears whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(SECONDS)
        self._connection: socket.socket | None = None
        self._rest = b""

    def answer_before_hello(self, *messages: Message) -> None:
        """Accept and answer at once: the client reads only after it has written its hello."""
        if self._connection is not None:
            self._connection.close()
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(SECONDS)
        self.say(*messages)

    def say(self, *messages: Message) -> None:
        assert self._connection is not None
        self._connection.sendall(b"".join(encode(message) for message in messages))

    def hear(self) -> Iterator[dict[str, object]]:
        """Every message until the other end closes."""
        assert self._connection is not None
        while True:
            while b"\n" not in self._rest:
                data = self._connection.recv(1 << 16)
                if not data:
                    return
                self._rest += data
            line, self._rest = self._rest.split(b"\n", 1)
            yield json.loads(line)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._listener.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    found = Supervisor(tmp_path / "s.sock")
    yield found
    found.close()


def hello(job: str = JOB) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION, role="supervisor", program="test", host="here", pid=1, job=job
    )


def connect(supervisor: Supervisor, *first: Message) -> tuple[Publisher, "queue.SimpleQueue[Wish]"]:
    """Connect a publisher; the kernel holds the connection until it is accepted."""
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    server = threading.Thread(target=supervisor.answer_before_hello, args=first)
    server.start()
    publisher = Publisher(supervisor.path, JOB, wishes)
    server.join(SECONDS)
    return publisher, wishes


def test_it_says_hello_progress_and_last_words(supervisor: Supervisor) -> None:
    publisher, _ = connect(supervisor, hello())
    publisher.at("training", 3, 10)
    publisher.leave(Leaving(state="finished", step=10))
    heard = list(supervisor.hear())
    assert heard[0]["type"] == "hello"
    assert (heard[0]["role"], heard[0]["job"]) == ("publisher", JOB)
    assert heard[1]["type"] == "progress"
    states = [message["state"] for message in heard if message["type"] == "progress"]
    assert states[-1] == "training"
    assert heard[-1] == {
        "type": "leaving", "state": "finished", "step": 10, "reason": None, "message": "",
        "remedy": "",
    }  # fmt: skip


def test_commands_come_out_in_order_even_those_that_follow_hello_at_once(
    supervisor: Supervisor,
) -> None:
    publisher, wishes = connect(supervisor, hello(), Save(id=1), Evaluate(id=2))
    supervisor.say(Stop(id=3, save=False))
    found = [wishes.get(timeout=SECONDS) for _ in range(3)]
    assert found == [Save(id=1), Evaluate(id=2), Stop(id=3, save=False)]
    publisher.leave(Leaving(state="stopped", step=0))


def test_a_supervisor_that_goes_away_is_one_none_in_the_queue(supervisor: Supervisor) -> None:
    publisher, wishes = connect(supervisor, hello())
    supervisor.close()
    assert wishes.get(timeout=SECONDS) is None
    publisher.at("saving", 1, 2)
    publisher.leave(Leaving(state="stopped", step=1))
    assert wishes.empty()


def test_another_job_or_no_supervisor_is_refused(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="it answered"):
        connect(supervisor, hello("other-1-abcdef"))
    with pytest.raises(ControlError, match="cannot be reached"):
        Publisher(str(tmp_path / "nobody.sock"), JOB, queue.SimpleQueue())
    protocol = Failed(reason="protocol", message="no", remedy="")
    with pytest.raises(ControlError, match="cannot be reached"):
        connect(supervisor, protocol)


def test_a_steered_run_answers_every_command_and_tells_what_it_does(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    commands = [Save(id=1), Evaluate(id=2), Pause(id=3), Save(id=4), Resume(id=5), Resume(id=6)]
    publisher, wishes = connect(supervisor, hello())
    for command in commands:
        wishes.put(command)
    intervals = Intervals(
        log=2, evaluate=3, max_evaluation_batches=None, save=3, save_at_end=True, keep=3
    )
    run = tiny_run(
        tmp_path / "run", max_steps=5, intervals=intervals, publisher=publisher, wishes=wishes
    )
    ending = run.train()
    publisher.leave(Leaving(state=ending.state, step=ending.step))
    heard = list(supervisor.hear())

    done = {message["id"]: message["result"] for message in heard if message["type"] == "done"}
    assert done[2]["kind"] == "evaluated"
    assert done[2]["step"] == 1
    assert done[2]["tokens"] > 0
    for number in (1, 4):
        assert done[number]["kind"] == "saved"
        assert done[number]["path"] == "checkpoints/checkpoint-1"
        assert done[number]["bytes"] > 0
    assert done[3] == {"kind": "held", "step": 1, "paused": True}
    assert done[5] == {"kind": "held", "step": 1, "paused": False}
    assert set(done) == {1, 2, 3, 4, 5, 6}

    metrics = [message for message in heard if message["type"] == "metrics"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert [message["record"]["step"] for message in metrics] == [2, 4, 5], "a pause ends no window"
    for message in metrics:
        line = lines[message["offset"] :].split(b"\n", 1)[0]
        assert json.loads(line) == message["record"]

    events = [
        decode_event(json.dumps(message["record"]).encode())
        for message in heard
        if message["type"] == "event"
    ]
    saved = [event.step for event in events if type(event).__name__ == "CheckpointEvent"]
    assert saved == [1, 3, 5], "two wishes to save at one boundary are one save"
    evaluated = [event.step for event in events if type(event).__name__ == "EvaluationEvent"]
    assert evaluated == [1, 3]

    states = [message["state"] for message in heard if message["type"] == "progress"]
    for state in ("training", "evaluating", "saving", "paused"):
        assert state in states
