"""A project of its own, a clock that stands still, and programs that are driven by a test."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from tests.tui.scripted_supervisor import NOW
from workbench.tui.surroundings import Surroundings

LIMIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's jobs, sockets, clock zone or colours."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    # The folder that sockets lie in is checked for its mode at each use.
    (runtime / "workbench").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with three configs, one of them broken, and a tiny model folder."""
    folder = tmp_path / "project"
    configs = folder / "configs"
    (configs / "base").mkdir(parents=True)
    (configs / "small").mkdir()
    model = configs / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "vocab_size": 512,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            }
        )
    )
    (configs / "base" / "common.yaml").write_text(
        "model:\n  path: ../model\n  weights: random\n"
        "optimizer:\n  learning_rate: 5e-6\n"
        "batch:\n  train: 4\n"
        "args:\n  --lr: optimizer.learning_rate\n  --max-steps: training.max_steps\n"
    )
    (configs / "small" / "quick.yaml").write_text(
        "extends: ../base/common.yaml\ndescription: ten steps on a CPU\n"
        "training:\n  device: cpu\n  max_steps: 10\n"
    )
    (configs / "small" / "longer.yaml").write_text(
        "extends: quick.yaml\ndescription: a hundred steps on a CPU\n"
        "optimizer:\n  learning_rate: 3e-6\ntraining:\n  max_steps: 100\n"
    )
    (configs / "small" / "wrong.yaml").write_text(
        "extends: quick.yaml\noptimizer:\n  learning_rte: 3e-6\n"
    )
    return folder


@pytest.fixture
def surroundings(project: Path, tmp_path: Path) -> Surroundings:
    """Everything that could differ between two runs of a test stands still."""
    return Surroundings(
        project=project,
        state_folder=tmp_path / "state" / "workbench",
        host="lab",
        version="0.0.0",
        clock=lambda: NOW,
        frames_per_second=50.0,
        guard_seconds=0.0,
        poll_seconds=0.05,
        colour=True,
        still=True,
    )


async def wait_until(
    pilot: Pilot[None], predicate: Callable[[], object], seconds: float = LIMIT_SECONDS
) -> None:
    """Let the program work until something is true; fail after a limit."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s:\n{screen_text(pilot)}"
        await asyncio.sleep(0.01)
    await pilot.pause()


async def type_into(pilot: Pilot[None], selector: str, text: str) -> None:
    """Put a text into a field, as a paste does: a press costs a tenth of a second."""
    field = pilot.app.screen.query_one(selector)
    if isinstance(field, TextArea):
        field.insert(text)
    else:
        assert isinstance(field, Input)
        field.value = text
    await pilot.pause()


def screen_text(pilot: Pilot[None]) -> str:
    """Give what is on the screen, row by row."""
    screen = pilot.app.screen
    width, height = pilot.app.size
    rows = []
    for strip in screen._compositor.render_strips()[:height]:
        rows.append("".join(segment.text for segment in strip)[:width])
    return "\n".join(rows)


@pytest.fixture(autouse=True)
def no_terminal_variables() -> Iterator[None]:
    """Textual takes NO_COLOR out of the environment; nothing of that outlives a test."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
