"""A short worker says what it found, and is gone however its caller leaves."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import RunError
from workbench.jobs.short_workers import run_worker

WORKER = """
import json, os, sys, time
request = json.loads(sys.stdin.readline())
def say(**record):
    print(json.dumps(record), flush=True)
say(type="progress", pid=os.getpid())
what = request["do"]
if what == "work":
    say(type="done", counts={"rows": request["rows"]})
elif what == "die":
    sys.stderr.write("ImportError: no such thing\\n" * 20000)
    sys.exit(3)
elif what == "be killed":
    os.kill(os.getpid(), 9)
elif what == "babble":
    print("hello")
elif what == "no end":
    print('{"type": "done"}', end="", flush=True)
elif what == "linger":
    sys.stdin.read()
elif what == "complain":
    say(type="finding", severity="error")
    sys.exit(2)
elif what == "leave":
    sys.exit(request["status"])
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short_worker_of_a_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def worker(**request: object) -> Iterator[dict[str, Any] | None]:
    return run_worker("short_worker_of_a_test", [], request)


def first_record(records: Iterator[dict[str, Any] | None]) -> dict[str, Any]:
    return next(record for record in records if record is not None)


def test_every_record_is_given_in_order() -> None:
    records = [record for record in worker(do="work", rows=3) if record is not None]
    assert [record["type"] for record in records] == ["progress", "done"]
    assert records[1]["counts"] == {"rows": 3}
    assert not is_running(records[0]["pid"])


def test_a_worker_that_dies_is_a_mistake_with_its_last_words() -> None:
    with pytest.raises(RunError, match="ended with status 3: ImportError: no such thing"):
        list(worker(do="die"))


def test_a_worker_that_is_killed_is_told_with_the_likely_cause() -> None:
    with pytest.raises(RunError) as caught:
        list(worker(do="be killed"))
    assert caught.value.what == "was ended by signal 9 (Killed) without a word"
    assert caught.value.remedy == "look whether memory ran out, and start it again"


def test_a_line_that_is_no_record_is_a_mistake() -> None:
    with pytest.raises(RunError, match="no record"):
        list(worker(do="babble"))


def test_a_caller_that_leaves_leaves_no_worker_behind() -> None:
    records = worker(do="linger")
    pid = first_record(records)["pid"]
    assert is_running(pid)
    assert isinstance(records, Generator)
    records.close()
    assert not is_running(pid)


def test_a_silent_worker_gives_its_caller_a_chance_to_leave() -> None:
    records = worker(do="linger")
    pid = first_record(records)["pid"]
    assert next(records) is None
    assert isinstance(records, Generator)
    records.close()
    assert not is_running(pid)


def test_a_line_without_an_end_is_a_record_too() -> None:
    assert first_record(worker(do="no end"))["type"] == "progress"
    assert [record for record in worker(do="no end") if record][-1] == {"type": "done"}


def test_a_worker_that_complains_may_leave_without_a_last_record() -> None:
    records = [record for record in worker(do="complain") if record is not None]
    assert [record["type"] for record in records] == ["progress", "finding"]


@pytest.mark.parametrize("status", [0, 2])
def test_a_worker_that_leaves_without_a_word_has_not_done_its_work(status: int) -> None:
    with pytest.raises(RunError, match=f"ended with status {status} without a word"):
        list(worker(do="leave", status=status))
