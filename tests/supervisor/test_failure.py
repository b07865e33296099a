"""Which rank failed first and why, and that torchrun's own words never take its place."""

import json
import sys
from pathlib import Path

import pytest

from tests.supervisor.conftest import Supervised
from workbench.control.messages import Leaving
from workbench.supervisor.failure import classify, find_cause, gather, last_lines

SUMMARY = """\
[default0]:step 3
E1122 19:29:49 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=====================================================
workbench.training FAILED
-----------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_19:29:50
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 9431)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
-----------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_19:29:49
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 9430)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 9430
=====================================================
"""


def error_file(ranks: Path, rank: int, when: int, message: str) -> None:
    folder = ranks / "id_x" / "attempt_0" / str(rank)
    folder.mkdir(parents=True)
    extra = {"py_callstack": f"Traceback of {rank}", "timestamp": str(when)}
    content = {"message": {"message": message, "extraInfo": extra}}
    (folder / "error.json").write_text(json.dumps(content))


def evidence_of(tmp_path: Path, log: str = SUMMARY, code: int = 1, begin: int = 0):  # noqa: ANN201
    (tmp_path / "log.txt").write_text(log)
    return gather(sorted((tmp_path / "ranks").glob("*")), tmp_path / "log.txt", begin, code)


def test_the_earliest_error_file_is_the_cause(tmp_path: Path) -> None:
    error_file(tmp_path / "ranks", 0, 200, "DistNetworkError: Connection closed by peer")
    error_file(tmp_path / "ranks", 1, 100, "ValueError: row 3 is bad")
    leaving = Leaving(state="failed", step=3, reason="communication", message="rank 1 went away")
    failure = find_cause(evidence_of(tmp_path), leaving)
    assert (failure.reason, failure.message) == ("internal", "rank 1: ValueError: row 3 is bad")
    assert failure.first_error.rank == 1
    assert failure.first_error.traceback == "Traceback of 1"


def test_rank_0s_own_words_count_where_it_failed_first(tmp_path: Path) -> None:
    error_file(tmp_path / "ranks", 0, 100, "RunError: long text")
    leaving = Leaving(
        state="failed", step=3, reason="no_space", message="needs 14 GB", remedy="free space"
    )
    failure = find_cause(evidence_of(tmp_path), leaving)
    assert (failure.reason, failure.message) == ("no_space", "rank 0: needs 14 GB")
    assert failure.first_error.remedy == "free space"
    assert failure.first_error.traceback == "Traceback of 0"


def test_a_rank_that_was_killed_is_named_with_its_signal(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    assert evidence.exit_codes == {"0": 1, "1": -9}
    failure = find_cause(evidence, None)
    assert (failure.reason, failure.message) == ("rank_died", "rank 1 was killed by SIGKILL")
    assert "dmesg" in failure.first_error.remedy


def test_what_an_earlier_attempt_left_in_the_log_is_not_read(tmp_path: Path) -> None:
    log = SUMMARY + "run.py: error: unrecognized arguments: --nonsense\n"
    failure = find_cause(evidence_of(tmp_path, log, code=2, begin=len(SUMMARY)), None)
    assert failure.reason == "config"
    assert "--nonsense" in failure.message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"message": 3}', '{"message": {}}', "x" * 100])
def test_a_damaged_error_file_hides_nothing(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "ranks" / "id_x" / "attempt_0" / "1"
    folder.mkdir(parents=True)
    (folder / "error.json").write_text(content)
    assert find_cause(evidence_of(tmp_path), None).message == "rank 1 was killed by SIGKILL"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out_of_memory"),
        ("OSError: [Errno 28] No space left on device", "no_space"),
        ("workbench.errors.ConfigError: config.yaml: no such key", "config"),
        ("DataError: rows.jsonl:3: is not JSON", "data"),
        ("RuntimeError: [rank1] NCCL error: unhandled system error", "communication"),
        ("RuntimeError: Gloo connectFullMesh failed", "communication"),
        ("ZeroDivisionError: division by zero", "internal"),
    ],
)
def test_known_messages_stand_for_reasons(message: str, reason: str) -> None:
    assert classify(message) == reason


def test_the_last_lines_of_a_rank_are_its_own() -> None:
    log = "[default0]:a\n[default1]:b\ntorchrun says\n[default0]:c\n"
    assert last_lines(log, 0) == "a\nc"
    assert last_lines(log, 1) == "b"


@pytest.mark.end_to_end
def test_under_torchrun_the_rank_that_fails_first_is_named_and_its_mates_end(
    supervised: Supervised,
) -> None:
    program = supervised.run.path.parent / "two_ranks.py"
    program.write_text(
        "import os, time\n"
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "@record\n"
        "def main():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('CUDA out of memory: tried 2 GiB')\n"
        "    time.sleep(600)\n"
        "main()\n"
    )
    supervised.start(
        arguments=[
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--tee", "3", "--log-dir", str(supervised.run.ranks), str(program),
        ]
    )  # fmt: skip
    status, outcome = supervised.ended(90)
    assert (status, outcome.state, outcome.reason) == (1, "failed", "out_of_memory")
    assert outcome.message == "rank 1: RuntimeError: CUDA out of memory: tried 2 GiB"
    assert outcome.exit_codes["1"] == 1
    assert outcome.first_error is not None
    assert "in main" in outcome.first_error.traceback
    assert "ChildFailedError" not in outcome.first_error.traceback
