import gzip
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.config.schema.data import SourceSection
from workbench.data.raw_rows import Part, RawRow
from workbench.data.sources import Source, named_apart, open_source
from workbench.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path: Path, files: Sequence[str] = (), **more: str) -> Source:
    source = open_source("set", SourceSection(path=str(path), files=list(files), **more))  # type: ignore[arg-type]
    # Every part may be handed to another process.
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, Source)
    return again


def read(source: Source) -> list[RawRow]:
    return [row for part in source.parts for row in part.rows(0, part.num_rows)]


def write_json(file: Path, rows: object) -> Path:
    file.write_text(json.dumps(rows))
    return file


def refusal(path: Path, files: Sequence[str] = (), **more: str) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, files, **more)
    return caught.value


def message(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Hi {number}"}], "id": number}


# ---- JSON ------------------------------------------------------------------------------------


def test_a_json_list_numbers_its_rows(tmp_path: Path) -> None:
    file = write_json(tmp_path / "data.json", [{"text": "ä"}, {"text": "b"}])
    source = opened(file)
    assert source.num_rows == 2
    assert [(row.file, row.where, row.value) for row in read(source)] == [
        (file, "data.json row 1", {"text": "ä"}),
        (file, "data.json row 2", {"text": "b"}),
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines_carry_their_line_numbers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": 1}\r\n\n  \n{"text": 2}')
    assert [(row.where, row.value) for row in read(opened(tmp_path / name))] == [
        (f"{name}:1", {"text": 1}),
        (f"{name}:4", {"text": 2}),
    ]


def test_a_list_in_a_file_of_lines_is_read_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('[\n{"text":\n "a"},\n{"text": "b"}]\n')
    assert [(row.where, row.value) for row in read(opened(tmp_path / "data.jsonl"))] == [
        ("data.jsonl row 1", {"text": "a"}),
        ("data.jsonl row 2", {"text": "b"}),
    ]


def test_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(' {"text":\n "x"\n}\n')
    (row,) = read(opened(tmp_path / "data.json"))
    assert (row.where, row.value) == ("data.json row 1", {"text": "x"})


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_byte_order_mark_is_left_out_and_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"text": "\xc3\xbc"}\n')
    source = opened(tmp_path / name)
    assert [row.value for row in read(source)] == [{"text": "ü"}]
    (finding,) = source.findings
    assert (finding.severity, finding.where) == ("warning", name)
    assert finding.what == "begins with a byte order mark, which is left out"


def test_each_bad_line_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = (b'{"text": 1}', b'{"text": ', b'{"text": "\xff"}', b'{"text": "\0"}', b"[" * 99999)
    file.write_bytes(b"\n".join((*lines, b"{}\n")))
    rows = read(opened(file))
    assert [row.where for row in rows] == [f"data.jsonl:{line}" for line in range(1, 7)]
    assert [row.problem for row in rows] == [
        None,
        "is not JSON: expecting value but found the end at column 10",
        "is not UTF-8: byte 0xff",
        "contains a null byte",
        "is not JSON: nested too deeply",
        None,
    ]
    remedies = [row.remedy for row in rows]
    assert remedies == [None, None, *["save the file anew as UTF-8 text"] * 2, None, None]


def test_each_bad_row_of_a_list_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    rows = (
        *(b'{"text": "\xc3\xa4"}', b'{"text": "\xff"}', b'{"text": "a\0"}', b'{"text": "a\nb"}'),
        *(b'{"text": NaN}', b'{"text": "\\ud83d"}', b'{"text": "\xf0\x9f\x98\x80"}'),
    )
    file.write_bytes(b" [" + b" ,\n".join(rows) + b" ]\n")
    found = read(opened(file))
    assert [row.where for row in found] == [f"data.json row {number}" for number in range(1, 8)]
    assert [row.problem for row in found] == [
        None,
        "is not UTF-8: byte 0xff",
        "contains a null byte",
        "is not JSON: invalid control character at character 12",
        None,
        None,
        None,
    ]
    assert found[5].value == {"text": "\ud83d"}
    assert found[6].value == {"text": "\U0001f600"}


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b'[{"a": 1},\n{"a": 2 , }\n]', "data.json:2", "a comma behind the last entry at column 9"),
        (b'[{"a": [1, 2,\n]}]', "data.json:1", "a comma behind the last entry at column 13"),
        (b'[{"a": 1},\n]', "data.json:1", "a comma behind the last entry at column 10"),
        (b'[{"a": 1}\n{"a": 2}]', "data.json:1", "expecting ',' or ']' behind a row but found"),
        (b'[{"a": 1},\n{"a": x}]', "data.json:2", "expecting value but found 'x' at column 7"),
        (b'[{"a": 1}]\n[]', "data.json:2", "is not JSON: extra data at column 1"),
        (b'[{"a": 1},\n{"a": "x', "data.json:2", "unterminated string starting at column 7"),
        (b'[{"a": 1},\n{"a', "data.json:2", "unterminated string starting at column 2"),
        (b'[{"a": 1},\n', "data.json:2", "expecting value but found the end at column 1"),
        (b'[\n\n"\0" 1]', "data.json:3", "contains a null byte"),
        (b'{"a": ', "data.json:1", "expecting value but found the end at column 7"),
        (b'{"a": 1} x', "data.json:1", "is not JSON: extra data at column 10"),
        ("[]".encode("utf-16"), "data.json", "is encoded as UTF-16"),
        (b"3", "data.json", "is not a list of rows"),
        (b'"text"', "data.json", "is not a list of rows"),
        pytest.param(b"[" * 99999, "data.json", "is nested too deeply", id="deep"),
    ],
)
def test_a_list_whose_rows_cannot_be_told_apart_is_refused_with_its_line(
    tmp_path: Path, content: bytes, where: str, what: str
) -> None:
    (tmp_path / "data.json").write_bytes(content)
    error = refusal(tmp_path / "data.json")
    assert error.where == where
    assert what in error.what


