"""A supervisor from start to outcome, with scripted ranks."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.conftest import Supervised, wait_until
from workbench.runs.job_file import new_job_id, processes_of, start_time_of, this_host
from workbench.runs.registry import entries, liveness


def test_a_run_that_finishes_leaves_an_outcome_and_no_socket(supervised: Supervised) -> None:
    supervised.start("connect", "step=7", "finish")
    status, outcome = supervised.ended()
    assert (status, outcome.state, outcome.step, outcome.attempt) == (0, "finished", 7, 1)
    told = [(event["event"], event["state"]) for event in supervised.events()]
    assert told == [("state", "starting"), ("state", "training"), ("exit", "finished")]
    assert not Path(supervised.job_file.socket).exists()
    assert processes_of(supervised.job) == []
    assert [liveness(entry) for entry in entries()] == ["ended"]


def test_job_file_and_registry_name_the_living_supervisor(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    with supervised.connect():
        assert supervised.process is not None
        job_file = supervised.job_file
        assert job_file.pid == supervised.process.pid
        assert job_file.start_time == start_time_of(job_file.pid)
        assert (job_file.job, job_file.host, job_file.attempt) == (supervised.job, this_host(), 1)
        assert stat.S_IMODE(Path(job_file.socket).stat().st_mode) == 0o600
        (entry,) = entries()
        assert (entry.job, entry.run) == (supervised.job, str(supervised.run.path))
        assert liveness(entry) == "alive"


def test_a_second_supervisor_in_a_running_folder_is_refused(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    with supervised.connect():
        before = supervised.run.job.read_bytes()
        second = subprocess.run(
            [sys.executable, "-m", "workbench.supervisor", str(supervised.run.path)],
            env=os.environ | supervised.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 4
        assert f"job {supervised.job} is running in this folder" in second.stderr
        assert supervised.run.job.read_bytes() == before


def test_a_later_start_is_the_next_attempt_and_forgets_the_earlier_outcome(
    supervised: Supervised,
) -> None:
    supervised.start("connect", "fail=data")
    assert supervised.ended()[1].state == "failed"
    supervised.job = new_job_id("run")
    supervised.start("connect", "serve")
    with supervised.connect() as viewer:
        assert not supervised.run.outcome.exists()
        assert viewer.ask(type="status", id=1)["attempt"] == 2
    supervised.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    status, outcome = supervised.ended()
    assert (status, outcome.state, outcome.attempt) == (0, "stopped", 2)


@pytest.mark.parametrize(
    ("actions", "reason", "message"),
    [
        (("connect", "fail=no_space", "exit=1"), "no_space", "rank 0: it went wrong"),
        (("connect", "step=3", "exit=3"), "internal", "torchrun ended with exit status 3"),
        (("connect", "kill=SIGKILL"), "rank_died", "torchrun was killed by SIGKILL"),
        (("print=RuntimeError: CUDA out of memory", "exit=1"), "out_of_memory", "out of memory"),
    ],
)
def test_a_failure_names_its_cause(
    supervised: Supervised, actions: tuple[str, ...], reason: str, message: str
) -> None:
    supervised.start(*actions)
    status, outcome = supervised.ended()
    assert (status, outcome.state, outcome.reason) == (1, "failed", reason)
    assert message in outcome.message
    assert outcome.first_error is not None
    assert outcome.first_error.remedy


def test_a_program_that_cannot_be_started_is_a_failure_in_words(supervised: Supervised) -> None:
    supervised.start(arguments=["/nowhere/python"])
    status, outcome = supervised.ended()
    assert (status, outcome.state) == (1, "failed")
    assert "127" in outcome.message


def test_orphans_of_a_dead_rank_are_found_and_ended(supervised: Supervised) -> None:
    supervised.start("connect", "orphan", "step=1", "exit=1")
    _, outcome = supervised.ended()
    assert outcome.state == "failed"
    assert processes_of(supervised.job) == []


def test_sigterm_stops_the_job(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    supervised.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    status, outcome = supervised.ended()
    assert (status, outcome.state) == (0, "stopped")
    commands = [event for event in supervised.events() if event["event"] == "command"]
    assert [(event["name"], event["phase"]) for event in commands] == [
        ("stop", "accepted"),
        ("stop", "done"),
    ]


def test_the_rank_learns_of_the_death_of_its_supervisor(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    supervised.process.kill()  # type: ignore[union-attr]
    wait_until((supervised.run.path / "lost_supervisor").exists, "the rank's own end")
    wait_until(lambda: not processes_of(supervised.job), "no process of the job")
    (entry,) = entries()
    assert liveness(entry) == "lost"


def test_a_registry_that_cannot_be_written_is_told_as_a_warning(supervised: Supervised) -> None:
    supervised.environment |= {"XDG_STATE_HOME": "/dev/null"}
    supervised.start("connect", "exit=0")
    supervised.ended()
    (warning,) = [event for event in supervised.events() if event["event"] == "warning"]
    assert "not in the registry" in warning["message"]
    assert str(supervised.run.path) in warning["remedy"]


def test_a_job_ends_at_the_step_of_its_last_record(supervised: Supervised) -> None:
    """Progress comes seldom: what the records say is no older."""
    record = '{"type":"metrics","offset":0,"record":{"step":9}}'
    supervised.start("connect", "step=7", f"raw={record}", "kill=SIGKILL")
    assert supervised.ended()[1].step == 9


def test_a_supervisor_stays_small(supervised: Supervised) -> None:
    """About 20 MiB are its own; the rest of the limit is for pages of a larger libc."""
    supervised.start("connect", "serve")
    with supervised.connect():
        status = Path(f"/proc/{supervised.job_file.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
        assert int(line.split()[1]) < 32 << 10
