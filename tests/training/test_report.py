import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.tiny import CPU, tiny_run
from workbench.runs import checkpoints as folders
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.training.distributed import Ranks
from workbench.training.engine.step import EvaluationSums, StepResult
from workbench.training.engine.step_times import StepTimes
from workbench.training.evaluate import total
from workbench.training.loop import Intervals, NonfiniteError
from workbench.training.report import Fault, Report
from workbench.training.state import TrainingState


def records(folder: Path) -> list[dict[str, object]]:
    lines, _ = read_lines(RunFolder(folder).metrics)
    return [json.loads(line.content) for line in lines]


def result(
    loss_sum: float,
    num_targets: int,
    *squares: float,
    names: tuple[str, ...] = ("a", "b"),
    times: StepTimes | None = None,
) -> StepResult:
    return StepResult(
        loss_sum=torch.tensor(loss_sum),
        num_targets=num_targets,
        num_tokens=2 * num_targets,
        ok=torch.tensor(math.isfinite(loss_sum)),
        square_norms=torch.tensor(squares),
        names=names[: len(squares)],
        times=None if times is None else Read(times),
    )


@dataclass(frozen=True)
class Read:
    """The times of a step whose events have all happened."""

    times: StepTimes

    def read(self) -> StepTimes:
        return self.times


def report_in(folder: Path) -> Report:
    return Report(RunFolder(folder), Ranks(), attempt=1, device=CPU, resumed_step=0, name=None)


def test_a_window_weighs_steps_by_their_target_tokens(tmp_path: Path) -> None:
    report = report_in(tmp_path)
    report.add(1, result(30.0, 10, 3.0, 6.0), 0.5)
    report.add(2, result(10.0, 30, 16.0, 9.0), 1.5)
    assert report.faults() == []
    _, record = report.window(TrainingState(step=2, tokens=80, target_tokens=40), 1e-3)
    report.close()
    assert record.loss == 1.0, "40 over 40, not the mean of 3 and 1/3"
    assert record.gradient_norm == pytest.approx(math.sqrt((9 + 25) / 2))
    assert record.largest_gradient_norm == 5.0
    assert record.step_seconds == pytest.approx(1.0, rel=0.1)
    assert record.tokens_per_second == pytest.approx(40.0, rel=0.1)
    assert record.peak_gpu_bytes == []
    assert record.peak_host_bytes[0] > 10_000_000
    assert records(tmp_path)[0]["loss"] == 1.0


def test_shares_are_of_the_steps_that_were_timed(tmp_path: Path) -> None:
    report = report_in(tmp_path)
    timed = StepTimes(step=2.0, up=1.0, down=0.5, waiting=0.1, optimizer=0.05)
    other = StepTimes(step=2.0, up=0.2, down=None, waiting=0.1, optimizer=0.03)
    report.add(1, result(30.0, 10, 3.0, times=timed), 2.0)
    report.add(2, result(30.0, 10, 3.0), 9.0)
    report.add(3, result(30.0, 10, 3.0, times=other), 2.0)
    report.faults(wait=True)
    _, record = report.window(TrainingState(step=3), 1e-3)
    assert (record.up_share, record.down_share) == pytest.approx((0.3, 0.25))
    assert record.transfer_share == record.up_share, "of both directions the busier"
    assert (record.waiting_share, record.optimizer_share) == pytest.approx((0.05, 0.02))
    assert record.compute_share == pytest.approx(0.93)
    report.add(4, result(30.0, 10, 3.0), 2.0)
    report.faults(wait=True)
    _, record = report.window(TrainingState(step=4), 1e-3)
    report.close()
    assert (record.compute_share, record.transfer_share, record.waiting_share) == (None,) * 3


def test_the_time_to_the_first_step_is_told_once_in_each_attempt(tmp_path: Path) -> None:
    tiny_run(tmp_path, max_steps=2).train()
    tiny_run(tmp_path, max_steps=4, attempt=2).train()
    told = [record["first_step_seconds"] for record in records(tmp_path)]
    assert [seconds is not None for seconds in told] == [True, False, True, False]
    assert 0 < told[0] <= told[2], "of this process, which belongs to no job"  # type: ignore[operator]


def test_a_step_takes_what_windows_took_that_do_not_hold_the_first(tmp_path: Path) -> None:
    report = report_in(tmp_path)
    for step, seconds in enumerate((30.0, 2.0, 2.2, 2.1), start=1):
        report.add(step, result(1.0, 10, 1.0), seconds)
        report.faults(wait=True)
        report.window(TrainingState(step=step), 1e-3)
        assert (report.step_seconds is None) == (step == 1)
    report.close()
    assert report.step_seconds == pytest.approx(2.1, abs=0.05)


def test_what_is_not_finite_becomes_null_and_is_named(tmp_path: Path) -> None:
    report = report_in(tmp_path)
    report.add(1, result(math.nan, 10), 1.0)
    (fault,) = report.faults()
    assert (fault.step, fault.what) == (1, "the loss")
    _, record = report.window(TrainingState(step=1), 1e-3)
    assert (record.loss, record.nonfinite, record.skipped_steps) == (None, ["loss"], 1)
    report.add(2, result(1.0, 10, 1.0, math.inf), 1.0)
    (fault,) = report.faults()
    assert (fault.step, fault.what) == (2, "the gradient of b")
    _, record = report.window(TrainingState(step=2), 1e-3)
    assert record.loss == 0.1
    assert (record.gradient_norm, record.nonfinite) == (None, ["gradient_norm"])
    report.close()