@pytest.mark.parametrize("content", [b"", b"\n", b"[]", b"\xef\xbb\xbf", b" [ ] "])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_data_set_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "data.jsonl" and b"[" in content:
        content = b"\r\n \n"
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert (error.where, error.what) == (
        "data.sources.set",
        f"{tmp_path / name} holds no conversation",
    )


def test_an_empty_file_beside_others_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    write_json(tmp_path / "b.json", [message(1)])
    source = opened(tmp_path)
    assert source.num_rows == 1
    assert [(finding.where, finding.what) for finding in source.findings] == [
        ("a.json", "holds no rows")
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    texts=st.lists(JSON_VALUES, min_size=1, max_size=5),
    blanks=st.lists(st.text(" \t\r\n", max_size=3), min_size=4, max_size=4),
    escaped=st.booleans(),
    walked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rows_of_any_list_are_found_where_they_stand(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[object],
    blanks: list[str],
    escaped: bool,
    walked: bool,
) -> None:
    begin, before, behind, end = blanks
    rows = [json.dumps({"text": text}, ensure_ascii=escaped) for text in texts]
    if walked:  # a number that is none makes Python's reader walk the list
        rows.append('{"text": NaN}')
    file = tmp_path_factory.getbasetemp() / "any.json"
    content = f"{begin}[{before}" + f"{behind},{before}".join(rows) + f"{behind}]{end}"
    file.write_bytes(content.encode())
    found = read(opened(file))[: len(texts)]
    assert [row.value for row in found] == [{"text": text} for text in texts]


# ---- all kinds of parts ----------------------------------------------------------------------


def write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    return file


def parts_of_every_kind(folder: Path) -> Iterator[Part]:
    rows = [message(number) for number in range(1, 21)]
    lines = "\n".join(json.dumps(row) for row in rows)
    write_json(folder / "list.json", rows)
    (folder / "list.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (folder / "lines.jsonl").write_text(lines)
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_table(folder / "table.parquet", rows)
    return iter(opened(folder).parts)


def test_any_stretch_of_rows_of_any_kind_is_what_reading_all_gives(tmp_path: Path) -> None:
    parts = list(parts_of_every_kind(tmp_path))
    assert [part.label for part in parts] == [
        *("lines.jsonl", "lines.jsonl.gz", "list.json", "list.json.gz", "table.parquet")
    ]
    for part in parts:
        assert part.form == "messages"
        whole = list(part.rows(0, part.num_rows))
        assert len(whole) == 20
        assert [row.where for row in whole] == [part.where(number) for number in range(20)]
        for start, stop in ((0, 0), (0, 1), (6, 8), (7, 14), (3, 20), (19, 20)):
            assert list(part.rows(start, stop)) == whole[start:stop], part.label
        turns = [row.value["messages"] for row in whole]  # type: ignore[index]
        assert turns == [message(number)["messages"] for number in range(1, 21)]


def test_the_fingerprint_goes_by_content_and_not_by_name(tmp_path: Path) -> None:
    parts = {part.label: part.fingerprint() for part in parts_of_every_kind(tmp_path)}
    assert len(set(parts.values())) == 5
    copy = tmp_path / "copy.json"
    copy.write_bytes((tmp_path / "list.json").read_bytes())
    assert opened(copy).parts[0].fingerprint() == parts["list.json"]
    write_json(copy, [message(1)])
    assert opened(copy).parts[0].fingerprint() != parts["list.json"]


def test_a_file_that_vanishes_is_an_error_with_its_name(tmp_path: Path) -> None:
    part = opened(write_json(tmp_path / "data.json", [message(1)])).parts[0]
    (tmp_path / "data.json").unlink()
    for read_again in (lambda: list(part.rows(0, 1)), part.fingerprint):
        with pytest.raises(DataError, match="cannot be read: No such file") as caught:
            read_again()
        assert caught.value.where == str(tmp_path / "data.json")


def test_a_large_list_is_cut_into_rows_without_being_parsed(tmp_path: Path) -> None:
    # Row 2 would cost the parser its depth; the others are read, and only its own reading fails.
    rows = ['{"text": 1}', '{"text": ' + "[" * 900 + "]" * 900 + "}", '{"text": 3}']
    (tmp_path / "data.json").write_text(f"[{','.join(rows)}]")
    found = read(opened(tmp_path / "data.json"))
    assert [row.problem for row in found][::2] == [None, None]
    assert len(found) == 3


# ---- Parquet ---------------------------------------------------------------------------------


def test_a_null_in_a_table_is_a_key_that_is_not_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"system": None, "conversations": [{"from": "gpt", "value": "A", "train": None}]},
        {"system": "S", "conversations": [{"from": "gpt", "value": None, "train": False}, None]},
        {"system": None, "conversations": None},
    ]
    file = write_table(tmp_path / "data.parquet", rows)
    assert [row.value for row in read(opened(file))] == [
        {"conversations": [{"from": "gpt", "value": "A"}]},
        {"system": "S", "conversations": [{"from": "gpt", "train": False}, None]},
        {},
    ]


