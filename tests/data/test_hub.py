"""Ids of the hub, each session in a process of its own: the libraries read settings only once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.hub_server import Hub, serving
from workbench.data.hub import choose_split, fetch_files
from workbench.errors import DataError

WAIT_SECONDS = 120

SESSION = """
import json, sys
from workbench.config.schema.data import SourceSection
from workbench.data.sources import open_source
from workbench.errors import DataError

assert "datasets" not in sys.modules, "imported before an id is named"
outcomes = []
for stated in json.loads(sys.argv[1]):
    try:
        source = open_source("set", SourceSection(**stated))
    except DataError as error:
        outcomes.append([error.where, error.what, error.remedy])
        continue
    rows = [row for part in source.parts for row in part.rows(0, part.num_rows)]
    outcomes.append([[row.where, row.value] for row in rows])
print(json.dumps(outcomes))
"""


def session(sources: list[dict[str, Any]], home: Path, **environment: str) -> list[Any]:
    """Open sources one after the other, and give the rows or the error of each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(sources)],
        env={**kept, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stderr, "the hub's library says so when it tries again and again"
    outcomes = json.loads(done.stdout)  # and not a line more: a worker answers there
    assert isinstance(outcomes, list)
    assert len(outcomes) == len(sources)
    return outcomes


def text_rows(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def write_talks(folder: Path) -> None:
    """Write a data set as the hub holds it: a card, two splits as tables, a list beside them."""
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", text_rows("a", "b", "c")), ("test", text_rows("d"))):
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n"
    )
    (folder / "more").mkdir()
    (folder / "more" / "talks.json").write_text('[{"text": "e"}, {"text": 5}]')


EXPECTED = [
    ["me/talks train row 1", {"text": "a"}],
    ["me/talks train row 2", {"text": "b"}],
    ["me/talks train row 3", {"text": "c"}],
]
# A number among texts: a table would refuse all of it, our own reader has it told by row.
EXPECTED_OF_FILE = [
    ["more/talks.json row 1", {"text": "e"}],
    ["more/talks.json row 2", {"text": 5}],
]
FILE = "more/talks.json"


def test_a_mirror_folder_stands_in_for_the_hub(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    write_talks(mirror / "datasets" / "me" / "talks")
    plain = mirror / "me" / "plain"
    plain.mkdir(parents=True)
    (plain / "one.jsonl").write_text('{"text": "f"}\n')
    (mirror / "me" / "odd").mkdir()
    (mirror / "me" / "odd" / "odd.jsonl").write_text('{"text": "g"}\n{"text": \n')
    mixed = mirror / "me" / "mixed"
    mixed.mkdir()
    (mixed / "mixed.jsonl").write_text(
        "\n".join(json.dumps({"messages": [{"content": content}]}) for content in ("h", ["i"], 5))
    )
    (mirror / "me" / "empty").mkdir()
    outcomes = session(
        [
            {"path": "me/talks"},
            {"path": "me/talks", "split": "test"},
            {"path": "me/talks", "files": [FILE]},
            {"path": "me/talks", "files": ["data/train-*"]},
            {"path": "me/plain", "files": ["one.jsonl"]},
            {"path": "me/talks", "split": "tset"},
            {"path": "me/talks", "files": ["more/talk.json"]},
            {"path": "me/talks", "files": [FILE], "split": "test"},
            {"path": "me/mixed"},
            {"path": "me/odd"},
            {"path": "me/empty"},
            {"path": "me/talk"},
        ],
        tmp_path / "home",
        WORKBENCH_HUB_MIRROR=str(mirror),
        HF_HUB_OFFLINE="1",
    )
    whole, test, file, pattern, plain_rows, *refused = outcomes
    assert whole == EXPECTED
    assert test == [["me/talks test row 1", {"text": "d"}]]
    assert file == EXPECTED_OF_FILE
    assert pattern == EXPECTED
    assert plain_rows == [["one.jsonl:1", {"text": "f"}]]
    no_split, no_file, split_of_file, mixed_rows, odd_rows, empty, absent = refused
    assert no_split == [
        "data.sources.set.split",
        "me/talks has no split 'tset', its splits are train, test",
        "set it to test",
    ]
    assert no_file[0] == "data.sources.set.files"
    assert no_file[1].startswith("me/talks has no file more/talk.json; it has README.md, data/test")
    assert no_file[2] == "did you mean more/talks.json?"
    assert split_of_file[0] == "data.sources.set.split"
    assert split_of_file[1] == "named files are one split, called train, and no 'test'"
    # The library keeps mixed types as JSON in text.
    assert [value["messages"][0]["content"] for _, value in mixed_rows] == ["h", ["i"], 5]
    assert odd_rows[1].startswith("me/odd cannot be read as a whole: ")
    assert odd_rows[2].startswith("name its .json, .jsonl or .parquet files under `files`")
    assert empty[1].startswith("me/empty holds no data that can be taken as a whole: ")
    assert f"not on this machine, in the mirror {mirror}, and the hub cannot" in absent[1]
    assert f"--local-dir {mirror}/me/talk` where" in absent[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_talks(tmp_path / "hub" / "me" / "talks")
    with serving(tmp_path / "hub") as server:
        yield server


def test_the_hub_is_asked_once_and_its_cache_does_offline(hub: Hub, tmp_path: Path) -> None:
    wanted: list[dict[str, Any]] = [{"path": "me/talks"}, {"path": "me/talks", "files": [FILE]}]
    fetched = session(wanted, tmp_path / "home", HF_ENDPOINT=hub.url)
    assert fetched == [EXPECTED, EXPECTED_OF_FILE]
    assert f"GET datasets/me/talks/resolve/main/{FILE}" in hub.requests
    assert not [request for request in hub.requests if "telemetry" in request]
    hub.requests.clear()
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        offline = {variable: "1", "HF_ENDPOINT": hub.url}
        again = session([*wanted, {"path": "me/other"}], tmp_path / "home", **offline)
        assert again[:2] == fetched
        assert again[2] == [
            "data.sources.set",
            "there is no file or folder me/other; as a data set of the hub it is not on this "
            "machine, and the hub cannot be reached from here",
            "correct the path; or run `hf download me/other --repo-type dataset --local-dir "
            "MIRROR/me/other` where the hub can be reached, and set WORKBENCH_HUB_MIRROR to that "
            "folder MIRROR",
        ]
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_asked_no_more_and_its_cache_does(tmp_path: Path) -> None:
    write_talks(tmp_path / "hub" / "me" / "talks")
    wanted: list[dict[str, Any]] = [{"path": "me/talks"}, {"path": "me/talks", "files": [FILE]}]
    others: list[dict[str, Any]] = [{"path": "me/other"}, {"path": "me/other", "files": [FILE]}]
    with serving(tmp_path / "hub") as hub:
        fetched = session(wanted, tmp_path / "home", HF_ENDPOINT=hub.url)
    again = session([*wanted, *others], tmp_path / "home", HF_ENDPOINT=hub.url)
    assert again[:2] == fetched
    for _, what, remedy in again[2:]:
        assert what.endswith("it is not on this machine, and the hub cannot be reached from here")
        assert remedy.startswith("correct the path; or run `hf download me/other ")


def test_what_the_hub_refuses_is_told_with_what_to_do(hub: Hub, tmp_path: Path) -> None:
    outcomes = session(
        [
            *({"path": "me/talk"}, {"path": "me/talk", "files": [FILE]}),
            *({"path": "gated/talks"}, {"path": "gated/talks", "files": [FILE]}),
            {"path": "me/talks", "files": ["more/talk.json"]},
        ],
        tmp_path / "home",
        HF_ENDPOINT=hub.url,
    )
    for where, what, remedy in outcomes[:2]:
        assert where == "data.sources.set"
        assert what == "there is no file or folder me/talk, and no data set of that name on the hub"
        assert remedy.startswith("correct the path; for a private data set")
    for _, what, remedy in outcomes[2:4]:
        assert what == "gated/talks is a gated data set, and access to it is not granted here"
        assert "set HF_TOKEN" in remedy
    assert outcomes[4][2] == "did you mean more/talks.json?"


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["train", "test"], None, "train"),
        (["train", "test"], "test", "test"),
        (["everything"], None, "everything"),
    ],
)
def test_a_split_is_the_one_asked_for_the_only_one_or_train(
    names: list[str], wanted: str | None, chosen: str
) -> None:
    assert choose_split(names, wanted, "me/talks", "data.sources.set") == chosen


def test_several_splits_without_train_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        choose_split(["dev", "eval"], None, "me/talks", "data.sources.set")
    assert caught.value.what == "me/talks has the splits dev, eval and none called train"
    assert caught.value.remedy == "choose one: data.sources.set.split: dev"


def test_a_mirror_that_is_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HUB_MIRROR", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="is no folder") as caught:
        fetch_files("me/talks", [FILE], "data.sources.set")
    assert caught.value.where == f"WORKBENCH_HUB_MIRROR={tmp_path / 'absent'}"
