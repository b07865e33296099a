"""`workbench control` on supervised jobs: exit statuses, names, tables, and what is asked."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.supervisor.conftest import Supervised, homes, supervised, wait_until
from workbench.cli.control import shortened
from workbench.cli.main import main
from workbench.runs.job_file import JOB_VARIABLE, processes_of
from workbench.runs.registry import entries, registry_folder

__all__ = ["homes", "supervised"]


@pytest.fixture
def training(supervised: Supervised) -> Supervised:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    return supervised


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["control", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_no_jobs_are_an_empty_list(
    capsys: pytest.CaptureFixture[str], homes: dict[str, str]
) -> None:
    assert told(capsys, "list", "--json") == (0, "[]\n", "")
    status, out, err = told(capsys, "list")
    assert (status, out) == (0, "")
    assert "no jobs yet" in err


@pytest.mark.parametrize("verb", ["status", "watch", "save", "stop", "abort", "pause"])
def test_an_unknown_job_exits_3(
    capsys: pytest.CaptureFixture[str], homes: dict[str, str], verb: str
) -> None:
    status, out, err = told(capsys, verb, "nothing")
    assert (status, out) == (3, "")
    assert "no such job" in err


@pytest.mark.parametrize("arguments", [[], ["dance"], ["save"], ["save", "a", "b"]])
def test_a_mistyped_command_exits_2(
    capsys: pytest.CaptureFixture[str], homes: dict[str, str], arguments: list[str]
) -> None:
    status, out, _ = told(capsys, *arguments)
    assert (status, out) == (2, "")


def test_a_list_fits_80_columns_and_tells_state_step_age_and_host(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    status, out, _ = told(capsys, "list")
    assert status == 0
    heading, row = out.splitlines()
    assert heading.split() == ["job", "state", "step", "age", "host"]
    assert row.split()[:3] == [training.job, "training", "0/100"]
    assert max(len(line) for line in out.splitlines()) <= 80
    assert len(shortened("a" * 90 + "-123456", 34)) == 34
    assert shortened("a" * 90 + "-123456", 34).endswith("-123456")


def test_status_tells_what_the_supervisor_says(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    status, out, _ = told(capsys, "status", training.job[:6], "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["job"], facts["state"], facts["max_steps"]) == (training.job, "training", 100)
    assert facts["idle_seconds"] >= 0
    status, out, _ = told(capsys, "status", str(training.run.path))
    assert "training for" in out


def test_commands_answer_with_the_outcome(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    status, out, err = told(capsys, "save", training.job)
    assert status == 0
    assert out.startswith(f"{training.job}: saved {training.run.path}/checkpoints/checkpoint-1 ")
    assert "accepted as command 1, next step" in err
    status, out, _ = told(capsys, "pause", training.job, "--json")
    assert (status, json.loads(out)["result"]["paused"]) == (0, True)
    status, out, err = told(capsys, "resume", training.job)
    assert (status, "goes on at step" in out) == (0, True)


def test_a_command_that_fails_exits_1_and_a_refused_one_4(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    status, out, err = told(capsys, "evaluate", training.job)
    assert (status, out) == (1, "")
    assert "no rows" in err
    status, out, err = told(capsys, "resume", training.job, "--json")
    assert status == 4
    assert json.loads(out)["reason"] == "not_paused"


def test_a_stop_is_answered_with_the_end_and_later_commands_are_refused(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    status, out, _ = told(capsys, "stop", training.job, "--no-save")
    assert (status, "stopped at step 1" in out) == (0, True)
    training.ended()
    status, out, err = told(capsys, "stop", training.job)
    assert (status, out) == (4, "")
    assert "ended: stopped" in err
    status, out, _ = told(capsys, "status", training.job)
    assert (status, "stopped for" in out) == (0, True)
    assert told(capsys, "watch", training.job)[0] == 0


def test_an_abort_nobody_confirms_aborts_nothing(
    capsys: pytest.CaptureFixture[str], training: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        status, _, err = told(capsys, "abort", training.job)
    assert status == 4
    assert "--force" in err
    assert told(capsys, "status", training.job)[0] == 0
    status, out, _ = told(capsys, "abort", "--force", training.job)
    assert (status, "aborted" in out) == (0, True)
    assert training.ended()[1].state == "aborted"


def test_watch_ends_with_the_jobs_own_status(
    capsys: pytest.CaptureFixture[str], supervised: Supervised
) -> None:
    supervised.start("connect", "step=3", "fail=data", "exit=1")
    supervised.ended()
    status, out, _ = told(capsys, "watch", supervised.job)
    assert status == 1
    lines = out.splitlines()
    assert lines[0].endswith("starting")
    assert "failed: rank 0: it went wrong" in lines[-1]
    status, out, _ = told(capsys, "watch", supervised.job, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record.get("event") for record in records[:-1]] == ["state", "state", "exit"]
    assert records[-1]["reason"] == "data"


def test_a_frozen_supervisor_is_told_apart_from_a_lost_one(
    capsys: pytest.CaptureFixture[str], training: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.cli.control._STATUS_SECONDS", 0.2)
    assert training.process is not None
    training.process.send_signal(signal.SIGSTOP)
    try:
        status, out, err = told(capsys, "status", training.job)
    finally:
        training.process.send_signal(signal.SIGCONT)
    assert status == 3
    assert "training for" in out
    assert "does not answer" in err


def test_cleanup_ends_what_a_lost_job_left_and_keeps_the_rest(
    capsys: pytest.CaptureFixture[str], supervised: Supervised
) -> None:
    supervised.start("connect", "orphan", "serve")
    supervised.wait_for_state("training")
    assert supervised.process is not None
    supervised.process.kill()
    supervised.process.wait()
    wait_until((supervised.run.path / "lost_supervisor").exists, "the rank's own end")
    left = processes_of(supervised.job)
    assert len(left) >= 1, "the orphan should be left"
    address = Path(supervised.job_file.socket)
    assert address.exists()
    other = registry_folder() / "other-1-abcdef.json"
    elsewhere = json.loads((registry_folder() / f"{supervised.job}.json").read_text())
    other.write_text(json.dumps(elsewhere | {"job": "other-1-abcdef", "host": "elsewhere"}))
    (registry_folder() / "garbage.json").write_text("{")

    status, out, _ = told(capsys, "cleanup", "--dry-run", "--json")
    planned = {each["job"]: each["action"] for each in json.loads(out)}
    assert (status, planned) == (0, {supervised.job: "end and drop", "other-1-abcdef": "keep"})
    assert set(left) >= set(processes_of(supervised.job)) != set()

    status, out, _ = told(capsys, "cleanup")
    assert (status, f"{supervised.job}: lost" in out) == (0, True)
    assert processes_of(supervised.job) == []
    outcome = json.loads(supervised.run.outcome.read_text())
    assert (outcome["state"], outcome["attempt"]) == ("lost", 1)
    assert supervised.events()[-1]["state"] == "lost"
    assert [entry.job for entry in entries()] == ["other-1-abcdef"]
    assert (registry_folder() / "garbage.json").exists()
    assert supervised.run.command.exists()
    assert not address.exists()


def test_a_job_whose_run_folder_is_gone_has_no_age(
    capsys: pytest.CaptureFixture[str], supervised: Supervised
) -> None:
    supervised.start("connect", "exit=0")
    supervised.ended()
    shutil.rmtree(supervised.run.path)
    _, out, _ = told(capsys, "list")
    assert out.splitlines()[1].split()[3] == "-"
    _, out, _ = told(capsys, "list", "--json")
    assert [(each["state"], each["started"]) for each in json.loads(out)] == [("lost", None)]
    _, out, _ = told(capsys, "status", supervised.job)
    assert "lost; its run folder is gone" in out


def test_cleanup_leaves_a_living_job_alone(
    capsys: pytest.CaptureFixture[str], training: Supervised
) -> None:
    before = processes_of(training.job)
    assert told(capsys, "cleanup")[0] == 0
    assert processes_of(training.job) == before
    assert [entry.job for entry in entries()] == [training.job]
    assert JOB_VARIABLE not in os.environ
