"""Where the demo lies, and its files as the tests of this folder read them."""

import json
import re
from typing import Any

from workbench.config.find import shipped_configs

DEMO = shipped_configs() / "demo"
MODEL = DEMO / "model"
TRAIN_END, VALIDATION_END = 0.80, 0.95

Row = dict[str, Any]


def read_rows() -> list[Row]:
    rows: list[Row] = json.loads((DEMO / "conversations.json").read_text("utf-8"))
    return rows


def trained_rows() -> list[Row]:
    rows = read_rows()
    return rows[: int(TRAIN_END * len(rows))]


def validation_rows() -> list[Row]:
    rows = read_rows()
    return rows[int(TRAIN_END * len(rows)) : int(VALIDATION_END * len(rows))]


def values(row: Row, speaker: str) -> list[str]:
    return [turn["value"] for turn in row["conversations"] if turn["from"] == speaker]


def first_exchange(row: Row) -> tuple[str, str]:
    return values(row, "human")[0], values(row, "gpt")[0]


def ten_questions() -> list[str]:
    """Read the questions from the table of the demo's README."""
    section = (DEMO / "README.md").read_text("utf-8").partition("## Ten questions")[2]
    table = section.partition("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \| .+ \|$", table, flags=re.MULTILINE)
    return [cell for cell in cells if cell not in ("question", "---")]
