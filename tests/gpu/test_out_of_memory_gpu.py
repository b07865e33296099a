"""Runs whose GPU runs out of memory: the end, its reason, what it says, what is left."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.test_rank import run_folder
from workbench.runs.checkpoints import newest_complete
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import verify
from workbench.training.rank import run_rank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda:0")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    torch.cuda.empty_cache()


def wide_run(folder: Path, *, max_steps: int, microbatches: int = 1) -> RunFolder:
    """Steps of 32,768 tokens, whose attention takes segments of the allocator for itself."""
    text = " ".join(f"word{number}" for number in range(120))
    data = folder.parent / "texts.jsonl"
    data.write_text("".join(f"{json.dumps({'text': f'{n} {text}'})}\n" for n in range(400)))
    return run_folder(
        folder,
        model={"dtype": "float32"},
        data={
            "sources": {"texts": {"path": str(data), "format": "text"}},
            "max_length": 512,
            "pad_to": "context",
        },
        batch={"train": 64, "microbatches": microbatches},
        memory={
            "budget_gib": 16.0,
            "resident_fraction": 1.0,
            "block_inputs": "gpu",
            "recompute": "none",
        },
        evaluation={"every_steps": 0},
        training={"device": "cuda", "max_steps": max_steps, "epochs": 10_000.0},
    )


def last_step(run: RunFolder) -> int:
    lines, _ = read_lines(run.metrics)
    return max((json.loads(line.content)["step"] for line in lines), default=0)


def test_a_run_that_may_take_no_more_in_the_middle_ends_with_remedies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From step 2 on the process may hold next to nothing: the next tensor is one too many."""
    run = wide_run(tmp_path / "run", max_steps=100_000)
    is_over = threading.Event()

    def take_the_memory_away() -> None:
        while not is_over.is_set():
            if run.metrics.exists() and last_step(run) >= 2:
                torch.cuda.set_per_process_memory_fraction(1e-6, CUDA)
                torch.cuda.empty_cache()
            time.sleep(0.01)

    thief = threading.Thread(target=take_the_memory_away)
    thief.start()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            run_rank(run)
    finally:
        is_over.set()
        thief.join()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    (remedies,) = [each for each in told if each.startswith("out of memory")]
    assert "(takes " in remedies
    assert "data.max_length: " in remedies
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step >= 2
    verify(newest.path)


def test_a_card_that_another_process_has_filled_is_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    """This process takes the card between two attempts of a run that states its budget."""
    run = wide_run(tmp_path / "run", max_steps=2, microbatches=8)
    command = [sys.executable, "-m", "workbench.training", str(run.path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert first.returncode == 0, first.stderr
    wide_run(tmp_path / "run", max_steps=4)
    free, _ = torch.cuda.mem_get_info(CUDA)
    # A context takes about 0.75 GiB; all activations of 64 rows would take 0.7 beside it.
    taken = torch.empty(free - int(1.2 * GIB), dtype=torch.uint8, device=CUDA)
    environment = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    del taken
    assert second.returncode == 1
    assert "memory.budget_gib is 16.00, but the GPU has " in second.stderr
    message = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert "a step needs a budget of " in message
    newest = newest_complete(run)
    assert newest is not None
    assert newest.step == 2
    verify(newest.path)
