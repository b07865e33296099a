"""Hashes are compared one folder after the other, and what was found holds for that content."""

from pathlib import Path

import pytest

from tests.tui.scripted_supervisor import write_checkpoint
from workbench.runs.layout import RunFolder
from workbench.tui.verifying import Verification, Verifications, manifest_stamp


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_checkpoint(RunFolder(tmp_path / "run"), step) for step in (1, 2)]


def found(verifications: Verifications, folder: Path) -> Verification | None:
    return verifications.of(folder, manifest_stamp(folder))


def ran(verifications: Verifications, folders: list[Path]) -> list[bool]:
    """Compare all of them, and give whether each addition asked for somebody to run."""
    asked = [verifications.add(folder, 10) for folder in folders]
    verifications.run(lambda: None, lambda: False)
    return asked


def test_what_is_whole_and_what_is_damaged_is_told_apart(folders: list[Path]) -> None:
    (folders[1] / "config.json").write_bytes(b'{"model_type": "lemur"}\n')
    verifications = Verifications(lambda: 5.0)
    assert found(verifications, folders[0]) is None
    assert ran(verifications, folders) == [True, False]
    whole, damaged = (found(verifications, folder) for folder in folders)
    assert whole is not None
    assert damaged is not None
    assert (whole.state, whole.num_files, whole.at) == ("whole", 1, 5.0)
    assert damaged.state == "damaged"
    assert damaged.problem == "config.json has other content than when it was saved"


def test_a_folder_that_was_saved_anew_is_not_verified(folders: list[Path]) -> None:
    verifications = Verifications(lambda: 5.0)
    ran(verifications, folders[:1])
    assert found(verifications, folders[0]) is not None
    manifest = folders[0] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes())
    assert found(verifications, folders[0]) is None


def test_what_is_stopped_is_as_if_nobody_had_asked(folders: list[Path]) -> None:
    verifications = Verifications(lambda: 5.0)
    for folder in folders:
        verifications.add(folder, 10)
    verifications.stop(folders[0])
    assert verifications.num_under_way == 1
    verifications.run(lambda: None, lambda: False)
    assert found(verifications, folders[0]) is None
    assert found(verifications, folders[1]) is not None
    # Whoever asks again has to run again.
    assert ran(verifications, folders[:1]) == [True]
    assert found(verifications, folders[0]) is not None


def test_a_program_that_ends_leaves_what_is_being_read(folders: list[Path]) -> None:
    verifications = Verifications(lambda: 5.0)
    verifications.add(folders[0], 10)
    verifications.run(lambda: None, lambda: True)
    left = found(verifications, folders[0])
    assert left is not None
    assert left.state == "waiting"
