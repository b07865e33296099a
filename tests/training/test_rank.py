import json
import logging
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from workbench.config.load import dump_config
from workbench.config.schema.config import Config
from workbench.runs import checkpoints as folders
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import CheckpointFolder, RunFolder
from workbench.training.rank import run_rank

DEMO = Path(__file__).parents[2] / "configs" / "demo"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORKBENCH_JOB", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def run_folder(folder: Path, **changes: dict[str, object]) -> RunFolder:
    """The files that start a run, over a small part of the demo."""
    sections: dict[str, dict[str, object]] = {
        "model": {"path": str(DEMO / "model"), "weights": "random", "dtype": "bfloat16"},
        "data": {
            "sources": {"demo": {"path": str(DEMO / "conversations.json")}},
            "max_length": 128,
            "packing": "best_fit",
            "num_workers": 0,
        },
        "batch": {"train": 2, "evaluation": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "evaluation": {"every_steps": 2, "max_batches": 1},
        "logging": {"every_steps": 1},
        "checkpoints": {"every_steps": 2},
        "training": {"device": "cpu", "max_steps": 3},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    run = RunFolder(folder)
    run.path.mkdir(exist_ok=True)
    run.config.write_text(dump_config(msgspec.convert(sections, Config)))
    shutil.copy(DEMO / "model" / "chat_template.jinja", run.chat_template)
    return run


def steps_of(run: RunFolder) -> list[tuple[int, int]]:
    lines, _ = read_lines(run.metrics)
    records = [json.loads(line.content) for line in lines]
    return [(record["attempt"], record["step"]) for record in records]


def test_a_run_folder_trains_without_a_supervisor_and_starts_again_as_a_new_attempt(
    tmp_path: Path,
) -> None:
    run = run_folder(tmp_path)
    assert run_rank(run) == 0
    assert steps_of(run) == [(1, 1), (1, 2), (1, 3)]
    assert [found.step for found in folders.list_checkpoints(run)] == [2, 3]
    best = folders.read_best(run)
    assert best is not None
    assert best.step == 2

    plan = json.loads(run.plan.read_bytes())
    assert plan["predicted"]["peak"] > 0
    assert plan["measured"]["peak_host_bytes"] > 0
    checkpoint = run.latest.resolve()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (checkpoint / name).is_file()
    assert json.loads((checkpoint / "config.json").read_bytes())["dtype"] == "bfloat16"
    stops = json.loads((checkpoint / "generation_config.json").read_bytes())["eos_token_id"]
    assert 3 in stops, "the id with which the template ends a turn"
    assert json.loads(CheckpointFolder(checkpoint).state.read_bytes())["step"] == 3

    run_folder(tmp_path, training={"device": "cpu", "max_steps": 4})
    assert run_rank(run) == 0
    assert steps_of(run)[3:] == [(2, 4)]


def test_a_mistake_is_one_line_and_is_left_for_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error_file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
    run = run_folder(tmp_path / "run", model={"weights": "load"})
    assert run_rank(run) == 1
    (shown,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "has no weights" in shown.getMessage()
    assert shown.exc_info is None
    left = json.loads(error_file.read_text())
    assert "has no weights" in left["message"]["message"]
    assert not run.checkpoints.exists()


def test_a_run_folder_that_only_a_dry_run_could_write_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The line that a dry run prints must not train with another engine than it says."""
    run = run_folder(tmp_path / "run", training={"engine": "pipeline"})
    assert run_rank(run) == 1
    assert "training.engine: the pipeline engine is not in this version" in caplog.text
    assert not run.metrics.exists()


def test_a_loss_that_explodes_ends_the_run_and_names_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_folder(tmp_path, optimizer={"learning_rate": 1e38, "warmup_steps": 0})
    assert run_rank(run) == 1
    (shown,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "of step 2 is not finite" in shown.getMessage()
    lines, _ = read_lines(run.metrics)
    last = json.loads(lines[-1].content)
    assert (last["step"], last["loss"], last["nonfinite"]) == (2, None, ["loss"])


def test_cuda_that_is_not_there_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = run_folder(tmp_path, training={"device": "cuda"})
    assert run_rank(run) == 1
    assert "there is no CUDA device" in caplog.text
