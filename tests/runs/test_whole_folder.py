"""A folder that is written beside its name: complete under it, or not there."""

import os
import signal
import time
from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.runs.whole_folder import MARKER, partial_of, remove_left_over, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "made"
    with whole_folder(destination) as partial:
        (partial / "weights").write_text("all")
        assert not destination.exists()
        assert partial == partial_of(destination)
    assert names(destination) == ["weights"]
    assert names(destination.parent) == ["made"]


@pytest.mark.parametrize("failure", [ValueError("half way"), OSError(28, "No space left")])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: Exception) -> None:
    expected = RunError if isinstance(failure, OSError) else ValueError
    with pytest.raises(expected), whole_folder(tmp_path / "made") as partial:  # noqa: PT012
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_text("half")
        raise failure
    assert names(tmp_path) == []


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("kept")
    with pytest.raises(RunError, match="is there already"), whole_folder(tmp_path / "made"):
        pytest.fail("the folder is taken")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is there already"), whole_folder(tmp_path / "link"):
        pytest.fail("the name is taken")
    assert (tmp_path / "made" / "mine").read_text() == "kept"


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    taken = pytest.raises(RunError, match="is there already")
    with taken, whole_folder(tmp_path / "made"):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "mine").write_text("kept")
    assert names(tmp_path) == ["made"]


def test_a_partial_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    partial = partial_of(tmp_path / "made")
    partial.mkdir()
    (partial / "mine").write_text("kept")
    with pytest.raises(RunError, match=r"made\.partial"), whole_folder(tmp_path / "made"):
        pytest.fail("the folder is somebody else's")
    assert (partial / "mine").read_text() == "kept"


def test_only_one_writes_at_a_time(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "made") as partial:
        with pytest.raises(RunError, match="another process"), whole_folder(tmp_path / "made"):
            pytest.fail("somebody writes it")
        assert partial.is_dir()
    assert (tmp_path / "made").is_dir()


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    destination = tmp_path / "made"
    child = os.fork()
    if child == 0:
        with whole_folder(destination) as partial:
            (partial / "weights").write_text("half")
            (tmp_path / "is writing").touch()
            time.sleep(60)
        os._exit(0)
    limit = time.monotonic() + 30
    while not (tmp_path / "is writing").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    with pytest.raises(RunError, match="another process"):
        remove_left_over(destination)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(partial_of(destination)) == [MARKER, "weights"]
    assert remove_left_over(destination)
    assert not remove_left_over(destination)
    assert names(tmp_path) == ["is writing"]
