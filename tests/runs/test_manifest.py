"""A checkpoint is complete when its manifest agrees, and only then."""

from pathlib import Path

import msgspec
import pytest

from workbench.errors import RunError
from workbench.runs.manifest import (
    Manifest,
    WrittenFile,
    agrees,
    hash_file,
    problem_of,
    read_manifest,
    verify,
    verifying,
    write_hashed,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete checkpoint of two files."""
    (tmp_path / "training_state").mkdir()
    files = {
        "model.safetensors": write_hashed(tmp_path / "model.safetensors", b"weights" * 1000),
        "training_state/state.json": write_hashed(tmp_path / "training_state/state.json", b"{}"),
    }
    write_manifest(tmp_path, files, step=7, num_ranks=1)
    return tmp_path


def test_a_folder_as_written_agrees_and_verifies(folder: Path) -> None:
    manifest = verify(folder)
    assert agrees(folder)
    assert (manifest.step, manifest.num_ranks, manifest.total_bytes) == (7, 1, 7002)


def test_a_file_hashed_while_written_has_the_hash_of_the_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert hash_file(path) == read_manifest(folder).files["model.safetensors"]


def test_a_cut_file_disagrees_and_is_named_with_both_sizes(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(12)
    assert problem_of(folder) == "model.safetensors has 12 bytes, manifest says 7,000"


def test_a_missing_file_disagrees(folder: Path) -> None:
    (folder / "training_state/state.json").unlink()
    assert problem_of(folder) == "training_state/state.json is missing"


def test_a_flipped_byte_is_found_by_the_hash_alone(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb+") as file:
        file.write(b"W")
    assert agrees(folder)
    with pytest.raises(RunError, match=r"model\.safetensors has other content"):
        verify(folder)


def test_a_users_note_spoils_no_checkpoint(folder: Path) -> None:
    (folder / "note.txt").write_text("the good one")
    assert agrees(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"version":2,"step":7,"num_ranks":1,"files":{}}']
)
def test_what_is_no_manifest_completes_nothing(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert not agrees(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_that_names_files_elsewhere_disagrees(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        write_manifest(tmp_path, {name: WrittenFile(1, "00")}, step=1, num_ranks=1)
    manifest = Manifest(version=1, step=1, num_ranks=1, files={name: WrittenFile(1, "00")})
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    assert "does not lie in the checkpoint" in (problem_of(tmp_path) or "")


def test_verifying_tells_how_many_bytes_it_has_read(tmp_path: Path) -> None:
    contents = {"a.bin": b"x" * (3 << 20), "b.bin": b"y" * 10}
    files = {name: write_hashed(tmp_path / name, content) for name, content in contents.items()}
    written = write_manifest(tmp_path, files, step=1, num_ranks=1)
    told = list(verifying(tmp_path))
    assert told == sorted(told)
    assert len(told) == 4
    assert told[-1] == written.total_bytes
    (tmp_path / "b.bin").write_bytes(b"z" * 10)
    with pytest.raises(RunError, match=r"b\.bin has other content"):
        list(verifying(tmp_path))
