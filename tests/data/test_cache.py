import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.data.small_data import config_of, row, rows_of, run
from workbench.config.schema.config import Config
from workbench.config.schema.data import SourceSection
from workbench.config.template_source import template_source
from workbench.data import cache, tokenized
from workbench.data.findings import Findings
from workbench.data.packing import Rows
from workbench.data.prepare import PreparedData, find_prepared, prepare_in_steps
from workbench.data.tokenized import finish, make_key, open_inputs
from workbench.errors import DataError

WAIT_SECONDS = 60
DAY = 86400.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own: the folder of its entries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "workbench" / "data"


def entries(folder: Path) -> list[str]:
    """Name what lies in the cache, the lock aside."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def content(rows: Rows) -> Iterator[tuple[list[int], list[bool], list[int], tuple[str, ...]]]:
    for index, each in enumerate(rows):
        yield (
            each.ids.tolist(),
            each.targets.tolist(),
            each.document_starts.tolist(),
            rows.where(index),
        )


def told(prepared: PreparedData) -> list[object]:
    """Give everything that prepared data says but where it came from."""
    return [
        list(content(prepared.train)),
        list(content(prepared.validation)),
        prepared.num_conversations,
        list(prepared.findings),
        prepared.pad_id,
        prepared.stop_ids,
        prepared.lengths_train.tolist(),
        prepared.lengths_validation.tolist(),
    ]


def odd_rows() -> list[object]:
    rows = rows_of(40)
    rows[3] = {"conversations": []}
    rows[7] = row("long " * 100)
    rows[9] = rows[8]
    rows[11] = row("I say <|im_end|> aloud.")
    return rows


# ---- found again -----------------------------------------------------------------------------


def test_what_is_found_equals_what_was_made(chatml_folder: Path) -> None:
    config = config_of(chatml_folder, odd_rows(), packing="best_fit", skip_bad_rows=True)
    made, found = run(config, chatml_folder), run(config, chatml_folder)
    assert (made.was_cached, found.was_cached) == (False, True)
    assert made.cache == found.cache
    assert told(made) == told(found)
    assert len(list(made.findings)) >= 4
    assert made.train.tokens.ids.dtype == found.train.tokens.ids.dtype == np.int32


def test_rows_and_tokens_that_are_mapped_cannot_be_changed(chatml_folder: Path) -> None:
    prepared = run(config_of(chatml_folder, rows_of(20)), chatml_folder)
    with pytest.raises(ValueError, match="read-only"):
        prepared.train.tokens.ids[0] = 0


def test_errors_are_found_again_too(chatml_folder: Path) -> None:
    config = config_of(chatml_folder, odd_rows())
    for _ in range(2):
        with pytest.raises(DataError, match="row 4"):
            run(config, chatml_folder)


def test_only_what_is_there_is_given_without_making_it(chatml_folder: Path, folder: Path) -> None:
    config = config_of(chatml_folder, rows_of(20))
    template = template_source("chatml", chatml_folder)
    assert find_prepared(config, chatml_folder, template) is None
    assert entries(folder) == []
    made = run(config, chatml_folder)
    found = find_prepared(config, chatml_folder, template)
    assert found is not None
    assert found.was_cached
    assert told(found) == told(made)


def test_cutting_and_packing_tokenize_nothing_anew(chatml_folder: Path, folder: Path) -> None:
    rows = rows_of(40)
    config = config_of(chatml_folder, rows)
    assert not run(config, chatml_folder).was_cached
    for changes in (
        {"max_length": 32},
        {"packing": "best_fit"},
        {"overlong": "split"},
        {"pad_to": "context"},
        {"shuffle": False},
        {"num_workers": 0},
    ):
        data = msgspec.structs.replace(config.data, **changes)
        assert run(msgspec.structs.replace(config, data=data), chatml_folder).was_cached
    assert len(entries(folder)) == 1


# ---- the key ---------------------------------------------------------------------------------


def key_of(config: Config, folder: Path, template: str = "chatml") -> str:
    source = template_source(template, folder) if template == "chatml" else template
    inputs = finish(open_inputs(config.data, folder, source, Findings()))
    return finish(make_key(inputs))


def replaced(config: Config, **changes: object) -> Config:
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, **changes))


def source_of(config: Config, **changes: object) -> Config:
    section = config.data.sources["data"]
    assert section is not None
    return replaced(config, sources={"data": msgspec.structs.replace(section, **changes)})


def test_the_key_changes_with_everything_that_tokens_and_findings_depend_on(
    chatml_folder: Path,
) -> None:
    rows: list[object] = [*rows_of(19), {"messages": [{"role": "user", "content": "?"}]}]
    config = config_of(chatml_folder, rows)
    keys = [key_of(config, chatml_folder)]
    keys.append(key_of(config, chatml_folder, "{{ messages[0].content }}"))
    keys += [
        key_of(changed, chatml_folder)
        for changed in (
            replaced(config, targets="last"),
            replaced(config, roles={"narrator": "system"}),
            replaced(config, skip_bad_rows=True),
            replaced(config, split_at=[0.5, 0.95]),
            source_of(config, format="messages"),
            replaced(config, sources={**config.data.sources, "again": config.data.sources["data"]}),
        )
    ]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (chatml_folder / name).read_text()
        (chatml_folder / name).write_text(text + "\n")
        keys.append(key_of(config, chatml_folder))
    (chatml_folder / "special_tokens_map.json").write_text("{}")
    keys.append(key_of(config, chatml_folder))
    (chatml_folder.parent / "data.json").write_text(json.dumps(rows[::-1]))
    keys.append(key_of(config, chatml_folder))
    assert len(set(keys)) == len(keys) == 12


def test_the_key_changes_with_nothing_else(chatml_folder: Path, tmp_path: Path) -> None:
    config = config_of(chatml_folder, rows_of(20))
    key = key_of(config, chatml_folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    data = (tmp_path / "data.json").read_bytes()
    (elsewhere / "data.json").write_bytes(data)
    os.utime(tmp_path / "data.json", (1.0, 1.0))
    (chatml_folder / "config.json").write_text("{}")
    section = config.data.sources["data"]
    for same in (
        config,
        source_of(config, path=str(elsewhere / "data.json")),
        source_of(config, weight=0.5),
        source_of(config, format="sharegpt"),
        replaced(config, sources={"another name": section, "dropped": None}),
        replaced(config, max_length=32, packing="greedy", overlong="split", pad_to="context"),
        replaced(config, shuffle=False, num_workers=5, chat_template="whatever"),
    ):
        assert key_of(same, chatml_folder) == key


def test_another_rule_for_tokens_is_another_key_and_another_order_is_not(tmp_path: Path) -> None:
    package = Path(tokenized.__file__).parent
    copy = tmp_path / "data"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    same = tokenized.hash_code(package)
    for name in ("loader", "packing", "batch", "preview"):
        (copy / f"{name}.py").write_text("# another\n")
        assert tokenized.hash_code(copy) == same
    for name in ("formats", "chat_template", "encoding", "token_store", "tokenizer"):
        assert (copy / f"{name}.py").is_file()
        (copy / f"{name}.py").write_text("# another\n")
        assert tokenized.hash_code(copy) != same
        same = tokenized.hash_code(copy)
    assert all((package / f"{name}.py").is_file() for name in tokenized._BEHIND_THE_TOKENS)


def test_a_template_that_writes_the_date_is_rendered_anew_every_day(
    chatml_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow:
        def __format__(self, form: str) -> str:
            return "2999-01-01"

    class Clock:
        @staticmethod
        def now() -> Tomorrow:
            return Tomorrow()

    config = config_of(chatml_folder, rows_of(20))
    dated = "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}"
    today = [key_of(config, chatml_folder, template) for template in ("chatml", dated)]
    monkeypatch.setattr("workbench.data.tokenized.datetime", Clock)
    tomorrow = [key_of(config, chatml_folder, template) for template in ("chatml", dated)]
    assert today[0] == tomorrow[0]
    assert today[1] != tomorrow[1]


# ---- entries that cannot be used -------------------------------------------------------------


def truncate(entry: Path) -> None:
    os.truncate(entry / "train" / "ids", 4)


def remove_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def garble_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_bytes(b"\xff{")


def make_foreign(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps({**manifest, "key": "0" * 32}))


def garble_findings(entry: Path) -> None:
    size = (entry / "findings.json").stat().st_size
    (entry / "findings.json").write_bytes(b"x" * size)


def mix_up_files(entry: Path) -> None:
    size = (entry / "train" / "offsets").stat().st_size
    (entry / "train" / "offsets").write_bytes(bytes(size))


def put_a_file_there(entry: Path) -> None:
    entry.rename(entry.with_name("aside"))
    entry.write_text("not an entry")


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        remove_manifest,
        garble_manifest,
        make_foreign,
        garble_findings,
        mix_up_files,
        put_a_file_there,
    ],
)
def test_an_entry_that_cannot_be_used_is_made_anew(
    chatml_folder: Path, harm: Callable[[Path], None]
) -> None:
    config = config_of(chatml_folder, odd_rows(), skip_bad_rows=True)
    made = run(config, chatml_folder)
    assert made.cache is not None
    expected = told(made)
    harm(made.cache)
    again = run(config, chatml_folder)
    assert not again.was_cached
    assert told(again) == expected
    assert run(config, chatml_folder).was_cached


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    chatml_folder: Path, folder: Path
) -> None:
    config = config_of(chatml_folder, rows_of(20))
    file = chatml_folder.parent / "data.json"
    steps = prepare_in_steps(config, chatml_folder, template_source("chatml", chatml_folder))
    assert any(getattr(item, "stage", "") == "tokenizing" for item in steps)
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(steps)
    assert entries(folder) == []


# ---- several processes, and their ends -------------------------------------------------------

CHILD = """
import hashlib, json, sys
from pathlib import Path
import msgspec
from workbench.config.schema.config import Config
from workbench.data.prepare import PreparedData, prepare_in_steps
request = json.loads(sys.stdin.readline())
config = msgspec.convert(request["config"], Config)
waits = True
for item in prepare_in_steps(config, Path(request["folder"]), request["template"]):
    if isinstance(item, PreparedData):
        print(hashlib.sha256(item.train.tokens.ids.tobytes()).hexdigest(), flush=True)
    elif waits and item.stage == "tokenizing" and item.done:
        waits = False
        print("filling", flush=True)
        sys.stdin.readline()
