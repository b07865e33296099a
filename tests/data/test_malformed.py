"""Every malformed data set of tests/assets/data, with its complete messages in NAME.expected.

Beside NAME.expected lies the data: NAME with another ending, or the folder NAME. Lines that begin
with # say what else the config states, as YAML: ``source`` (keys of the data set; ``path`` where
the data is not beside it), ``data`` (keys of the section), ``template``.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection
from workbench.config.schema.intervals import EvaluationSection
from workbench.config.schema.model import ModelSection
from workbench.config.template_source import template_source
from workbench.data.prepare import PreparedData, prepare_in_steps
from workbench.errors import DataError

CORPUS = Path(__file__).parents[1] / "assets" / "data"
EXPECTED = sorted(CORPUS.glob("*.expected"))
MODEL = Path(__file__).parents[2] / "configs" / "demo" / "model"
WAIT_SECONDS = 60


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("WORKBENCH_HUB_MIRROR", str(CORPUS / "mirror"))


def data_beside(expected: Path) -> Path | None:
    """Find the data of a case; None if its path is stated."""
    if expected.with_suffix("").is_dir():
        return expected.with_suffix("")
    found = [path for path in CORPUS.glob(f"{expected.stem}.*") if path != expected]
    assert len(found) < 2, found
    return found[0] if found else None


def read_case(expected: Path) -> tuple[Config, str, list[str]]:
    """Give the config of a case, its template, and the messages it comes to."""
    lines = expected.read_text().splitlines()
    head = yaml.safe_load("\n".join(line[2:] for line in lines if line.startswith("# "))) or {}
    source, stated = dict(head.get("source", {})), dict(head.get("data", {}))
    beside = data_beside(expected)
    if beside is not None:
        source["path"] = str(beside)
    elif source["path"].startswith("./"):
        source["path"] = str(CORPUS / source["path"])
    section = {"max_length": 256, "split_at": [1.0, 1.0], **stated, "sources": {"talks": source}}
    config = Config(
        model=ModelSection(path=str(MODEL)),
        evaluation=EvaluationSection(every_steps=0),
        data=msgspec.convert(section, DataSection),
    )
    template = head.get("template") or template_source("chatml", MODEL)
    return config, template, [line for line in lines if not line.startswith("#")]


def told(severity: str, where: str, what: str, remedy: str) -> str:
    text = f"{severity}: {where}: {what}; {remedy}"
    return text.replace(f"{CORPUS}/", "").replace(str(CORPUS), ".")


def messages_of(config: Config, template: str) -> list[str]:
    """Read and prepare the data for real, and give every message in full."""
    try:
        *_, prepared = prepare_in_steps(config, MODEL, template)
    except DataError as error:
        return [told("error", error.where, error.what, error.remedy)]
    assert isinstance(prepared, PreparedData)
    found = prepared.findings.shown(limit=None)
    return [told(item.severity, item.where, item.what, item.remedy) for item in found]


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.stem)
def test_a_malformed_data_set_gives_its_messages_in_full(expected: Path) -> None:
    config, template, messages = read_case(expected)
    assert messages, "each case is about something"
    assert messages_of(config, template) == messages


def test_every_file_of_the_corpus_is_expected_to_say_something() -> None:
    assert len(EXPECTED) >= 60
    of_cases = {data_beside(expected) for expected in EXPECTED}
    others = {path for path in CORPUS.iterdir() if path.suffix != ".expected"}
    assert others - of_cases == {CORPUS / "mirror"}


@pytest.mark.parametrize("name", ["unknown_role", "trailing_comma", "odd_characters"])
def test_the_process_that_checks_says_the_same(name: str) -> None:
    config, _, messages = read_case(CORPUS / f"{name}.expected")
    builtins: dict[str, Any] = msgspec.to_builtins(config)
    builtins["data"]["chat_template"] = "chatml"
    with subprocess.Popen(
        [sys.executable, "-m", "workbench.data", "check"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"config": builtins}) + "\n")
        process.stdin.flush()
        lines = [json.loads(line) for line in process.stdout]
        status = process.wait(WAIT_SECONDS)
    found = [line for line in lines if line["type"] == "finding"]
    assert [
        told(line["severity"], line["where"], line["what"], line["remedy"]) for line in found
    ] == messages
    assert status == (2 if any(line.startswith("error") for line in messages) else 0)
