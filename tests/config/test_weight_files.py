import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from workbench.config.weight_files import (
    BIN_FILE,
    BIN_INDEX_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    find_weight_files,
    missing_weight_files,
)
from workbench.errors import RunError


def shards(ending: str, count: int = 3) -> list[str]:
    return [f"model-0000{number}-of-0000{count}.{ending}" for number in range(1, count + 1)]


def write_index(path: Path, files: Sequence[str]) -> None:
    weight_map = {f"tensor {number}": file for number, file in enumerate(files)}
    path.write_text(json.dumps({"weight_map": weight_map}))


def touch(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert missing_weight_files(tmp_path) == [SINGLE_FILE]
    touch(tmp_path, [SINGLE_FILE])
    assert missing_weight_files(tmp_path) == []
    (tmp_path / SINGLE_FILE).unlink()
    names = shards("safetensors")
    write_index(tmp_path / INDEX_FILE, names)
    touch(tmp_path, names[1:2])
    assert missing_weight_files(tmp_path) == [names[0], names[2]]
    (tmp_path / INDEX_FILE).write_text("[]")
    with pytest.raises(RunError, match="not an index"):
        missing_weight_files(tmp_path)


def test_a_bin_set_is_as_good_as_safetensors(tmp_path: Path) -> None:
    names = shards("bin")
    write_index(tmp_path / BIN_INDEX_FILE, names)
    assert missing_weight_files(tmp_path) == names
    touch(tmp_path, names)
    found = find_weight_files(tmp_path)
    assert [path.name for path in found.files] == names
    assert found.holders == {f"tensor {n}": tmp_path / name for n, name in enumerate(names)}
    assert found.notice == ""


@pytest.mark.parametrize("usable", [SINGLE_FILE, BIN_FILE, BIN_INDEX_FILE])
def test_an_index_of_which_nothing_is_there_is_stale_and_another_form_is_read(
    tmp_path: Path, usable: str
) -> None:
    write_index(tmp_path / INDEX_FILE, shards("safetensors"))
    if usable == BIN_INDEX_FILE:
        write_index(tmp_path / usable, shards("bin"))
        touch(tmp_path, shards("bin"))
    else:
        touch(tmp_path, [usable])
    found = find_weight_files(tmp_path)
    assert found.listed_in == tmp_path / usable
    assert (f"{INDEX_FILE} is stale" in found.notice) == (usable != SINGLE_FILE)
    assert missing_weight_files(tmp_path) == []


def test_half_of_a_download_is_told_though_another_form_is_whole(tmp_path: Path) -> None:
    names = shards("safetensors")
    write_index(tmp_path / INDEX_FILE, names)
    touch(tmp_path, [names[0], BIN_FILE])
    with pytest.raises(RunError, match=f"names {names[1]}, {names[2]}, not in this folder") as told:
        find_weight_files(tmp_path)
    assert "remove an index left by another format" in told.value.remedy
    assert missing_weight_files(tmp_path) == names[1:]


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/hostname", "..", "", "a/b", "\0"])
def test_an_index_leads_nowhere_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    touch(tmp_path, ["other.safetensors"])
    write_index(folder / INDEX_FILE, [name])
    with pytest.raises(RunError, match="not in this folder"):
        find_weight_files(folder)


@pytest.mark.parametrize("linked", [SINGLE_FILE, BIN_FILE, INDEX_FILE, "model-00002-of-00003.bin"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, linked: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if linked.startswith("model-"):
        write_index(folder / BIN_INDEX_FILE, shards("bin"))
        touch(folder, shards("bin"))
        (folder / linked).unlink()
    write_index(tmp_path / "elsewhere", shards("safetensors"))
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"{linked} is a link out of the folder, to .*elsewhere"):
        find_weight_files(folder)


def test_links_of_the_hubs_cache_and_within_a_folder_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    touch(repository / "blobs", ["f00d"])
    (snapshot / SINGLE_FILE).symlink_to("../../blobs/f00d")
    assert find_weight_files(snapshot).files == (snapshot / SINGLE_FILE,)
    (tmp_path / "named").symlink_to(snapshot)
    assert find_weight_files(tmp_path / "named").files == (tmp_path / "named" / SINGLE_FILE,)
    (snapshot / SINGLE_FILE).unlink()
    touch(tmp_path, ["secret"])
    (snapshot / SINGLE_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="a link out of the folder"):
        find_weight_files(snapshot)
    downloaded = tmp_path / "downloaded"  # as older versions of `hf download --local-dir` did
    downloaded.mkdir()
    (downloaded / SINGLE_FILE).symlink_to(repository / "blobs" / "f00d")
    assert find_weight_files(downloaded).files == (downloaded / SINGLE_FILE,)
    within = tmp_path / "within"
    within.mkdir()
    touch(within, ["file"])
    (within / BIN_FILE).symlink_to("file")
    assert find_weight_files(within).files == (within / BIN_FILE,)


@pytest.mark.parametrize(
    "content", ["[]", '{"weight_map": 1}', '{"weight_map": {}}', "[" * 50_000 + "]" * 50_000, "\0"]
)
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(RunError, match="is not an index of weights"):
        find_weight_files(tmp_path)


def test_weights_by_other_names_are_told(tmp_path: Path) -> None:
    touch(tmp_path, ["consolidated.00.pth"])
    with pytest.raises(RunError, match=r"but consolidated\.00\.pth") as told:
        find_weight_files(tmp_path)
    assert BIN_FILE in told.value.remedy