"""


def request_of(config: Config, folder: Path) -> str:
    return json.dumps(
        {
            "config": msgspec.to_builtins(config),
            "folder": str(folder),
            "template": template_source("chatml", folder),
        }
    )


class Child:
    """A process that stops in the middle of filling the cache until it is told to go on."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.say(request_of(config, folder))
        assert self.hear() == "filling"

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_SECONDS)


def test_a_filler_that_is_killed_leaves_what_the_next_one_removes(
    chatml_folder: Path, folder: Path
) -> None:
    config = config_of(chatml_folder, rows_of(40))
    with Child(config, chatml_folder) as child:
        (partial,) = entries(folder)
        assert partial.endswith(".partial")
        # Whoever fills another key meanwhile leaves it alone.
        other = replaced(config, targets="last")
        assert not run(other, chatml_folder).was_cached
        assert partial in entries(folder)
        child.process.kill()
        child.process.wait(WAIT_SECONDS)
    assert partial in entries(folder)
    prepared = run(config, chatml_folder)
    assert not prepared.was_cached
    assert entries(folder) == sorted([key_of(config, chatml_folder), key_of(other, chatml_folder)])
    assert told(run(config, chatml_folder)) == told(prepared)


def test_two_processes_that_fill_the_same_key_end_with_one_good_entry(
    chatml_folder: Path, folder: Path
) -> None:
    config = config_of(chatml_folder, rows_of(40))
    with Child(config, chatml_folder) as one, Child(config, chatml_folder) as other:
        assert len(entries(folder)) == 2
        for child in (one, other):
            child.say("")
        hashes = {child.hear() for child in (one, other)}
        assert {child.process.wait(WAIT_SECONDS) for child in (one, other)} == {0}
    assert entries(folder) == [key_of(config, chatml_folder)]
    prepared = run(config, chatml_folder)
    assert prepared.was_cached
    assert hashes == {hashlib.sha256(prepared.train.tokens.ids.tobytes()).hexdigest()}


