"""What goes when a model is published, and what never does."""

from pathlib import Path

import pytest

from tests.runs.test_checkpoints import save
from workbench.errors import RefusedError
from workbench.runs.checkpoints import Best, list_checkpoints, read_best, write_best
from workbench.runs.discard import discard, plan_discard
from workbench.runs.layout import RunFolder
from workbench.runs.lock import take_lock


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.config.write_text("")
    made.metrics.write_text("{}\n")
    for step in (10, 20, 30):
        save(made, step)
    write_best(made, Best(step=20, loss=1.0))
    made.partial_checkpoint(40).mkdir()
    (made.partial_checkpoint(40) / "half").write_text("half")
    return made


def test_all_checkpoints_go_and_the_records_stay(run: RunFolder) -> None:
    plan = plan_discard(run, [])
    listed = [path for held in plan.files.values() for path in held]
    assert len(listed) == 7
    assert plan.bytes == sum(path.stat().st_size for path in listed)
    discard(plan)
    assert [path.name for path in run.checkpoints.iterdir()] == []
    assert not run.latest.is_symlink()
    assert read_best(run) is None
    assert run.config.exists()
    assert run.metrics.exists()


def test_tagged_linked_and_protected_folders_stay(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("mine")
    (run.checkpoints / "checkpoint-50").symlink_to(elsewhere)
    (run.checkpoints / "notes").mkdir()
    run.tags.write_text('{"checkpoint-10": ["keep"]}')
    model = tmp_path / "model"
    model.symlink_to(run.checkpoint(30))
    plan = plan_discard(run, [model])
    assert set(plan.spared) == {run.checkpoint(step) for step in (10, 30, 50)}
    discard(plan)
    assert [found.step for found in list_checkpoints(run)] == [10, 30]
    assert run.latest.resolve() == run.checkpoint(30)
    assert (elsewhere / "weights").read_text() == "mine"
    assert (run.checkpoints / "notes").is_dir()


def test_a_published_model_within_a_checkpoint_protects_it(run: RunFolder) -> None:
    plan = plan_discard(run, [run.checkpoint(10) / "published"])
    assert run.checkpoint(10) in plan.spared


def test_nothing_goes_while_a_job_is_at_work(run: RunFolder) -> None:
    plan = plan_discard(run, [])
    lock = take_lock(run.lock)
    assert lock is not None
    with pytest.raises(RefusedError):
        discard(plan)
    lock.release()
    assert [found.step for found in list_checkpoints(run)] == [10, 20, 30]


def test_only_the_named_checkpoint_goes(run: RunFolder) -> None:
    plan = plan_discard(run, [], only=[run.checkpoint(20)])
    assert list(plan.files) == [run.checkpoint(20)]
    discard(plan)
    assert [found.step for found in list_checkpoints(run)] == [10, 30]
    assert run.partial_checkpoint(40).is_dir()
    assert run.latest.resolve() == run.checkpoint(30)


def test_naming_a_protected_checkpoint_does_not_open_it(run: RunFolder) -> None:
    plan = plan_discard(run, [run.checkpoint(20)], only=[run.checkpoint(20)])
    assert not plan.files
    assert plan.spared == {run.checkpoint(20): "is in use as a model"}
