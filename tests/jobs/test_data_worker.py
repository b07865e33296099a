"""The data worker's records are typed and in order, and no worker outlives who asked."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from workbench.config.flags import parse_overrides
from workbench.config.load import ResolvedConfig, resolve
from workbench.errors import DataError
from workbench.jobs import data_worker
from workbench.jobs.data_worker import AnyRecord, Done, Finding, Progress, Row, Statistics, Step
from workbench.jobs.preflight import Check, check_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def demo(*settings: str) -> ResolvedConfig:
    return resolve("demo", overrides=parse_overrides(list(settings)))


def with_rows(tmp_path: Path, *questioners: str) -> ResolvedConfig:
    """Give the demo with rows of its own, each of which asks in the name of someone."""
    rows = [
        {"conversations": [{"from": who, "value": f"Q{at}"}, {"from": "gpt", "value": f"A{at}"}]}
        for at, who in enumerate(questioners)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return demo(f"data.sources={{demo: {{path: {tmp_path / 'rows.json'}}}}}")


def stages(records: list[AnyRecord]) -> set[str]:
    return {record.stage for record in records if isinstance(record, Progress)}


def without_progress(records: Iterator[AnyRecord]) -> list[AnyRecord]:
    return [record for record in records if not isinstance(record, Progress)]


def children() -> list[str]:
    own = Path(f"/proc/{os.getpid()}/task")
    return [pid for task in own.iterdir() for pid in (task / "children").read_text().split()]


def test_a_check_tells_progress_and_fills_the_cache_for_the_next() -> None:
    first: list[AnyRecord] = list(data_worker.check(demo()))
    done = first[-1]
    assert isinstance(done, Done)
    assert "tokenizing" in stages(first)
    assert (done.was_cached, done.num_errors) == (False, 0)
    assert done.counts is not None
    assert (done.counts.train_conversations, done.counts.steps_per_epoch) == (280, 4)
    assert done.cache is not None
    assert done.cache_bytes > 4 * done.counts.train_tokens

    second: list[AnyRecord] = list(data_worker.prepare(demo()))
    again = second[-1]
    assert isinstance(again, Done)
    assert "tokenizing" not in stages(second)
    assert (again.was_cached, again.cache, again.counts) == (True, done.cache, done.counts)


def test_counts_answer_only_from_the_cache(own_cache: Path) -> None:
    assert data_worker.counts(demo()) is None
    assert not list(own_cache.rglob("ids")), "counting prepares nothing"
    *_, done = data_worker.prepare(demo())
    found = data_worker.counts(demo())
    assert isinstance(done, Done)
    assert found is not None
    assert found.counts == done.counts


def test_findings_are_shown_to_a_limit_or_all(tmp_path: Path) -> None:
    resolved = with_rows(tmp_path, *["narrator"] * 25, "human")
    shown = without_progress(data_worker.check(resolved))
    everything = without_progress(data_worker.check(resolved, shows_all=True))
    done, all_done = shown[-1], everything[-1]
    assert isinstance(done, Done)
    assert isinstance(all_done, Done)
    num_errors = [isinstance(each, Finding) and each.severity == "error" for each in everything]
    assert sum(num_errors) == all_done.num_errors == done.num_errors >= 25
    assert all_done.num_hidden == 0
    assert done.num_hidden > 0
    assert any(isinstance(each, Finding) and "more, up to" in each.where for each in shown)


def test_preflight_shortens_findings_and_names_the_command_that_shows_them_all(
    tmp_path: Path,
) -> None:
    resolved = with_rows(tmp_path, *["narrator"] * 25, "human")
    found = list(check_data(resolved))
    checks = [check for check in found if isinstance(check, Check)]
    assert any(isinstance(each, Progress) for each in found)
    assert len(checks) < 25
    assert checks[-1].remedy == "workbench data check -t demo --all shows every one"
    assert all(check.state == "error" for check in checks if "narrator" in check.message)


def test_rows_come_before_the_statistics() -> None:
    records = without_progress(data_worker.preview(demo(), step=3, num_rows=2))
    assert [type(record) for record in records] == [Step, Row, Row, Statistics, Done]
    step, first, second, statistics, _ = records
    assert isinstance(step, Step)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert isinstance(statistics, Statistics)
    assert (step.step, step.split, first.number, second.number) == (3, "train", 1, 2)
    assert first.documents[0].tokens[0].piece == "<|im_start|>"
    assert statistics.percentiles[100] == 155


def test_one_document_can_be_asked_for_without_statistics() -> None:
    records = without_progress(data_worker.preview(demo(), document=17, statistics=False))
    assert [type(record) for record in records] == [Step, Row, Done]
    assert isinstance(records[1], Row)
    (document,) = records[1].documents
    assert document.number == 17


def test_a_step_that_is_not_there_is_a_mistake_of_whoever_asks() -> None:
    with pytest.raises(DataError, match="step 241: the run has 240 steps; name one from 1 to 240"):
        list(data_worker.preview(demo(), step=241))


def test_data_of_which_nothing_is_left_has_findings_and_no_rows(tmp_path: Path) -> None:
    records = without_progress(data_worker.preview(with_rows(tmp_path, "narrator")))
    assert {type(record) for record in records} == {Finding, Done}


def test_data_that_is_not_there_is_a_finding() -> None:
    resolved = demo("data.sources={demo: {path: /nowhere/rows.json}}")
    (found,) = without_progress(data_worker.check(resolved))
    assert isinstance(found, Finding)
    assert (found.severity, found.where) == ("error", "/nowhere/rows.json")


def test_whoever_closes_the_iterator_ends_the_worker() -> None:
    before = children()
    records = data_worker.check(demo())
    next(records)
    next(records)
    assert len(children()) == len(before) + 1
    assert isinstance(records, Generator)
    records.close()
    assert children() == before
