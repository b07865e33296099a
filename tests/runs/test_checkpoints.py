"""Which checkpoint is the newest, which may go, and what a crash may leave."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.runs.checkpoints import (
    Best,
    checkpoint_folder,
    choose_checkpoint,
    complete_checkpoint,
    list_checkpoints,
    newest_complete,
    prunable,
    prune,
    read_best,
    remove_damaged,
    remove_partials,
    run_of,
    write_best,
)
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import WrittenFile, write_hashed, write_manifest


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
    followed = checkpoint_folder(run.latest)
    assert followed == second
    save(run, 30)
    assert followed == second != run.latest.resolve(), "the next save leads nobody elsewhere"


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


def test_a_choice_names_the_newest_the_best_or_a_step(run: RunFolder) -> None:
    for step in (10, 20, 30):
        save(run, step)
    with pytest.raises(RunError, match="best"):
        choose_checkpoint(run, "best")
    write_best(run, Best(step=10, loss=1.5))
    (run.checkpoint(30) / "model.safetensors").unlink()
    assert choose_checkpoint(run, "latest").step == 20
    assert choose_checkpoint(run, "best").step == 10
    assert choose_checkpoint(run, 20).step == 20
    with pytest.raises(RunError, match=r"not complete.*--step 10 \| 20"):
        choose_checkpoint(run, 30)
    with pytest.raises(RunError, match="no checkpoint of step 40"):
        choose_checkpoint(run, 40)


def test_a_checkpoint_knows_its_run_by_where_it_lies(run: RunFolder, tmp_path: Path) -> None:
    folder = save(run, 10)
    assert run_of(folder) is None
    run.config.write_text("")
    assert run_of(run.latest).path == run.path  # type: ignore[union-attr]
    copy = folder.rename(tmp_path / "checkpoint-10")
    assert run_of(copy) is None


def test_latest_names_another_before_a_damaged_checkpoint_goes(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    save(run, 20)
    named: list[Path] = []
    remove = shutil.rmtree

    def watched(path: Path) -> None:
        named.append(run.latest.resolve())
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", watched)
    remove_damaged(run, 20)
    assert named == [run.checkpoint(10)]
    remove_damaged(run, 10)
    assert not run.latest.is_symlink()


def test_what_a_user_calls_latest_is_not_replaced(run: RunFolder) -> None:
    run.latest.mkdir()
    (run.latest / "base").write_text("weights")
    assert save(run, 10) == run.checkpoint(10)
    assert (run.latest / "base").read_text() == "weights"


def test_latest_leads_to_no_checkpoint_that_is_partly_on_another_host(run: RunFolder) -> None:
    save(run, 10)
    partial = run.partial_checkpoint(20)
    partial.mkdir(parents=True)
    files = {"model.safetensors": write_hashed(partial / "model.safetensors", b"mine")}
    elsewhere = {"other": {"model-2.safetensors": WrittenFile(3, "0" * 64)}}
    write_manifest(partial, files, step=20, num_ranks=2, elsewhere=elsewhere)
    complete_checkpoint(run, 20)
    assert run.latest.resolve() == run.checkpoint(10)
    newest = newest_complete(run)
    assert newest is not None
    assert (newest.step, newest.other_hosts) == (20, ("other",))


def test_latest_leads_to_a_complete_checkpoint_at_any_instant(run: RunFolder) -> None:
    """A reader looks all the time while checkpoints come and go."""
    save(run, 1)
    seen: set[int] = set()
    is_over = threading.Event()
    wrong: list[str] = []

    def look() -> None:
        while not is_over.is_set():
            found = run.latest.readlink()
            seen.add(int(found.name.rpartition("-")[2]))
            if not (run.path / found / "model.safetensors").exists() and run.latest.exists():
                # Between reading the link and looking behind it the next save may have pruned it.
                latest = run.latest.readlink()
                if latest == found:
                    wrong.append(found.name)

    reader = threading.Thread(target=look)
    reader.start()
    for step in range(2, 60):
        save(run, step)
        prune(run, keep=1)
    is_over.set()
    reader.join()
    assert not wrong
    assert len(seen) > 3
