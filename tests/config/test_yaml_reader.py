"""The rules of YAML 1.2, and every kind of text that is no config."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.config.yaml_reader import (
    Stated,
    StatedMapping,
    UnreadableValueError,
    plain,
    read_file,
    read_text,
    read_value,
    write_scalar,
)

ASSETS = Path(__file__).parent.parent / "assets" / "config"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("4.0e-6", 4e-6),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("-1", -1),
        ("+7", 7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2025-10-01", "2025-10-01"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"no"', "no"),
        ("[1, no, 1e-5]", [1, "no", 1e-5]),
        ("{a: 1}", {"a": 1}),
        ("~/models", "~/models"),
        ("1e-5x", "1e-5x"),
    ],
)
def test_a_plain_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.INF", "1e999", "[", "a: b: c", "9" * 5000])
def test_a_value_that_cannot_be_read_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_value(text)


def test_a_number_that_cannot_be_read_is_not_asked_to_be_quoted_alone() -> None:
    with pytest.raises(UnreadableValueError) as caught:
        read_value(".inf")
    assert caught.value.remedy == "give a number, or quote it as text"


def test_a_tag_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, problems = read_file(ASSETS / "tags.yaml")
    assert problems
    assert list(tmp_path.iterdir()) == []


def test_every_key_knows_its_line() -> None:
    stated, problems = read_text(
        "# first\nmodel:\n  path: /m\n\n  dtype: float32\nbatch: {train: 3}\n"
    )
    assert not problems
    model, batch = stated.entries["model"], stated.entries["batch"]
    assert isinstance(model, StatedMapping)
    assert isinstance(batch, StatedMapping)
    assert model.line == 2
    assert model.entries["path"] == Stated("/m", 3)
    assert model.entries["dtype"] == Stated("float32", 5)
    assert batch.entries["train"] == Stated(3, 6)


@pytest.mark.parametrize("text", ["", "# nothing but words\n", "---\n", "{}"])
def test_an_empty_file_states_nothing(text: str) -> None:
    assert read_text(text) == (StatedMapping({}, 1), [])


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbfmodel:\r\n  path: /m\r\n")
    stated, problems = read_file(file)
    assert not problems
    assert plain(stated) == {"model": {"path": "/m"}}


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_a_mistake_and_no_crash(opening: str) -> None:
    _, problems = read_text("data: " * (opening != "- ") + opening * 3000)
    assert len(problems) == 1
    assert "levels deep" in problems[0].what


def test_a_folder_and_a_huge_file_cannot_be_read_as_configs(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    for path, what in ((tmp_path, "cannot be read"), (large, "larger than 1 MiB")):
        _, problems = read_file(path)
        assert [what in problem.what for problem in problems] == [True]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 63) - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"]))
        | st.sampled_from(
            ["1e-5", "no", "null", "0o7", "- a", "a: b", "#", "~", "<<", "--- a", "."]
        ),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
)
def test_what_is_written_reads_as_the_same_value(value: object) -> None:
    read = read_value(write_scalar(value))
    assert read == value
    assert type(read) is type(value)


@given(st.text(st.sampled_from("ab1-:#&*!|>'\"[]{},?%@`~ \n\t.e_\\é\x00\ud800"), max_size=40))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    stated, problems = read_text(text)
    assert problems or isinstance(stated, StatedMapping)
    assert all(problem.what and problem.remedy for problem in problems)


def test_numbers_are_written_so_that_older_readers_see_numbers_too() -> None:
    assert write_scalar(4e-6) == "4.0e-06"
    assert write_scalar(1e22) == "1.0e+22"
    assert write_scalar("no") == '"no"'
    assert math.isclose(float(write_scalar(0.1)), 0.1)