def test_steps_that_nobody_goes_on_with_leave_nothing(chatml_folder: Path, folder: Path) -> None:
    config = config_of(chatml_folder, rows_of(20))
    steps = prepare_in_steps(config, chatml_folder, template_source("chatml", chatml_folder))
    assert any(getattr(item, "stage", "") == "tokenizing" for item in steps)
    assert len(entries(folder)) == 1
    steps.close()  # type: ignore[attr-defined]
    assert entries(folder) == []


# ---- where it cannot be written --------------------------------------------------------------


@pytest.mark.parametrize("cache_home", ["/dev/null", ""])
def test_without_a_cache_the_temporary_folder_serves_and_is_left_empty(
    chatml_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_home: str
) -> None:
    config = config_of(chatml_folder, odd_rows(), skip_bad_rows=True)
    expected = told(run(config, chatml_folder))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    monkeypatch.setenv("HOME", "/dev/null")
    prepared = run(config, chatml_folder)
    assert (prepared.cache, prepared.was_cached) == (None, False)
    assert list(temporary.iterdir()) == []
    (warning,) = (finding for finding in prepared.findings if "cannot be kept" in finding.what)
    assert warning.severity == "warning"
    assert "XDG_CACHE_HOME" in warning.remedy
    found = told(prepared)
    found[3] = [finding for finding in prepared.findings if finding != warning]
    assert found == expected