def test_a_table_is_read_only_where_its_form_needs_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "A", "output": "B", "text": "A B", "image": b"\0" * 99}
    ]
    (row,) = read(opened(write_table(tmp_path / "data.parquet", rows)))
    assert row.value == {"instruction": "A", "output": "B"}
    (row,) = read(opened(tmp_path / "data.parquet", format="text"))
    assert row.value == {"text": "A B"}


def test_turns_as_an_object_of_lists_become_a_list_of_turns(tmp_path: Path) -> None:
    turns = {"from": ["human", "gpt"], "value": ["A", "B"]}
    rows: list[dict[str, Any]] = [{"conversations": turns}]
    (row,) = read(opened(write_table(tmp_path / "data.parquet", rows)))
    assert row.value == {
        "conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]
    }


def test_a_text_in_a_table_that_is_no_utf_8_is_told_by_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"caf\xe9", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "data.parquet")
    rows = read(opened(tmp_path / "data.parquet"))
    assert [(row.where, row.problem) for row in rows] == [
        ("data.parquet row 1", None),
        ("data.parquet row 2", "is not UTF-8: byte 0xe9"),
        ("data.parquet row 3", None),
    ]


def test_a_table_without_the_columns_of_a_form_names_those_it_has(tmp_path: Path) -> None:
    file = write_table(tmp_path / "data.parquet", [{"prompt": "A", "answer": "B"}])
    error = refusal(file)
    assert error.where == "data.parquet"
    assert error.what.endswith("'text'; its columns are 'prompt', 'answer'")
    assert "has no column 'text' (text)" in refusal(file, format="text").what
    file.write_bytes(b"PAR1 is not all there is")
    assert refusal(file).what == "does not begin and end as a Parquet file does"
    file.write_bytes(b"PAR1 and nothing that a table has PAR1")
    assert "is no readable table" in refusal(file).what


