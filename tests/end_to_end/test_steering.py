"""A running job under `workbench control`: steer, freeze, kill, lose, tidy up."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.control.viewer import Viewer
from tests.end_to_end.conftest import (
    SMALL,
    Workplace,
    job_of,
    last_step,
    lines_of,
    losses_of,
    outcome_of,
    ranks_of,
    wait_until,
)
from workbench.runs.checkpoints import newest_complete
from workbench.runs.job_file import processes_of
from workbench.runs.layout import RunFolder

pytestmark = pytest.mark.end_to_end

ENDLESS = [
    "--max-steps",
    "100000",
    *SMALL,
    "training.epochs=100000",
    "checkpoints.every_steps=9999",
]


def started(workplace: Workplace, name: str) -> RunFolder:
    ended = workplace.workbench(
        "train", "-t", "demo.yaml", "--output-dir", f"output/{name}", "--detach", *ENDLESS
    )
    run = workplace.run_folder(name)
    assert (ended.status, ended.stdout.strip()) == (0, job_of(run).job), ended.stderr
    wait_until(lambda: last_step(run) > 0, "the first step")
    return run


@pytest.fixture(scope="module")
def steered(workplace: Workplace) -> Iterator[RunFolder]:
    run = started(workplace, "steered")
    yield run
    if not run.outcome.exists():
        workplace.workbench("control", "abort", "--force", "steered")


def result(workplace: Workplace, verb: str, job: str, *more: str) -> dict:
    ended = workplace.workbench("control", verb, job, "--json", *more)
    assert ended.status == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["type"] == "done"
    return answer["result"]


def test_a_job_is_steered_to_its_stop(workplace: Workplace, steered: RunFolder) -> None:
    run, job = steered, job_of(steered).job
    listed = json.loads(workplace.workbench("control", "list", "--json").stdout)
    assert [(each["job"], each["state"]) for each in listed] == [(job, "training")]

    saved = result(workplace, "save", "steered")
    assert (run.path / saved["path"] / "manifest.json").is_file()
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == saved["step"]

    evaluated = result(workplace, "evaluate", job[:-3])
    assert evaluated["loss"] > 0
    assert evaluated["tokens"] > 0

    held = result(workplace, "pause", str(run.path))
    assert held["paused"]
    status = workplace.workbench("control", "status", job, "--json")
    facts = json.loads(status.stdout)
    assert (facts["state"], facts["step"]) == ("paused", held["step"])
    assert facts["max_steps"] == 100000
    assert last_step(run) == held["step"]

    again = workplace.workbench(
        "train", "-t", "demo.yaml", "--output-dir", "output/steered", *ENDLESS
    )
    assert (again.status, again.stdout) == (4, "")
    assert job in again.stderr

    resumed = result(workplace, "resume", job)
    assert not resumed["paused"]
    wait_until(lambda: last_step(run) > held["step"], "a step after the pause")
    refused = workplace.workbench("control", "resume", job)
    assert refused.status == 4
    assert "not paused" in refused.stderr

    watcher = workplace.start("control", "watch", job)
    ended = result(workplace, "stop", job)
    assert ended["state"] == "stopped"
    assert ended["checkpoint"] == f"checkpoints/checkpoint-{ended['step']}"
    assert processes_of(job) in ([], [job_of(run).pid])
    told, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    assert told.strip().splitlines()[-1].endswith(f"step {ended['step']}  stopped")

    late = workplace.workbench("control", "save", job)
    assert (late.status, "stopped" in late.stderr) == (4, True)
    steps = [record["step"] for record in lines_of(run.metrics)]
    assert steps == list(range(1, ended["step"] + 1)), "a step was lost or done twice"


def test_a_frozen_rank_is_shown_as_silent_and_abort_ends_everything(workplace: Workplace) -> None:
    run = started(workplace, "frozen")
    job = job_of(run).job
    (rank,) = ranks_of(run)
    os.kill(rank, signal.SIGSTOP)

    def idle_seconds() -> float:
        answer = workplace.workbench("control", "status", job, "--json")
        assert answer.status == 0, answer.stderr
        return json.loads(answer.stdout)["idle_seconds"]

    wait_until(lambda: idle_seconds() > 3.0, "a silent rank")
    unasked = workplace.workbench("control", "abort", job)
    assert unasked.status == 4
    assert ranks_of(run) == [rank]
    begin = time.monotonic()
    ended = workplace.workbench("control", "abort", "--force", job, "--json")
    seconds = time.monotonic() - begin
    assert ended.status == 0, ended.stderr
    assert json.loads(ended.stdout)["result"]["state"] == "aborted"
    assert seconds < 15.0
    wait_until(lambda: not processes_of(job), "the supervisor's own end", 10)
    assert outcome_of(run).state == "aborted"
    assert newest_complete(run) is None
    assert "most recent call first" in run.log.read_text()


def test_a_killed_rank_is_a_failure_that_names_rank_and_cause(workplace: Workplace) -> None:
    process = workplace.start(
        "--batch", "-t", "demo.yaml", "--output-dir", "output/hit", *ENDLESS
    )  # fmt: skip
    run = workplace.run_folder("hit")
    wait_until(lambda: last_step(run) > 0, "the first step")
    (rank,) = ranks_of(run)
    os.kill(rank, signal.SIGKILL)
    told, narrated = process.communicate(timeout=60)
    assert process.returncode == 1
    outcome = json.loads(told.splitlines()[-1])
    assert (outcome["state"], outcome["reason"]) == ("failed", "rank_died")
    assert outcome["message"] == "rank 0 was killed by SIGKILL"
    assert outcome["exit_codes"] == {"0": -9}
    assert "rank 0 was killed by SIGKILL" in narrated
    wait_until(lambda: not processes_of(job_of(run).job), "the supervisor's own end", 10)


def test_a_lost_supervisor_loses_no_step_and_is_tidied_up(workplace: Workplace) -> None:
    run = started(workplace, "lost")
    job, socket = job_of(run).job, job_of(run).socket
    viewer = Viewer.connect(socket)
    os.kill(job_of(run).pid, signal.SIGKILL)
    assert viewer.is_closed()
    viewer.close()
    wait_until(lambda: not processes_of(job), "the rank's own end")
    newest = newest_complete(run)
    assert newest is not None, "rank 0 did not save"
    listed = json.loads(workplace.workbench("control", "list", "--json").stdout)
    assert {each["job"]: each["state"] for each in listed}[job] == "lost"
    assert workplace.workbench("control", "save", job).status == 3

    planned = workplace.workbench("control", "cleanup", "--dry-run")
    assert f"{job}: lost: would be dropped" in planned.stdout
    assert not run.outcome.exists()
    assert workplace.workbench("control", "cleanup").status == 0
    assert outcome_of(run).state == "lost"
    assert json.loads(workplace.workbench("control", "list", "--json").stdout) == []

    again = workplace.workbench(
        "--batch", "-t", "demo.yaml", "--output-dir", "output/lost", *ENDLESS,
        "--max-steps", str(newest.step + 2),
    )  # fmt: skip
    assert again.status == 0, again.stderr
    assert outcome_of(run).attempt == 2
    assert (run.path / "config.1.yaml").is_file()
    assert max(losses_of(run)) == newest.step + 2


def test_ctrl_c_stops_the_followed_job_and_saves(workplace: Workplace) -> None:
    process = workplace.start("train", "-t", "demo.yaml", "--output-dir", "output/held", *ENDLESS)
    run = workplace.run_folder("held")
    wait_until(lambda: last_step(run) > 0, "the first step")
    process.send_signal(signal.SIGINT)
    told, narrated = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped at step" in told
    assert "Ctrl-C again aborts" in narrated
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == outcome_of(run).step
