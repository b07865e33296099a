"""What the socket takes and refuses: strangers, garbage, other versions, slow and rude viewers."""

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from tests.control.viewer import Viewer
from tests.supervisor.conftest import Supervised, wait_until
from workbench.supervisor.server import LineReader, next_line


@pytest.fixture
def serving(supervised: Supervised) -> Supervised:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    return supervised


def address(supervised: Supervised) -> Path:
    return Path(supervised.job_file.socket)


def test_hello_is_answered_with_the_job(serving: Supervised) -> None:
    with serving.connect() as viewer:
        hello = viewer.hello
        assert (hello["role"], hello["protocol"]) == ("supervisor", 1)
        assert (hello["job"], hello["pid"]) == (serving.job, serving.job_file.pid)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'{"type":"dance","id":3}', "dance"),
        (b'{"type":"save","id":3,"urgently":true}', "urgently"),
        (b'{"type":"save"}', "id"),
        (b'{"type":"stop","id":3,"save":"yes"}', "save"),
        (b'{"type":"hello","protocol":1,"role":"viewer","program":"","host":"","pid":1}', "hello"),
        (b"[1, 2]", "array"),
        (b"garbage", "malformed"),
        (b"\xff\xfe", ""),
        (b"", ""),
    ],
)
def test_a_line_that_is_no_message_is_answered_and_the_connection_closes(
    serving: Supervised, line: bytes, named: str
) -> None:
    with serving.connect() as viewer:
        viewer.send_line(line)
        failed = viewer.receive()
        assert (failed["type"], failed["reason"]) == ("failed", "protocol")
        assert named in failed["message"]
        assert failed["id"] == (3 if b'"id":3' in line else None)
        assert viewer.is_closed()
    with serving.connect() as another:
        assert another.ask(type="status", id=1)["state"] == "training"


def test_a_line_over_the_limit_is_refused(serving: Supervised) -> None:
    with serving.connect() as viewer:
        try:
            viewer.send_line(b'{"type":"save","id":' + b"1" * (1 << 21) + b"}")
        except BrokenPipeError:
            pass
        else:
            assert "1,048,576" in viewer.receive()["message"]
    with serving.connect() as another:
        assert another.ask(type="status", id=1)["state"] == "training"


def test_nothing_is_understood_before_hello(serving: Supervised) -> None:
    with Viewer.connect_silently(address(serving)) as viewer:
        viewer.send(type="abort", id=1)
        assert viewer.receive()["reason"] == "protocol"
        assert viewer.is_closed()
    with serving.connect() as another:
        assert another.ask(type="status", id=1)["state"] == "training"


def test_another_protocol_may_ask_status_and_stop_and_nothing_else(serving: Supervised) -> None:
    with Viewer.connect(address(serving), protocol=99) as viewer:
        assert viewer.hello["protocol"] == 1
        assert viewer.ask(type="status", id=1)["state"] == "training"
        assert viewer.ask(type="save", id=2)["reason"] == "protocol"
        assert viewer.ask(type="subscribe", id=3, topics=["log"])["reason"] == "protocol"
        assert viewer.ask(type="stop", id=4)["type"] == "accepted"
    assert serving.ended()[1].state == "stopped"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else for a moment")
def test_another_user_is_not_even_greeted(serving: Supervised) -> None:
    """Both gates opened by hand, folder and socket: the kernel still tells who is there."""
    gate = address(serving)
    for path in (gate.parent.parent, gate.parent, gate):
        path.chmod(0o777)
    os.seteuid(65534)
    try:
        stranger = Viewer.connect_silently(gate)
    finally:
        os.seteuid(0)
    with stranger, pytest.raises(EOFError):
        stranger.receive()
    with serving.connect() as another:
        assert another.ask(type="status", id=1)["state"] == "training"


@pytest.mark.parametrize(
    "hello",
    [
        {"role": "publisher", "job": "other-123456"},
        {"role": "publisher"},
        {"role": "supervisor"},
        {"role": "viewer", "job": "other-123456"},
    ],
)
def test_an_impostor_is_sent_away(serving: Supervised, hello: dict[str, str]) -> None:
    with Viewer.connect(address(serving), **hello) as impostor:
        assert impostor.hello["reason"] == "protocol"
        assert impostor.is_closed()