# ---- plain texts and packed files ------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes("\ufeffOnce upon\n\na time.\r\n".encode())
    (tmp_path / "two.txt").write_text("Twice")
    source = opened(tmp_path)
    assert [(part.form, part.num_rows) for part in source.parts] == [("text", 1)] * 2
    assert [(row.where, row.value) for row in read(source)] == [
        ("one.txt", {"text": "Once upon\n\na time.\r\n"}),
        ("two.txt", {"text": "Twice"}),
    ]
    assert [finding.where for finding in source.findings] == ["one.txt"]
    assert list(source.parts[0].rows(1, 1)) == []
    assert "is a plain text" in refusal(tmp_path / "two.txt", format="messages").what


def test_a_text_that_is_no_utf_8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"ol\xc3\xa9\ncaf\xe9")
    (row,) = read(opened(tmp_path / "one.txt"))
    assert row.problem == "is not UTF-8: byte 0xe9 in line 2"


def test_packed_files_are_unpacked_once_for_each_content(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert [row.where for row in read(opened(file))] == ["data.jsonl.gz:1"]
    (unpacked,) = (tmp_path / "cache" / "workbench" / "unpacked").iterdir()
    assert unpacked.read_bytes() == b'{"text": "a"}\n'
    digest = hashlib.sha256(file.read_bytes()).digest()
    assert unpacked.name == hashlib.sha256(digest).hexdigest()
    unpacked.write_bytes(b'{"text": "from the cache"}\n')
    assert [row.value for row in read(opened(file))] == [{"text": "from the cache"}]


def test_what_was_unpacked_long_ago_goes_when_another_file_is_unpacked(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "b.txt.gz", "c.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(name.encode()))
    opened(tmp_path, ["a.txt.gz", "b.txt.gz"])
    unpacked = tmp_path / "cache" / "workbench" / "unpacked"
    assert len(list(unpacked.iterdir())) == 2
    for path in unpacked.iterdir():
        os.utime(path, (1e9, 1e9))
    opened(tmp_path, ["a.txt.gz", "c.txt.gz"])  # a is used again
    assert {path.read_text() for path in unpacked.iterdir()} == {"a.txt.gz", "c.txt.gz"}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda packed: packed[:-9], "is a damaged gzip file"),
        (lambda packed: b"[]" + packed, "is no whole gzip file"),
        (lambda packed: packed[:15] + b"\xff\xff" + packed[17:], "is a damaged gzip file"),
    ],
)
def test_a_packed_file_that_is_broken_leaves_nothing_in_the_cache(
    tmp_path: Path, spoil: Callable[[bytes], bytes], what: str
) -> None:
    file = tmp_path / "data.json.gz"
    file.write_bytes(spoil(gzip.compress(json.dumps([message(1)]).encode())))
    error = refusal(file)
    assert error.where == "data.json.gz"
    assert what in error.what
    assert not list((tmp_path / "cache" / "workbench" / "unpacked").iterdir())


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(b"[]"))
    error = refusal(tmp_path / "data.json.gz")
    assert error.where == str(tmp_path / "file" / "workbench" / "unpacked")
    assert "data.json.gz cannot be unpacked here: Not a directory" in error.what


# ---- which files -----------------------------------------------------------------------------