FULL = """
import json, resource, sys
from pathlib import Path
import msgspec
from workbench.config.schema.config import Config
from workbench.data.prepare import prepare
from workbench.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
request = json.loads(sys.stdin.readline())
config = msgspec.convert(request["config"], Config)
try:
    prepare(config, Path(request["folder"]), request["template"])
except DataError as error:
    print(error.what, error.remedy, sep="\\n")
"""


def test_where_nothing_can_be_written_that_is_what_is_said(
    chatml_folder: Path, folder: Path, tmp_path: Path
) -> None:
    rows: list[object] = [row("word " * 40, question=f"{at}?") for at in range(100)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        input=request_of(config_of(chatml_folder, rows), chatml_folder),
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=True,
    )
    what, remedy = done.stdout.splitlines()
    assert what == "tokens cannot be written there either: File too large"
    assert "XDG_CACHE_HOME" in remedy
    assert entries(folder) == []
    assert list(temporary.iterdir()) == []


# ---- how long entries are kept ---------------------------------------------------------------


def test_entries_that_nobody_used_for_30_days_go_when_another_is_filled(
    chatml_folder: Path, folder: Path
) -> None:
    config = config_of(chatml_folder, rows_of(20))
    configs = [replaced(config, split_at=[share, 0.95]) for share in (0.5, 0.6, 0.7)]
    for each in configs:
        run(each, chatml_folder)
    old, used, young = (key_of(each, chatml_folder) for each in configs)
    now = time.time()
    for key, days in ((old, 31), (used, 31), (young, 29)):
        os.utime(folder / key / "manifest.json", (now - days * DAY, now - days * DAY))
    foreign = folder / "notes"
    foreign.mkdir()
    os.utime(foreign, (1.0, 1.0))
    assert run(configs[1], chatml_folder).was_cached
    assert not run(config, chatml_folder).was_cached
    assert entries(folder) == sorted([used, young, "notes", key_of(config, chatml_folder)])


def test_data_stays_readable_when_its_entry_is_removed(chatml_folder: Path) -> None:
    config = config_of(chatml_folder, rows_of(20))
    prepared = run(config, chatml_folder)
    assert prepared.cache is not None
    expected = told(prepared)
    cache.discard(prepared.cache)
    assert not prepared.cache.exists()
    assert told(prepared) == expected


def test_a_link_in_the_cache_is_removed_and_not_followed(tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "manifest.json").write_text("precious")
    entry = tmp_path / ("0" * 32)
    entry.symlink_to(aside)
    cache.discard(entry)
    assert not entry.is_symlink()
    assert (aside / "manifest.json").read_text() == "precious"


def test_an_entry_is_only_for_its_user(chatml_folder: Path, folder: Path) -> None:
    assert run(config_of(chatml_folder, rows_of(20)), chatml_folder).cache is not None
    assert folder.stat().st_mode & 0o077 == 0


def test_a_source_is_split_by_its_own_rows_over_all_of_its_files(chatml_folder: Path) -> None:
    files = chatml_folder.parent / "files"
    files.mkdir()
    for name, numbers in (("a", range(3)), ("b", range(3, 15)), ("c", range(15, 20))):
        rows = [row(question=f"Hello {number}?") for number in numbers]
        (files / f"{name}.json").write_text(json.dumps(rows))
    config = replaced(
        config_of(chatml_folder, []), sources={"data": SourceSection(path=str(files))}
    )
    prepared = run(config, chatml_folder)
    train = [prepared.train.where(index) for index in range(len(prepared.train))]
    validation = [prepared.validation.where(index) for index in range(len(prepared.validation))]
    assert train[:4] == [("a.json row 1",), ("a.json row 2",), ("a.json row 3",), ("b.json row 1",)]
    assert train[-1] == ("c.json row 1",)
    assert validation == [("c.json row 2",), ("c.json row 3",), ("c.json row 4",)]
    assert prepared.num_conversations.test == 1
