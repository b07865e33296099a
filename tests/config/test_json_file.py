"""JSON that strangers wrote: read within bounds, or refused by name."""

import os
from pathlib import Path

import pytest

from workbench.config.json_file import check_plain_file, read_json_object
from workbench.errors import DataError, RunError


def test_an_object_is_read_and_an_absent_file_is_the_callers_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read_json_object(path, RunError)
    path.write_text('{"a": 1}')
    assert read_json_object(path, RunError) == {"a": 1}


def test_a_mistake_is_of_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    for kind in (RunError, DataError):
        with pytest.raises(kind, match="nested too deeply"):
            read_json_object(path, kind)


def test_a_file_may_be_as_large_as_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(bytes(100))
    check_plain_file(path, RunError, most_bytes=100)
    with pytest.raises(RunError, match="more than such a file can need"):
        check_plain_file(path, RunError, most_bytes=99)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(RunError, match="may not be read; check its permissions"):
        read_json_object(path, RunError)
