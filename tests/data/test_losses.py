from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_data import config_of, findings_of, row, run
from workbench.data.packing import MIN_PACKED_TOKENS

WHOLE = [1.0, 1.0]


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def told(
    rows: Sequence[object], folder: Path, **data: object
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Give what is found in the data as a whole, and row by row."""
    config = config_of(folder, rows, **{"split_at": WHOLE, "packing": "none", **data})
    found = findings_of(config, folder)
    assert {finding.severity for finding in found} <= {"warning"}
    of_rows = {each.where: each.what for each in found if each.where.startswith("data.json")}
    of_all = [(each.where, each.what) for each in found if each.where not in of_rows]
    assert len(of_all) + len(of_rows) == len(found), "each row once"
    return of_all, of_rows


def two_answers() -> dict[str, object]:
    turns = row("First of two answers.")["conversations"]
    return {"conversations": turns + row("And the second one.", question="More?")["conversations"]}


def test_each_cut_row_is_told_with_its_tokens_and_what_it_loses(chatml_folder: Path) -> None:
    conversation = two_answers()
    whole = run(config_of(chatml_folder, [conversation], split_at=WHOLE), chatml_folder).train[0]
    size = whole.ids.size
    trained = np.flatnonzero(whole.targets)
    second = int(trained[np.flatnonzero(np.diff(trained) > 1)[-1] + 1])
    answer = "with the end of an answer and its stop token"
    for max_length, loses in (
        (int(trained[-1]), answer),  # the stop token alone
        (second + 1, answer),
        (second, "with all of the answers in them"),
        (int(trained[0]) + 1, answer),
        (int(trained[-1]) + 1, "none of them trained"),
    ):
        found = told([conversation], chatml_folder, max_length=max_length)
        cut = size - max_length
        of_all = f"1 of 1 training conversations are longer than {max_length} tokens"
        assert found == (
            [("data.max_length", f"{of_all}; {cut} tokens are cut off")],
            {"data.json row 1": f"has {size} tokens; the last {cut} are cut off, {loses}"},
        )
    assert told([conversation], chatml_folder, max_length=size) == ([], {})


def test_a_row_that_is_dropped_is_not_told_as_cut(chatml_folder: Path) -> None:
    rows = [row(), row("Yes.", question="long " * 60), row("long " * 60)]
    of_all, of_rows = told(rows, chatml_folder)
    assert [what.split(";")[0] for _, what in of_all] == [
        "2 of 3 training conversations are longer than 64 tokens",
        "1 of 3 training conversations have nothing to train within 64 tokens and are dropped",
    ]
    assert list(of_rows) == ["data.json row 3", "data.json row 2"]
    assert of_rows["data.json row 2"].startswith("has nothing to train in the first 64 of its ")
    assert of_rows["data.json row 2"].endswith(" tokens, and is dropped")
    assert "are cut off, with the end of an answer" in of_rows["data.json row 3"]


def test_pieces_of_a_row_that_are_dropped_are_told_together(chatml_folder: Path) -> None:
    rows = [row("Yes. " * 50, question="long " * 140), row("A", question="B"), row("go " * 40)]
    config = config_of(chatml_folder, rows, split_at=WHOLE, max_length=4096)
    train = run(config, chatml_folder).train
    first, second, third = (each.ids.size for each in train)
    max_length = third - 3
    num_dropped = int(train[0].targets.argmax()) // max_length * max_length
    assert num_dropped > max_length, "two pieces hold the question alone"
    _, of_rows = told(
        rows, chatml_folder, overlong="split", packing="best_fit", max_length=max_length
    )
    assert second < MIN_PACKED_TOKENS
    dropped = f"dropped: fewer than {MIN_PACKED_TOKENS} are no document"
    assert of_rows == {
        "data.json row 1": f"has nothing to train in the first {num_dropped} of its {first} "
        "tokens, which are dropped",
        "data.json row 2": f"its {second} tokens are {dropped}",
        "data.json row 3": f"the last 3 of its {third} tokens are {dropped}",
    }


def test_a_text_that_is_cut_loses_its_end(chatml_folder: Path) -> None:
    _, of_rows = told([{"text": "long " * 80}], chatml_folder)
    (what,) = of_rows.values()
    assert what.endswith("are cut off, the end of its text")


def test_validation_rows_are_told_as_such(chatml_folder: Path) -> None:
    rows = [row(), row("long " * 60)]
    of_all, of_rows = told(rows, chatml_folder, split_at=[0.5, 1.0])
    assert [what[:48] for _, what in of_all] == ["1 of 1 validation conversations are longer than "]
    assert list(of_rows) == ["data.json row 2"]