def test_a_second_publisher_is_sent_away(serving: Supervised) -> None:
    with Viewer.connect(address(serving), role="publisher", job=serving.job) as second:
        assert "connected already" in second.hello["message"]


def test_a_publisher_that_talks_garbage_is_cut_off_and_the_job_ends(
    supervised: Supervised,
) -> None:
    supervised.start("connect", "step=1", "raw=garbage", "read_to_end", "exit=1")
    _, outcome = supervised.ended()
    assert outcome.state == "failed"


def test_subscribers_hear_events_metrics_and_log_at_the_offsets_of_the_files(
    serving: Supervised,
) -> None:
    with serving.connect() as viewer:
        done = viewer.ask(type="subscribe", id=1, topics=["events", "metrics", "log"])
        offsets = done["result"]["offsets"]
        assert offsets["events"] == serving.run.events.stat().st_size
        viewer.send(type="save", id=2)
        event = viewer.receive_until(type="event")
        assert event["offset"] == offsets["events"]
        metrics = viewer.receive_until(type="metrics")
        viewer.receive_until(type="done", id=2)
    for news, path in ((event, serving.run.events), (metrics, serving.run.metrics)):
        line = path.read_bytes()[news["offset"] :].split(b"\n")[0]
        assert json.loads(line) == news["record"]


def test_log_lines_are_news_with_the_bytes_of_the_file(supervised: Supervised) -> None:
    gate = supervised.run.path / "gate"
    supervised.start("connect", "state=loading", f"wait_for={gate}", "print=grüße", "serve")
    supervised.wait_for_state("loading")
    with supervised.connect() as viewer:
        viewer.ask(type="subscribe", id=1, topics=["log"])
        gate.touch()
        news = viewer.receive_until(type="log")
        text = news["text"]
    data = supervised.run.log.read_bytes()
    begin = news["offset"]
    assert data[begin : begin + len(text.encode())] == text.encode()
    assert "grüße" in text


def test_a_viewer_that_never_reads_holds_nobody_up(serving: Supervised) -> None:
    with serving.connect() as deaf, serving.connect() as viewer:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send(type="subscribe", id=1, topics=["events", "metrics", "log"])
        with serving.run.log.open("ab") as log:
            for _ in range(64):
                log.write(b"x" * 1000 + b"\n" * 100)
        for request in range(1, 200):
            assert viewer.ask(type="save", id=request)["type"] == "accepted"
            viewer.receive_until(type="done", id=request)
        assert viewer.ask(type="status", id=1000)["state"] == "training"


def test_viewers_that_come_and_go_change_nothing(serving: Supervised) -> None:
    before = serving.run.events.read_bytes()
    for _ in range(50):
        viewer = serving.connect()
        viewer.send(type="subscribe", id=1, topics=["events"])
        viewer.close()
    with serving.connect() as last:
        assert last.ask(type="status", id=1)["state"] == "training"
    assert serving.run.events.read_bytes() == before


def test_a_viewer_is_told_the_end_before_the_socket_goes(serving: Supervised) -> None:
    with serving.connect() as viewer:
        viewer.ask(type="subscribe", id=1, topics=["events"])
        viewer.ask(type="stop", id=2)
        exit_event = viewer.receive_until(type="event")
        while exit_event["record"]["event"] != "exit":
            exit_event = viewer.receive_until(type="event")
        assert viewer.ask(type="status", id=3)["state"] == "stopped"
        assert address(serving).exists()
    wait_until(lambda: not address(serving).exists(), "the end of the socket")


def test_what_came_before_a_connection_broke_is_read() -> None:
    async def read() -> list[bytes]:
        reader = LineReader(1000)
        reader.feed_data(b"first\nlast\nhalf")
        reader.set_exception(ConnectionResetError())
        return [await next_line(reader) for _ in range(3)]

    assert asyncio.run(read()) == [b"first\n", b"last\n", b""]


def test_a_rank_that_leaves_with_commands_unread_is_heard_to_its_last_word(
    supervised: Supervised,
) -> None:
    gate = supervised.run.path / "gate"
    supervised.start("connect", "step=5", f"wait_for={gate}", "fail=save_failed", "exit=1")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        for number in range(20):
            viewer.send(type="save", id=number)
        viewer.receive_until(type="accepted")
        gate.touch()
        status, outcome = supervised.ended()
    assert (status, outcome.reason) == (1, "save_failed")
