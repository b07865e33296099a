"""``workbench --batch`` on the demo, and runs that were killed and go on bit for bit."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import (
    LIMIT_SECONDS,
    SMALL,
    Ended,
    Workplace,
    job_of,
    last_step,
    lines_of,
    losses_of,
    outcome_of,
    wait_until,
)
from workbench.config.load import read_resolved
from workbench.runs.checkpoints import newest_complete
from workbench.runs.job_file import processes_of
from workbench.runs.layout import RunFolder
from workbench.runs.registry import entry_of, liveness

pytestmark = pytest.mark.end_to_end

NUM_STEPS = 20
BFLOAT16 = ["model.dtype=bfloat16"]


def batch(workplace: Workplace, name: str, *more: str) -> tuple[Ended, RunFolder]:
    ended = workplace.workbench(
        "--batch", "-t", "demo.yaml", "--max-steps", str(NUM_STEPS),
        "--output-dir", f"output/{name}", *SMALL, *more,
    )  # fmt: skip
    return ended, workplace.run_folder(name)


@pytest.fixture(scope="module")
def uninterrupted(workplace: Workplace) -> tuple[Ended, RunFolder]:
    return batch(workplace, "uninterrupted")


def test_a_batch_run_exits_0_with_json_lines_only_on_stdout(
    uninterrupted: tuple[Ended, RunFolder],
) -> None:
    ended, run = uninterrupted
    assert ended.status == 0, ended.stderr
    *records, outcome = ended.records
    assert (outcome["state"], outcome["step"], outcome["exit_codes"]) == ("finished", 20, {"0": 0})
    events = [record for record in records if "event" in record]
    metrics = [record for record in records if "event" not in record]
    assert events == lines_of(run.events)
    assert metrics == lines_of(run.metrics)
    assert [record["step"] for record in metrics] == list(range(1, NUM_STEPS + 1))
    assert outcome_of(run).state == "finished"


def test_narration_on_a_pipe_is_one_plain_line_per_event(
    uninterrupted: tuple[Ended, RunFolder],
) -> None:
    ended, run = uninterrupted
    assert "\r" not in ended.stderr
    assert ended.stderr.count("saved checkpoints/checkpoint-") == 2
    assert ended.stderr.count("\n") < 40
    assert f"newest checkpoint: {run.checkpoint(20)}" in ended.stderr


def test_the_run_folder_says_what_the_run_was(uninterrupted: tuple[Ended, RunFolder]) -> None:
    _, run = uninterrupted
    for path in (
        run.config, run.origins, run.environment, run.command, run.chat_template, run.job,
        run.events, run.metrics, run.plan, run.log, run.ranks, run.supervisor_log, run.outcome,
        run.tensorboard, run.checkpoints, run.latest,
    ):  # fmt: skip
        assert path.exists(), path
    config = read_resolved(run.config)
    assert (config.training.max_steps, config.training.output_dir) == (20, str(run.path))
    assert run.latest.resolve() == run.checkpoint(20).resolve()
    assert b"[default0]:" in run.log.read_bytes()
    assert not Path(job_of(run).socket).exists()


def test_a_finished_run_says_so_and_offers_more_steps(
    workplace: Workplace, uninterrupted: tuple[Ended, RunFolder]
) -> None:
    _, run = uninterrupted
    before = run.config.read_bytes()
    again, _ = batch(workplace, "uninterrupted")
    assert (again.status, again.stdout) == (4, "")
    assert "finished at step 20" in again.stderr
    assert "training.max_steps=N" in again.stderr
    assert run.config.read_bytes() == before


def test_another_config_in_the_same_folder_is_refused_by_key(
    workplace: Workplace, uninterrupted: tuple[Ended, RunFolder]
) -> None:
    _, run = uninterrupted
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    refused, _ = batch(workplace, "uninterrupted", "--lr", "0.5", "--max-steps", "40")
    assert (refused.status, refused.stdout) == (2, "")
    assert "optimizer.learning_rate" in refused.stderr
    assert "training.max_steps" not in refused.stderr
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert after == before


def pasted(workplace: Workplace, name: str, *more: str) -> RunFolder:
    """Paste the line of a dry run into a shell: the same training, without a supervisor."""
    planned = workplace.workbench(
        "train", "-t", "demo.yaml", "--max-steps", str(NUM_STEPS),
        "--output-dir", f"output/{name}", *SMALL, *more, "--dry-run",
    )  # fmt: skip
    assert planned.status == 0, planned.stderr
    run = workplace.run_folder(name)
    assert not run.metrics.exists()
    shell = subprocess.run(
        ["sh", "-c", planned.stdout],
        cwd="/",
        env=workplace.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert shell.returncode == 0, shell.stderr.decode()
    assert newest_complete(run) is not None
    return run


@pytest.mark.parametrize("dtype", [[], BFLOAT16], ids=["float32", "bfloat16"])
def test_a_killed_run_goes_on_bit_for_bit(
    workplace: Workplace, uninterrupted: tuple[Ended, RunFolder], dtype: list[str]
) -> None:
    """kill -9 of the whole job behind step 10, then the same command again."""
    whole = pasted(workplace, "uninterrupted-bfloat16", *dtype) if dtype else uninterrupted[1]
    name = "killed" + "-bfloat16" * bool(dtype)
    run = workplace.run_folder(name)
    process = workplace.start(
        "--batch", "-t", "demo.yaml", "--max-steps", str(NUM_STEPS),
        "--output-dir", f"output/{name}", *SMALL, *dtype,
    )  # fmt: skip
    wait_until(lambda: last_step(run) > 10, "step 11")
    job = job_of(run).job
    # The supervisor first: it must not tidy up after its ranks.
    os.kill(job_of(run).pid, signal.SIGKILL)
    for pid in processes_of(job):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 3, "a lost job exits 3"
    assert not run.outcome.exists()
    assert liveness(entry_of(job_of(run), run)) == "lost"
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == 10

    ended, _ = batch(workplace, name, *dtype)
    assert ended.status == 0, ended.stderr
    assert ended.records[-1]["attempt"] == 2
    assert all(record["attempt"] == 2 for record in ended.records)
    steps = {record["step"] for record in ended.records if "loss" in record}
    assert steps == set(range(11, NUM_STEPS + 1))
    assert losses_of(run) == losses_of(whole)
    assert len(losses_of(run)) == NUM_STEPS
