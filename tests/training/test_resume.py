import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.tiny import CPU, TinyRun, dimensions, step_rows, tiny_run
from workbench.control.messages import Evaluate, Pause, Resume, Save, Stop
from workbench.errors import RunError
from workbench.model import decoder
from workbench.runs import checkpoints as folders
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.loop import Intervals
from workbench.training.state import capture_random_states, restore_random_states

SAVES = Intervals(log=1, evaluate=4, max_evaluation_batches=2, save=5, save_at_end=True, keep=2)


def bits(run: TinyRun) -> dict[str, bytes]:
    tensors = run.tiny.weights() | run.tiny.optimizer.named_tensors()
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_ten_steps_saved_and_ten_more_equal_twenty(
    tmp_path: Path, dtype: torch.dtype, clip_norm: float | None
) -> None:
    whole = tiny_run(tmp_path / "whole", max_steps=20, dtype=dtype, clip_norm=clip_norm)
    assert whole.train().state == "finished"

    first = tiny_run(tmp_path / "parts", max_steps=10, dtype=dtype, clip_norm=clip_norm)
    assert first.training.rows.steps_per_epoch == 5
    first.train()
    second = tiny_run(tmp_path / "parts", max_steps=20, dtype=dtype, clip_norm=clip_norm, attempt=2)
    assert second.training.state.step == 10
    second.train()

    assert second.losses() == whole.losses()
    assert len(second.losses()) == 20
    assert bits(second) == bits(whole)
    assert second.training.state == whole.training.state


def test_a_run_resumes_in_the_middle_of_an_epoch_and_with_other_microbatches(
    tmp_path: Path,
) -> None:
    whole = tiny_run(tmp_path / "whole", max_steps=9)
    whole.train()
    tiny_run(tmp_path / "parts", max_steps=3).train()
    second = tiny_run(tmp_path / "parts", max_steps=9, attempt=2, num_microbatches=4)
    second.train()
    assert list(second.losses().values()) == pytest.approx(list(whole.losses().values()), rel=1e-6)


def test_pausing_saving_and_evaluating_change_no_loss(tmp_path: Path) -> None:
    plain = tiny_run(tmp_path / "plain", max_steps=8)
    plain.train()
    steered = tiny_run(tmp_path / "steered", max_steps=8, intervals=SAVES)
    for number, wish in enumerate([Save, Evaluate, Pause, Save, Evaluate, Resume]):
        steered.wishes.put(wish(id=number))
    steered.train()
    steps = [found.step for found in folders.list_checkpoints(RunFolder(tmp_path / "steered"))]
    assert steps == [5, 8], "saved at step 1 by command, at 5 by interval, at 8 at the end; kept 2"
    assert steered.losses() == plain.losses()
    assert bits(steered) == bits(plain)


