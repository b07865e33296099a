"""The program that `workbench code` writes, held against the trainer it describes."""

import json
import queue
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from workbench.config.load import ResolvedConfig, dump_config, parse_overrides, resolve
from workbench.config.python_code import python_code
from workbench.config.template_source import template_source
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.layout import CheckpointFolder, RunFolder
from workbench.runs.lock import take_lock
from workbench.training.build import build
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks

# Small enough that a step takes no time; everything else is the demo as it is shipped.
SMALL = ("data.max_length=64", "batch.train=4", "batch.evaluation=8", "training.device=cpu")

VARIANTS = {
    "as the demo": (
        "training.max_steps=12",
        "evaluation.every_steps=5",
        "checkpoints.every_steps=5",
        "checkpoints.keep=1",
        "optimizer.warmup_steps=3",
    ),
    "bfloat16 in microbatches": (
        "model.dtype=bfloat16",
        "batch.microbatches=2",
        "data.pad_to=context",
        "optimizer.clip_by=previous_norm",
        "optimizer.clip_norm=0.5",
        "optimizer.warmup_steps=2",
        "optimizer.cooldown_steps=4",
        "training.max_steps=10",
        "training.nonfinite=skip",
        "logging.every_steps=3",
        "evaluation.every_steps=4",
        "evaluation.max_batches=null",
        "checkpoints.every_steps=4",
    ),
    "streamed, exact, selective": (
        "model.dtype=bfloat16",
        "memory.resident_fraction=0.5",
        "memory.block_inputs=pinned",
        "memory.recompute=selective",
        "optimizer.rounding=exact",
        "batch.microbatches=2",
        "optimizer.warmup_steps=2",
        "training.max_steps=4",
        "evaluation.every_steps=3",
        "checkpoints.every_steps=2",
    ),
    "AdamW, nothing computed again": (
        "optimizer.name=adamw",
        "memory.resident_fraction=0",
        "memory.recompute=none",
        "optimizer.warmup_steps=2",
        "training.max_steps=4",
        "evaluation.every_steps=3",
    ),
    "unpacked, nothing evaluated": (
        "data.packing=none",
        "data.shuffle=false",
        "optimizer.rounding=nearest",
        "training.seed=7",
        "training.max_steps=5",
        "training.deterministic=true",
        "evaluation.every_steps=0",
        "logging.every_steps=2",
    ),
}


@pytest.fixture(autouse=True)
def torch_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run sets for its whole process is taken back; prepared data are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


def small_demo(*overrides: str) -> ResolvedConfig:
    return resolve("demo", overrides=parse_overrides([*SMALL, *overrides]))


def train_by_the_trainer(resolved: ResolvedConfig, folder: Path) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir()
    config = resolved.config
    assert config.model.path is not None
    run.config.write_text(dump_config(config), encoding="utf-8")
    template = template_source(config.data.chat_template, Path(config.model.path))
    run.chat_template.write_text(template, encoding="utf-8")
    ranks = Ranks()
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    built = build(
        run,
        config,
        device=torch.device("cpu"),
        ranks=ranks,
        attempt=1,
        control=ControlPoint(ranks, wishes),
        publisher=None,
    )
    try:
        built.training.train()
    finally:
        built.training.report.close()
    return run


def train_by_the_program(
    resolved: ResolvedConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> RunFolder:
    program = folder.with_suffix(".py")
    program.write_text(python_code(resolved), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(program), "--output-dir", str(folder), *arguments])
    runpy.run_path(str(program), run_name="__main__")
    return RunFolder(folder)


def numbers_of(run: RunFolder) -> list[dict[str, object]]:
    """The records, without what depends on the clock and on the process."""
    by_chance = {
        "time", "attempt", "tokens_per_second", "step_seconds", "peak_host_bytes",
        "first_step_seconds", "compute_share", "transfer_share", "up_share", "down_share",
        "waiting_share", "optimizer_share",
    }  # fmt: skip
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: record[key] for key in record.keys() - by_chance} for record in records]


def evaluations_of(run: RunFolder) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    if "eval-loss" not in board.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in board.Scalars("eval-loss")]


def contents_of(checkpoint: Path) -> dict[str, bytes]:
    """Every file of a checkpoint but the random states, which the test runner draws from too."""
    random_states = CheckpointFolder(checkpoint).random(0)
    manifest = CheckpointFolder(checkpoint).manifest
    return {
        path.relative_to(checkpoint).as_posix(): path.read_bytes()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path not in (random_states, manifest)
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_program_trains_to_the_same_numbers_and_the_same_weights(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = small_demo(*VARIANTS[variant])
    theirs = train_by_the_trainer(resolved, tmp_path / "trainer")
    ours = train_by_the_program(resolved, tmp_path / "program", monkeypatch)
    assert numbers_of(ours) == numbers_of(theirs)
    assert numbers_of(ours)[-1]["step"] == resolved.config.training.max_steps
    assert evaluations_of(ours) == evaluations_of(theirs)
    assert bool(evaluations_of(ours)) == bool(resolved.config.evaluation.every_steps)
    saved = {found.step: found.path for found in list_checkpoints(theirs)}
    assert saved
    assert {found.step for found in list_checkpoints(ours)} == set(saved)
    for step, path in saved.items():
        assert contents_of(ours.checkpoint(step)) == contents_of(path)
    assert "model.safetensors" in contents_of(ours.checkpoint(max(saved)))
    if ours.best.exists() or theirs.best.exists():
        assert ours.best.read_bytes() == theirs.best.read_bytes()


def test_the_program_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = small_demo("training.max_steps=6", "optimizer.warmup_steps=3")
    whole = train_by_the_program(resolved, tmp_path / "whole", monkeypatch)
    train_by_the_program(resolved, tmp_path / "parts", monkeypatch, "--max-steps", "4")
    parts = train_by_the_program(resolved, tmp_path / "parts", monkeypatch)
    assert numbers_of(parts) == numbers_of(whole)
    assert contents_of(parts.checkpoint(6)) == contents_of(whole.checkpoint(6))
    attempts = [json.loads(line)["attempt"] for line in parts.metrics.read_text().splitlines()]
    assert attempts == [1, 1, 1, 1, 2, 2]


def test_the_program_begins_with_the_weights_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_by_the_program(
        small_demo("training.max_steps=1"), tmp_path / "first", monkeypatch
    )
    resolved = small_demo(
        "training.max_steps=3", "model.weights=load", f"model.path={first.checkpoint(1)}"
    )
    theirs = train_by_the_trainer(resolved, tmp_path / "trainer")
    ours = train_by_the_program(resolved, tmp_path / "program", monkeypatch)
    assert numbers_of(ours) == numbers_of(theirs)


def test_a_loss_that_is_not_finite_ends_the_program_behind_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = small_demo(
        "training.max_steps=9", "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0"
    )
    with pytest.raises(SystemExit) as ended:
        train_by_the_program(resolved, tmp_path / "program", monkeypatch)
    assert ended.value.code == 1
    assert "is not finite" in capsys.readouterr().err
    run = RunFolder(tmp_path / "program")
    assert "loss" in str(numbers_of(run)[-1]["nonfinite"])
    assert not list_checkpoints(run)


def test_the_program_stays_out_of_a_folder_in_which_a_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    held = take_lock(RunFolder(folder).lock)
    assert held is not None
    with pytest.raises(SystemExit) as ended:
        train_by_the_program(small_demo(), folder, monkeypatch)
    held.release()
    assert ended.value.code == 2
    assert "a job is running in" in capsys.readouterr().err