def test_an_evaluation_is_token_exact_not_a_mean_of_means() -> None:
    found = total(
        [
            EvaluationSums(torch.tensor(30.0), torch.tensor(5), 10),
            EvaluationSums(torch.tensor(10.0), torch.tensor(25), 30),
        ]
    )
    assert found.loss == 1.0
    assert found.perplexity == pytest.approx(math.e)
    assert found.accuracy == 0.75
    assert found.target_tokens == 40
    nothing = total([EvaluationSums(torch.tensor(math.nan), torch.tensor(0), 4)])
    assert (nothing.loss, nothing.perplexity, nothing.accuracy) == (None, None, 0.0)
    assert total([EvaluationSums(torch.tensor(4e6), torch.tensor(0), 4)]).perplexity is None


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_the_rule_for_a_loss_that_is_not_finite(
    tmp_path: Path, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    intervals = Intervals(
        log=5, evaluate=None, max_evaluation_batches=None, save=2, save_at_end=True, keep=9
    )
    run = tiny_run(tmp_path, max_steps=6, intervals=intervals, nonfinite=rule)  # type: ignore[arg-type]
    weight = dict(run.tiny.store.named_tensors())["model.norm.weight"]
    healthy = weight[0].item()
    before: dict[str, torch.Tensor] = {}

    def rate(step: int) -> float:
        # Spoil one weight during step 3 alone: the rate is asked for as the step begins.
        if step == 3 and not before:
            weight[0] = math.inf
            before.update(run.tiny.weights())
        elif step == 4 and weight[0].isinf():
            weight[0] = healthy
        return 1e-3

    run.training.rate = rate
    if rule == "stop":
        with pytest.raises(NonfiniteError, match="the loss of step 3 is not finite"):
            run.train()
        after = run.tiny.weights()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        last = records(tmp_path)[-1]
        assert (last["step"], last["nonfinite"]) == (3, ["loss"])
        assert [found.step for found in folders.list_checkpoints(run.training.run)] == [2]
        return
    run.train()
    assert "the loss of step 3 is not finite; the whole step was skipped" in caplog.text
    found = records(tmp_path)
    assert [record["skipped_steps"] for record in found] == [1, 0]
    assert found[0]["loss"] is None
    assert found[1]["loss"] is not None


def test_a_gradient_that_is_not_finite_is_not_said_to_skip_the_step() -> None:
    fault = Fault(7, "model.layers.1.mlp.up_proj.weight")
    assert fault.what == "the gradient of model.layers.1.mlp.up_proj.weight"
    assert fault.skipped == "this tensor and those below it were not updated"


def read_board(folder: Path, *, num_files: int) -> EventAccumulator:
    # Names order the files by second, then by a counter of the process: here all in one second.
    files = sorted(
        RunFolder(folder).tensorboard.iterdir(),
        key=lambda path: int(path.name.rpartition(".")[2]),
    )
    assert len(files) == num_files
    for number, path in enumerate(files):
        path.rename(path.with_name(f"events.out.tfevents.{number}"))
    board = EventAccumulator(str(RunFolder(folder).tensorboard))
    board.Reload()
    return board


def test_an_attempt_that_begins_anew_takes_back_the_points_of_one_that_never_saved(
    tmp_path: Path,
) -> None:
    intervals = Intervals(
        log=1, evaluate=None, max_evaluation_batches=None, save=None, save_at_end=False, keep=3
    )
    tiny_run(tmp_path, max_steps=3, intervals=intervals).train()
    tiny_run(tmp_path, max_steps=2, intervals=intervals, attempt=2).train()
    board = read_board(tmp_path, num_files=2)
    assert [point.step for point in board.Scalars("train-loss")] == [1, 2]


def test_tensorboard_has_the_tags_and_a_resumed_run_continues_the_curve(tmp_path: Path) -> None:
    intervals = Intervals(
        log=1, evaluate=2, max_evaluation_batches=None, save=None, save_at_end=True, keep=3
    )
    first = tiny_run(tmp_path, max_steps=3, intervals=intervals)
    first.training.report.text("experiment", "config", 0)
    first.train()
    # An attempt that crashed at step 5 without a checkpoint: its points are taken back.
    crashed = tiny_run(tmp_path, max_steps=5, intervals=intervals, attempt=2)
    crashed.training._step()
    crashed.training._log()
    crashed.training.report.close()
    tiny_run(tmp_path, max_steps=6, intervals=intervals, attempt=3).train()
    board = read_board(tmp_path, num_files=3)
    tags = {
        "train-loss", "eval-loss", "eval-perplexity", "eval-accuracy", "learning-rate",
        "grad-norm", "grad-norm[max]", "peak_memory_rank0", "tokens-per-second",
        "first-step-seconds",
    }  # fmt: skip
    # Shares are there where the device has events to measure them.
    shares = {tag for tag in board.Tags()["scalars"] if tag.endswith("-share")}
    assert set(board.Tags()["scalars"]) - shares == tags
    assert "experiment/text_summary" in board.Tags()["tensors"]
    assert [point.step for point in board.Scalars("train-loss")] == [1, 2, 3, 4, 5, 6]
    losses = {record["step"]: record["loss"] for record in records(tmp_path)}
    for point in board.Scalars("train-loss"):
        assert point.value == pytest.approx(losses[point.step])
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6]