def test_a_checkpoint_loads_in_transformers_with_the_same_logits(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, max_steps=3)
    run.train()
    folder = RunFolder(tmp_path).checkpoint(3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(step_rows(9).microbatches[0].ids)[:, :12].long()
    starts = torch.tensor([[0, 12]] * ids.shape[0], dtype=torch.int32)
    with torch.no_grad():
        expected = model(ids).logits
        context = decoder.row_context(starts, 12, dimensions(), torch.float32)
        logits = decoder.forward(run.tiny.weights(), ids, context, dimensions())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_stopping_saves_even_where_nothing_else_does(tmp_path: Path) -> None:
    never = Intervals(
        log=1, evaluate=None, max_evaluation_batches=None, save=None, save_at_end=False, keep=3
    )
    ended = tiny_run(tmp_path / "ended", max_steps=3, intervals=never)
    assert ended.train().state == "finished"
    assert folders.list_checkpoints(ended.training.run) == []

    for save in (True, False):
        stopped = tiny_run(tmp_path / f"stopped-{save}", max_steps=50, intervals=never)
        stopped.training._step()  # a stop before the first step has nothing to save
        stopped.wishes.put(Stop(id=1, save=save))
        ending = stopped.train()
        assert (ending.state, ending.step) == ("stopped", 1)
        steps = [found.step for found in folders.list_checkpoints(stopped.training.run)]
        assert steps == ([1] if save else [])


def test_a_run_whose_supervisor_is_gone_saves_and_ends(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, max_steps=50)
    run.training._step()
    run.wishes.put(None)
    assert run.train().state == "stopped"
    assert folders.newest_complete(run.training.run) is not None


def test_a_finished_run_that_starts_again_ends_at_once(tmp_path: Path) -> None:
    tiny_run(tmp_path, max_steps=2).train()
    again = tiny_run(tmp_path, max_steps=2, attempt=2)
    ending = again.train()
    assert (ending.state, ending.step) == ("finished", 2)
    assert len(again.losses()) == 2


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    intervals = Intervals(
        log=1, evaluate=1, max_evaluation_batches=None, save=1, save_at_end=True, keep=1
    )
    run = tiny_run(tmp_path, max_steps=6, intervals=intervals)
    run.training.rate = lambda step: 1e-3 if step <= 3 else 0.3  # the last steps do harm
    run.train()
    best = folders.read_best(run.training.run)
    assert best is not None
    assert best.step < 6
    steps = [found.step for found in folders.list_checkpoints(run.training.run)]
    assert steps == [best.step, 6]


@pytest.mark.parametrize(
    ("name", "ours", "message"),
    [
        ("model.norm.weight:full", None, "model.norm.weight:full is unknown to this run"),
        ("extra", torch.zeros(1), r"are missing: \['extra'\]"),
        ("model.norm.weight:full", torch.zeros(3), r"is torch.float32 \(32,\), not .* \(3,\)"),
    ],
)
def test_loading_refuses_statistics_that_are_not_the_runs(
    tmp_path: Path, name: str, ours: torch.Tensor | None, message: str
) -> None:
    run = tiny_run(tmp_path, max_steps=1)
    run.train()
    statistics = dict(run.training.content.statistics)
    if ours is None:
        del statistics[name]
    else:
        statistics[name] = ours
    content = dataclasses.replace(run.training.content, statistics=statistics)
    with pytest.raises(RunError, match=message):
        checkpoint.load(
            RunFolder(tmp_path).checkpoint(1), content, dimensions(), 5, run.training.ranks
        )


def test_loading_refuses_another_dtype_and_other_data(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, max_steps=1)
    run.train()
    folder = RunFolder(tmp_path).checkpoint(1)
    with pytest.raises(RunError, match="7 steps per epoch"):
        checkpoint.load(folder, run.training.content, dimensions(), 7, run.training.ranks)
    other = tiny_run(tmp_path / "other", max_steps=1, dtype=torch.bfloat16)
    with pytest.raises(RunError, match=r"torch.float32 .*, not torch.bfloat16"):
        checkpoint.load(folder, other.training.content, dimensions(), 5, run.training.ranks)


def test_a_run_goes_on_from_its_own_newest_checkpoint_whatever_it_began_from(
    tmp_path: Path,
) -> None:
    source = tiny_run(tmp_path / "source", max_steps=1)
    source.train()
    given = str(RunFolder(tmp_path / "source").checkpoint(1))
    run = RunFolder(tmp_path / "run")
    for wanted in ("auto", "no"):
        assert folders.resume_point(run, wanted, is_restart=False) is None
    assert folders.resume_point(run, given, is_restart=False) == Path(given)
    with pytest.raises(RunError, match="no such folder"):
        folders.resume_point(run, str(tmp_path / "nothing"), is_restart=False)
    tiny_run(tmp_path / "run", max_steps=2).train()
    for wanted in ("auto", given):
        assert folders.resume_point(run, wanted, is_restart=False) == run.checkpoint(2)
    assert folders.resume_point(run, "no", is_restart=True) == run.checkpoint(2)
    with pytest.raises(RunError, match="checkpoint-2 is there"):
        folders.resume_point(run, "no", is_restart=False)


def test_every_random_stream_goes_on_where_it_was() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    random.gauss(0, 1)  # leaves the second number of its pair behind
    np.random.standard_normal()
    saved = capture_random_states(CPU)
    expected = draw()
    assert draw() != expected
    restore_random_states(saved, CPU)
    assert draw() == expected
