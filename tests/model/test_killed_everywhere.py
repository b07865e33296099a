"""Convert and finalize die at every point of their work: what has the name is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.inference.tiny_model import add_checkpoint, write_tiny_model
from workbench.runs.layout import RunFolder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return add_checkpoint(RunFolder(folder / "run"), write_tiny_model(folder / "model"), 5)


@pytest.mark.parametrize("verb", ["convert", "finalize", "gguf"])
def test_a_writer_that_dies_at_any_point_leaves_nothing_that_looks_complete(
    checkpoint: Path, tmp_path: Path, verb: str
) -> None:
    if verb == "gguf":
        pytest.importorskip("gguf")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.model.killed_everywhere", verb, checkpoint, tmp_path],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    died = [each for each in told if each.get("killed")]
    assert len(died) > 20
    assert {each["state"] for each in died} == {"absent", "empty", "whole"}
    assert any(each["partial"] for each in died)
    # The first that was not killed has cleared away what all the others left.
    (survivor,) = [each for each in told if each.get("killed") is False]
    assert (survivor["state"], survivor["partial"]) == ("whole", False)
    limited = [each for each in told if "limit" in each]
    assert [each["state"] for each in limited if each["status"]] == ["absent"] * (
        sum(bool(each["status"]) for each in limited)
    )
    assert sum(each["status"] in (11, 12, 14) for each in limited) >= 4
    assert all(each["state"] == "whole" for each in limited if not each["status"])
    assert not any(each["partial"] for each in limited)