def test_a_folder_gives_its_files_by_name_or_those_asked_for(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.json", "deep/c.json", "README.md", "README.txt"):
        write_json(tmp_path / name, message(1))
    source = opened(tmp_path)
    assert [part.label for part in source.parts] == ["a.json", "b.jsonl"]
    assert [finding.what for finding in source.findings] == [
        "README.txt is passed over, beside files with rows"
    ]
    named = opened(tmp_path, ["deep/c.json", "README.txt", "b.jsonl"])
    assert [part.label for part in named.parts] == ["deep/c.json", "README.txt", "b.jsonl"]
    assert [part.form for part in named.parts] == ["messages", "text", "messages"]


def test_missing_files_are_named_with_what_is_near(tmp_path: Path) -> None:
    assert refusal(tmp_path).what.startswith("holds no file ending in .json, .jsonl, .parquet")
    write_json(tmp_path / "talks.json", [message(1)])
    absent = refusal(tmp_path / "talk.json")
    assert (absent.what, absent.remedy) == (
        "there is no such file or folder",
        "did you mean talks.json?",
    )
    assert refusal(tmp_path / "nowhere" / "talk.json").remedy == "check data.sources"
    error = refusal(tmp_path, ["x.json", "talks.json", "y.json"])
    assert error.what == "does not hold x.json, y.json"
    assert "no files within it" in refusal(tmp_path / "talks.json", ["a.json"]).what
    (tmp_path / "talks.csv").write_text("a,b")
    assert "is of no kind that can be read" in refusal(tmp_path / "talks.csv").what
    assert "is of no kind that can be read" in refusal(tmp_path, ["talks.csv"]).what


def test_all_files_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [message(1)])
    for name, content in (("b.json", "[1,]"), ("c.json", "nothing"), ("d.parquet", "")):
        (tmp_path / name).write_text(content)
    error = refusal(tmp_path)
    assert error.where == "b.json:1"
    assert error.what == (
        "is not JSON: a comma behind the last entry at column 3 (c.json:1, d.parquet are no better)"
    )


def test_files_of_one_name_in_several_data_sets_are_named_with_their_data_set(
    tmp_path: Path,
) -> None:
    sources = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for file in ("train.json", f"only_{name}.json"):
            write_json(tmp_path / name / file, [message(1)])
        marked = tmp_path / name / "train.json"
        marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
        sources.append(open_source(name, SourceSection(path=str(tmp_path / name))))
    apart = named_apart(sources)
    assert [[part.where(0) for part in source.parts] for source in apart] == [
        ["only_x.json row 1", "x/train.json row 1"],
        ["only_y.json row 1", "y/train.json row 1"],
    ]
    assert [source.findings[0].where for source in apart] == ["x/train.json", "y/train.json"]
    assert named_apart(sources[:1]) == sources[:1]


def test_only_a_data_set_of_the_hub_has_splits(tmp_path: Path) -> None:
    file = write_json(tmp_path / "data.json", [message(1)])
    error = refusal(file, split="test")
    assert (error.where, error.what) == (
        "data.sources.set.split",
        "only a data set of the hub has splits, and this is a path",
    )


# ---- the form --------------------------------------------------------------------------------


def test_the_form_is_that_of_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"messages": \n{"text": "a"}\n{"messages": []}\n')
    assert opened(file).parts[0].form == "text"
    assert opened(file, format="alpaca").parts[0].form == "alpaca"
    file.write_text('{"messages": \n')
    assert opened(file).parts[0].form == "sharegpt"


def test_a_row_of_no_known_form_names_its_keys(tmp_path: Path) -> None:
    error = refusal(write_json(tmp_path / "data.json", {"data": [message(1)], "version": 1}))
    assert error.where == "data.json row 1"
    assert error.what.startswith("has none of the keys 'conversations' (ShareGPT), 'messages'")
    assert error.what.endswith("its keys are 'data', 'version'")
    assert error.remedy == "correct the row, or state data.sources.set.format"
    for rows, what in (([7], "is a number, not an object with"), ([{}], "is an empty object")):
        assert refusal(write_json(tmp_path / "data.json", rows)).what.startswith(what)
