"""A short worker says what it found, and is gone however its caller leaves."""

import os
from pathlib import Path

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
elif what == "babble":
    print("hello")
elif what == "linger":
    sys.stdin.read()
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


def test_every_record_is_given_in_order() -> None:
    records = list(run_worker("short_worker_of_a_test", [], {"do": "work", "rows": 3}))
    assert [record["type"] for record in records] == ["progress", "done"]
    assert records[1]["counts"] == {"rows": 3}
    assert not is_running(records[0]["pid"])


def test_a_worker_that_dies_is_a_mistake_with_its_last_words() -> None:
    with pytest.raises(RunError, match="ended with status 3: ImportError: no such thing"):
        list(run_worker("short_worker_of_a_test", [], {"do": "die"}))


def test_a_line_that_is_no_record_is_a_mistake() -> None:
    with pytest.raises(RunError, match="no record"):
        list(run_worker("short_worker_of_a_test", [], {"do": "babble"}))


def test_a_caller_that_leaves_leaves_no_worker_behind() -> None:
    worker = run_worker("short_worker_of_a_test", [], {"do": "linger"})
    pid = next(worker)["pid"]
    assert is_running(pid)
    worker.close()
    assert not is_running(pid)
