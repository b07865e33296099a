"""Small data sets in files, and configs that name them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.config.schema.batch import BatchSection
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.schema.intervals import EvaluationSection
from workbench.config.schema.model import ModelSection
from workbench.config.template_source import template_source
from workbench.data.findings import Finding
from workbench.data.loader import prepare
from workbench.data.prepare import PreparedData, prepare_in_steps


def row(answer: str = "My name is Samantha.", *, question: str = "Hello?") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns}


def rows_of(number: int) -> list[object]:
    """Give rows that are not each other's duplicates."""
    return [row(question=f"Hello {at}?") for at in range(number)]


def write_rows(file: Path, rows: Sequence[object]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def config_of(folder: Path, rows: Sequence[object], **data: object) -> Config:
    file = write_rows(folder.parent / "data.json", rows)
    section: dict[str, Any] = {
        "sources": {"data": SourceSection(path=str(file))},
        "max_length": 64,
        **data,
    }
    return Config(
        model=ModelSection(path=str(folder)),
        batch=BatchSection(train=4),
        evaluation=EvaluationSection(every_steps=0),
        data=DataSection(**section),
    )


def run(config: Config, folder: Path) -> PreparedData:
    return prepare(config, folder, template_source("chatml", folder))


def findings_of(config: Config, folder: Path) -> list[Finding]:
    *_, prepared = prepare_in_steps(config, folder, template_source("chatml", folder))
    assert isinstance(prepared, PreparedData)
    return list(prepared.findings)
