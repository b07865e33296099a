import json
from pathlib import Path

import pytest

from workbench.data.sources import read_rows, source_files
from workbench.errors import DataError


def test_a_json_list_numbers_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert [(row.where, row.value) for row in read_rows(file)] == [
        ("data.json row 1", {"a": 1}),
        ("data.json row 2", {"a": 2}),
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines_carry_their_line_numbers(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b'{"a": 1}\r\n\n{"a": 2}\n')
    assert [(row.where, row.value) for row in read_rows(file)] == [
        (f"{name}:1", {"a": 1}),
        (f"{name}:3", {"a": 2}),
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_byte_order_mark_is_tolerated(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xbc"}\n')
    assert [row.value for row in read_rows(file)] == [{"a": "ü"}]


def test_each_bad_line_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": "\0"}\n' + b"[" * 99999 + b"\n{}\n")
    rows = list(read_rows(file))
    assert [row.where for row in rows] == [f"data.jsonl:{line}" for line in range(1, 7)]
    problems = [row.problem for row in rows]
    assert problems[0] is None
    assert problems[5] is None
    assert "is not JSON: Expecting value at column 7" in (problems[1] or "")
    assert problems[2] == "is not UTF-8: byte 0xff"
    assert problems[3] == "contains a null byte"
    assert "nested too deeply" in (problems[4] or "")


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b'[{"a": 1},\n{"a": 2,}\n]', "data.json:2", "is not JSON"),
        (b'[\n"\xff"]', "data.json:2", "is not UTF-8: byte 0xff"),
        (b'[\n\n"\0"]', "data.json:3", "contains a null byte"),
        ("[]".encode("utf-16"), "data.json", "is encoded as UTF-16"),
        (b"3", "data.json", "is not a list"),
        (b"[" * 99999, "data.json", "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, content: bytes, where: str, what: str
) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        list(read_rows(file))
    assert caught.value.where.endswith(where)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("data.json", "data.jsonl"):
        (tmp_path / name).write_bytes(b"\n")
        assert list(read_rows(tmp_path / name)) == []


def test_a_folder_gives_its_files_by_name_or_those_asked_for(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [file.name for file in source_files(tmp_path, [])] == ["a.json", "b.jsonl"]
    assert source_files(tmp_path, ["b.jsonl"]) == [tmp_path / "b.jsonl"]
    assert source_files(tmp_path / "a.json", []) == [tmp_path / "a.json"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        source_files(tmp_path / "absent", [])
    with pytest.raises(DataError, match="holds no file ending in"):
        source_files(tmp_path, [])
    with pytest.raises(DataError, match=r"does not hold x\.json, y\.json"):
        source_files(tmp_path, ["x.json", "y.json"])
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="no files within it"):
        source_files(tmp_path / "a.json", ["a.json"])
