"""Which checkpoint is the newest, which may go, and what a crash may leave."""

import os
from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.runs.checkpoints import (
    Best,
    checkpoint_folder,
    complete_checkpoint,
    list_checkpoints,
    newest_complete,
    prunable,
    prune,
    read_best,
    remove_partials,
    write_best,
)
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import write_hashed, write_manifest


def save(run: RunFolder, step: int) -> Path:
    partial = run.partial_checkpoint(step)
    partial.mkdir(parents=True)
    files = {"model.safetensors": write_hashed(partial / "model.safetensors", b"x" * step)}
    write_manifest(partial, files, step=step, num_ranks=1)
    return complete_checkpoint(run, step)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    return made


def steps(run: RunFolder) -> list[int]:
    return [found.step for found in list_checkpoints(run)]


def test_newest_is_the_highest_step_whatever_the_time_stamps_say(run: RunFolder) -> None:
    for step in (100, 20, 3):
        save(run, step)
    os.utime(run.checkpoint(3), (2e9, 2e9))
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == 100
    assert run.latest.readlink() == Path("checkpoints/checkpoint-100")


def test_partial_and_damaged_folders_are_never_the_newest(run: RunFolder) -> None:
    save(run, 10)
    save(run, 20)
    (run.checkpoint(20) / "model.safetensors").write_bytes(b"cut")
    run.partial_checkpoint(30).mkdir()
    run.checkpoint(40).mkdir()
    (run.checkpoints / "checkpoint-50").write_text("a file")
    (run.checkpoints / "checkpoint-60").symlink_to(run.checkpoint(10))
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == 10
    problems = {found.step: found.problem for found in list_checkpoints(run)}
    assert problems[10] is None
    assert "model.safetensors has 3 bytes" in (problems[20] or "")
    assert set(problems) == {10, 20, 40}


def test_a_copied_folder_under_another_name_is_not_complete(run: RunFolder) -> None:
    save(run, 10).rename(run.checkpoint(11))
    assert newest_complete(run) is None


def test_pruning_spares_the_newest_the_best_and_the_tagged() -> None:
    assert prunable([10, 20, 30, 40, 50], keep=2, best=10, tagged=[20]) == [30]
    assert prunable([10, 20], keep=3, best=None, tagged=[]) == []


def test_pruning_removes_complete_checkpoints_only(run: RunFolder) -> None:
    for step in (10, 20, 30, 40):
        save(run, step)
    write_best(run, Best(step=10, loss=1.5))
    run.tags.write_text('{"checkpoint-20": ["keep"]}')
    run.checkpoint(25).mkdir()
    assert prune(run, keep=1) == ["checkpoint-30"]
    assert steps(run) == [10, 20, 25, 40]
    assert read_best(run) == Best(step=10, loss=1.5)


def test_unreadable_tags_let_nothing_be_pruned(run: RunFolder) -> None:
    for step in (10, 20):
        save(run, step)
    run.tags.write_text("{")
    with pytest.raises(RunError, match=r"tags\.json"):
        prune(run, keep=1)
    assert steps(run) == [10, 20]


def test_what_crashes_left_is_removed_and_nothing_else(run: RunFolder) -> None:
    save(run, 10)
    run.partial_checkpoint(20).mkdir()
    (run.partial_checkpoint(20) / "model.safetensors").write_text("half")
    (run.checkpoints / "mine.partial").mkdir()
    remove_partials(run)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["checkpoint-10", "mine.partial"]


def test_a_run_a_checkpoint_and_a_model_folder_name_weights(run: RunFolder, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert checkpoint_folder(model) == model
    first = save(run, 10)
    second = save(run, 20)
    assert checkpoint_folder(run.path) == second
    assert checkpoint_folder(first) == first
    assert checkpoint_folder(run.latest) == run.latest


def test_weights_that_are_not_complete_are_refused(run: RunFolder) -> None:
    run.config.write_text("")
    run.partial_checkpoint(20).mkdir(parents=True)
    run.checkpoint(10).mkdir()
    for path in (run.path, run.partial_checkpoint(20), run.checkpoint(10), run.path / "nowhere"):
        with pytest.raises(RunError) as raised:
            checkpoint_folder(path)
        assert raised.value.remedy


@pytest.mark.parametrize("content", [b"", b"[]", b'{"step": "ten"}', b"\xff"])
def test_a_damaged_best_file_is_no_best(run: RunFolder, content: bytes) -> None:
    run.checkpoints.mkdir()
    run.best.write_bytes(content)
    assert read_best(run) is None
