"""The checkpoints screen over real run folders: what it lists, what keys do, what is refused."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen

from tests.tui.conftest import screen_text, type_into, wait_until
from tests.tui.scripted_server import ScriptedServer
from tests.tui.scripted_supervisor import NOW, ScriptedSupervisor, write_checkpoint
from workbench.config.flags import parse_overrides
from workbench.config.load import dump_config, resolve
from workbench.runs.checkpoints import Best, list_checkpoints, write_best
from workbench.runs.events import CheckpointEvent, EvaluationEvent
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import write_hashed, write_manifest
from workbench.runs.outcome import Outcome
from workbench.tui import keys
from workbench.tui.app import WorkbenchApp
from workbench.tui.screens.chat import ChatScreen
from workbench.tui.screens.checkpoints import CheckpointsScreen, unused_name
from workbench.tui.screens.convert import ConvertDialog
from workbench.tui.screens.delete_checkpoint import DeletePrompt
from workbench.tui.screens.finalize import FinalizeDialog
from workbench.tui.screens.launch_preview import LaunchPreview
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.checkpoint_list import CheckpointList


def saved_run(
    surroundings: Surroundings, name: str, *steps: int, overrides: tuple[str, ...] = ()
) -> ScriptedSupervisor:
    """Make a run with checkpoints, evaluated at each, the second newest the best; it still runs."""
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / name))
    model = surroundings.project / "configs" / "model"
    stated = ["checkpoints.keep=2", f"model.path={model}", *overrides]
    job.run.config.write_text(
        dump_config(resolve("demo", overrides=parse_overrides(stated)).config)
    )
    for number, step in enumerate(steps):
        job.log_metrics(step, 2.0 - number / 10)
        job.log_event(
            EvaluationEvent(
                time=NOW - 500,
                attempt=1,
                step=step,
                loss=1.5 - number / 10,
                perplexity=None,
                accuracy=None,
                target_tokens=900,
                seconds=1.0,
            )
        )
        folder = write_checkpoint(job.run, step)
        files = {"config.json": write_hashed(folder / "config.json", b'{"model_type": "llama"}\n')}
        files["model.safetensors"] = write_hashed(folder / "model.safetensors", b"w" * 200_000)
        (folder / "training_state").mkdir()
        state = "training_state/state.json"
        files[state] = write_hashed(folder / state, b"{}")
        write_manifest(folder, files, step=step, num_ranks=1)
        job.log_event(
            CheckpointEvent(
                time=NOW - 400 + step,
                attempt=1,
                step=step,
                path=f"checkpoints/{folder.name}",
                bytes=200_027,
                seconds=1.0,
            )
        )
    if len(steps) > 1:
        write_best(job.run, Best(step=steps[-2], loss=1.5 - (len(steps) - 2) / 10))
    return job


async def ended_run(surroundings: Surroundings, name: str, *steps: int) -> RunFolder:
    """Leave such a run stopped."""
    job = saved_run(surroundings, name, *steps)
    job.end(Outcome(attempt=1, state="stopped", step=steps[-1], time=NOW - 300, max_steps=300))
    await job.close_files()
    return job.run


@asynccontextmanager
async def shown(
    surroundings: Surroundings,
    *,
    wants: str = "checkpoint-",
    size: tuple[int, int] = (120, 36),
    app: WorkbenchApp | None = None,
) -> AsyncIterator[tuple[Pilot[None], CheckpointsScreen]]:
    """Open the screen and wait until it shows something."""
    app = app or WorkbenchApp(surroundings, screen="checkpoints")
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: wants in screen_text(pilot))
        screen = app.screen
        assert isinstance(screen, CheckpointsScreen)
        yield pilot, screen


def choose(screen: CheckpointsScreen, kind: str, path: Path) -> None:
    assert screen.query_one("#checkpoint-list", CheckpointList).choose((kind, path))


def refusal(screen: CheckpointsScreen, row_id: str) -> str | None:
    return keys.BY_ID[row_id].refusal(screen.key_state())


def line_with(pilot: Pilot[None], text: str) -> str:
    return next(line for line in screen_text(pilot).splitlines() if text in line)


async def test_every_checkpoint_of_every_run_is_listed_under_it(surroundings: Surroundings) -> None:
    await ended_run(surroundings, "quick-1", 10)
    await ended_run(surroundings, "quick-2", 10, 20, 30)
    async with shown(surroundings) as (pilot, screen):
        await wait_until(pilot, lambda: "quick-1" in screen_text(pilot))
        rows = screen.query_one("#checkpoint-list", CheckpointList).rows
        assert [row.name for row in rows] == [
            "quick-2",
            "checkpoint-30",
            "checkpoint-20",
            "checkpoint-10",
            "quick-1",
            "checkpoint-10",
            "models",
            "configs/model",
        ]
        newest, best = line_with(pilot, "▌    checkpoint-30"), line_with(pilot, "checkpoint-20")
        for part in ("1.3000", "1.8000", "195 KiB", "weights + resume", "6m", "✓ complete"):
            assert part in newest, (part, newest)
        assert newest.rstrip("│ ").endswith("newest")
        assert best.rstrip("│ ").endswith("best")
        assert "no weights" in line_with(pilot, "configs/model")
        assert "base of quick-2, quick-1" in line_with(pilot, "configs/model")
        assert "Checkpoints · 4 · 781 KiB · disk 74 GiB free" in screen_text(pilot)


async def test_the_details_say_what_a_start_and_the_next_save_would_do(
    surroundings: Surroundings,
) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20, 30)
    async with shown(surroundings) as (pilot, screen):
        text = screen_text(pilot)
        assert "output/quick-1/checkpoints/checkpoint-30" in text
        assert "1 weight file · 3 files in all" in text
        assert "goes on at step 31, attempt 2" in text
        # Two are kept: the coming one and 30; 20 is the best; 10 goes.
        assert "removes checkpoint-10 · keeps the newest 2, best, keep" in text
        choose(screen, "checkpoint", run.checkpoint(10))
        await wait_until(pilot, lambda: "removes this one" in screen_text(pilot))
        assert "a new run goes on at step 11; quick-1 itself from step 30" in screen_text(pilot)
        run.tags.write_text('{"checkpoint-10": ["keep"]}')
        await wait_until(pilot, lambda: "removes none" in screen_text(pilot))
        assert refusal(screen, "delete_checkpoint") == "it is tagged keep"


async def test_what_a_running_job_saves_appears_and_cannot_be_deleted(
    surroundings: Surroundings,
) -> None:
    job = saved_run(surroundings, "quick-1", 10)
    await job.answer()
    try:
        async with shown(surroundings) as (pilot, screen):
            assert "● training" in line_with(pilot, "▾ quick-1")
            partial = job.run.partial_checkpoint(20)
            partial.mkdir()
            (partial / "model.safetensors").write_bytes(b"w" * 100_013)
            await wait_until(pilot, lambda: "being written" in screen_text(pilot))
            assert "50 %" in line_with(pilot, "being written")
            choose(screen, "checkpoint", partial)
            for act in ("talk_to", "finalize", "convert", "start_from", "verify_hashes"):
                assert refusal(screen, act) == "is being written"
            still_runs = "quick-1 still runs and prunes its checkpoints itself"
            assert refusal(screen, "delete_checkpoint") == still_runs
            choose(screen, "checkpoint", job.run.checkpoint(10))
            assert refusal(screen, "start_from") == "quick-1 still runs"
            assert refusal(screen, "talk_to") is None
            await pilot.press("D")
            await wait_until(pilot, lambda: still_runs in screen_text(pilot))
    finally:
        await job.close()


async def test_before_the_first_save_it_says_when_that_comes(surroundings: Surroundings) -> None:
    job = saved_run(surroundings, "quick-1", overrides=("checkpoints.every_steps=50",))
    job.log_metrics(30, 2.0)
    await job.answer()
    try:
        async with shown(surroundings, wants="Nothing saved yet") as (pilot, screen):
            text = "Nothing saved yet; quick-1 saves at step 50 (in 20 s)"
            await wait_until(pilot, lambda: text in screen_text(pilot))
            assert refusal(screen, "delete_checkpoint") == "there is no checkpoint"
    finally:
        await job.close()


async def test_a_damaged_checkpoint_says_why_and_is_not_used(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    (run.checkpoint(20) / "model.safetensors").write_bytes(b"cut")
    async with shown(surroundings) as (pilot, screen):
        assert "✗ not usable" in line_with(pilot, "checkpoint-20")
        choose(screen, "checkpoint", run.checkpoint(20))
        why = "not usable: model.safetensors has 3 bytes, manifest says 200,000"
        assert refusal(screen, "talk_to") == why
        assert refusal(screen, "finalize") == why
        assert refusal(screen, "delete_checkpoint") is None
        assert "newest" in line_with(pilot, "checkpoint-10")


async def test_hashes_are_compared_and_the_result_stays(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    weights = run.checkpoint(10) / "model.safetensors"
    weights.write_bytes(b"x" * 200_000)
    async with shown(surroundings) as (pilot, screen):
        assert "not compared yet" in screen_text(pilot)
        choose(screen, "run", run.path)
        await pilot.press("v")
        await wait_until(pilot, lambda: "✓ verified" in line_with(pilot, "checkpoint-20"))
        await wait_until(pilot, lambda: "✗ damaged" in line_with(pilot, "checkpoint-10"))
        assert "model.safetensors has other con" in line_with(pilot, "checkpoint-10")
        choose(screen, "checkpoint", run.checkpoint(20))
        await wait_until(pilot, lambda: "3 of 3 files as they were saved" in screen_text(pilot))
        await pilot.press("2")
        await pilot.press("6")
        await wait_until(pilot, lambda: "✓ verified" in screen_text(pilot))


async def test_the_filter_takes_words_and_comparisons(surroundings: Surroundings) -> None:
    await ended_run(surroundings, "quick-1", 10, 20, 30)
    async with shown(surroundings) as (pilot, screen):
        table = screen.query_one("#checkpoint-list", CheckpointList)

        async def filtered(text: str) -> list[str]:
            await pilot.press("slash")
            await type_into(pilot, "#checkpoint-filter", text)
            await pilot.press("enter")
            return [row.name for row in table.rows]

        assert await filtered("eval<1.45 -tag:newest") == ["quick-1", "checkpoint-20"]
        assert await filtered("lng") == []
        assert "0 of 4 match “lng”: esc clears." in screen_text(pilot)
        await filtered("size>much")
        assert "much is no number" in screen_text(pilot)
        await pilot.press("escape")
        await pilot.press("escape")
        await wait_until(pilot, lambda: len(table.rows) == 6)


async def test_a_run_is_folded_and_shown_again(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    async with shown(surroundings) as (pilot, screen):
        table = screen.query_one("#checkpoint-list", CheckpointList)
        await pilot.press("left")
        assert table.current is not None
        assert table.current.path == run.path
        assert "▸ quick-1" in screen_text(pilot)
        assert "checkpoint-20" not in "\n".join(screen_text(pilot).splitlines()[:10])
        await pilot.press("enter")
        assert "▾ quick-1" in screen_text(pilot)
        await pilot.press("enter")
        await pilot.press("right")
        await wait_until(pilot, lambda: "checkpoint-20" in screen_text(pilot))


async def test_enter_loads_the_checkpoint_in_the_chat(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    server = ScriptedServer("yes")

    def chat() -> Screen[Any]:
        return ChatScreen(server.start)

    class AppWithServer(WorkbenchApp):
        MODES = {**WorkbenchApp.MODES, "chat": chat}  # noqa: RUF012

    app = AppWithServer(surroundings, screen="checkpoints")
    async with shown(surroundings, app=app) as (pilot, screen):
        choose(screen, "checkpoint", run.checkpoint(10))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "quick-1/checkpoint-10 is loaded" in screen_text(pilot))
        assert server.path == run.checkpoint(10)
        assert app.current_mode == "chat"
        await wait_until(pilot, lambda: app.screen.query_one("#prompt").has_focus)
        # The same one again is not loaded twice.
        await pilot.press("ctrl+pagedown")
        await wait_until(pilot, lambda: app.current_mode == "checkpoints")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.screen.query("#prompt:focus"))
    assert server.num_stopped == 1


async def test_the_newest_goes_on_in_its_run_and_an_older_one_in_a_new_run(
    surroundings: Surroundings,
) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    (surroundings.project / "output" / "quick-2").mkdir()
    async with shown(surroundings) as (pilot, screen):
        await pilot.press("R")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, LaunchPreview))
        preview = pilot.app.screen
        assert isinstance(preview, LaunchPreview)
        assert preview.command_line.endswith(f"training.output_dir={run.path}")
        await pilot.press("escape")
        choose(screen, "checkpoint", run.checkpoint(10))
        await pilot.press("R")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, LaunchPreview))
        preview = pilot.app.screen
        assert isinstance(preview, LaunchPreview)
        fresh = run.path.with_name("quick-3")
        assert f"training.output_dir={fresh}" in preview.command_line
        assert f"checkpoints.resume={run.checkpoint(10)}" in preview.command_line


async def test_a_checkpoint_goes_once_its_step_is_typed(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    async with shown(surroundings) as (pilot, screen):
        choose(screen, "checkpoint", run.checkpoint(10))
        await pilot.press("D")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, DeletePrompt))
        text = screen_text(pilot)
        assert "200,000 model.safetensors" in text
        num_bytes = sum(
            path.stat().st_size for path in run.checkpoint(10).rglob("*") if path.is_file()
        )
        assert f"4 files, {num_bytes:,} bytes" in text
        assert "It is the best of its run" in text
        await type_into(pilot, "#step", "1")
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, DeletePrompt)
        assert run.checkpoint(10).is_dir()
        await type_into(pilot, "#step", "10")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "checkpoint-10 deleted" in screen_text(pilot))
        assert [found.step for found in list_checkpoints(run)] == [20]
        await wait_until(pilot, lambda: "Checkpoints · 1" in screen_text(pilot))


async def test_what_a_crash_left_can_be_deleted(surroundings: Surroundings) -> None:
    run = await ended_run(surroundings, "quick-1", 10)
    partial = run.partial_checkpoint(20)
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    async with shown(surroundings) as (pilot, screen):
        assert "✗ never completed" in line_with(pilot, "checkpoint-20")
        choose(screen, "checkpoint", partial)
        assert refusal(screen, "talk_to") == "was never completed"
        await pilot.press("D")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, DeletePrompt))
        await type_into(pilot, "#step", "20")
        await pilot.press("enter")
        await wait_until(pilot, lambda: not partial.exists())
        assert run.checkpoint(10).is_dir()


async def test_what_other_runs_need_is_not_deleted(surroundings: Surroundings) -> None:
    first = await ended_run(surroundings, "quick-1", 10, 20, 30)
    goes_on = f"checkpoints.resume={first.checkpoint(10)}"
    child = saved_run(surroundings, "quick-2", 40, overrides=(goes_on,))
    began = f"model.path={first.checkpoint(20)}"
    saved_run(surroundings, "quick-3", 50, overrides=(began,))
    await child.answer()
    try:
        async with shown(surroundings) as (pilot, screen):
            await wait_until(pilot, lambda: "quick-3" in screen_text(pilot))
            for step, why in ((10, "quick-2 goes on from it"), (20, "quick-3 began with it")):
                choose(screen, "checkpoint", first.checkpoint(step))
                assert refusal(screen, "delete_checkpoint") == f"it is in use: {why}"
            choose(screen, "checkpoint", first.checkpoint(30))
            assert refusal(screen, "delete_checkpoint") is None
            model = surroundings.project / "configs" / "model"
            choose(screen, "model", model)
            assert refusal(screen, "delete_checkpoint") == "a model is never deleted here"
            assert "has no weights" in (refusal(screen, "finalize") or "")
    finally:
        await child.close()


async def test_readonly_refuses_what_acts_and_still_verifies(surroundings: Surroundings) -> None:
    await ended_run(surroundings, "quick-1", 10)
    async with shown(replace(surroundings, readonly=True)) as (pilot, screen):
        for act in ("finalize", "convert", "start_from", "delete_checkpoint"):
            assert refusal(screen, act) == "started with --readonly"
        await pilot.press("v")
        await wait_until(pilot, lambda: "✓ verified" in screen_text(pilot))


async def test_the_form_shows_the_command_and_what_speaks_against_it(
    surroundings: Surroundings,
) -> None:
    run = await ended_run(surroundings, "quick-1", 10, 20)
    async with shown(surroundings) as (pilot, _):
        await pilot.press("F")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, FinalizeDialog))
        dialog = pilot.app.screen
        assert isinstance(dialog, FinalizeDialog)
        assert dialog.command_line() == (
            "workbench finalize output/quick-1 models/quick-1-20 --step 20"
        )
        await pilot.press("tab", "right", "right", "tab", "right")
        assert dialog.command_line() == (
            "workbench finalize output/quick-1 models/quick-1-10 --best --gguf q8_0"
        )
        await type_into(pilot, "#destination", str(run.checkpoints / "mine"))
        await wait_until(pilot, lambda: "which is only read" in screen_text(pilot))
        await pilot.press("enter")
        assert dialog.phase == "form"
        await pilot.press("escape")
        await pilot.press("x")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, ConvertDialog))
        convert = pilot.app.screen
        assert isinstance(convert, ConvertDialog)
        await type_into(pilot, "#length", "4k")
        await wait_until(pilot, lambda: "4k is no number of tokens" in screen_text(pilot))
        await type_into(pilot, "#length", "4096")
        await type_into(pilot, "#template", "chatml")
        assert convert.command_line() == (
            "workbench convert output/quick-1/checkpoints/checkpoint-20 "
            "models/quick-1-20-converted --max-length 4096 --chat-template chatml"
        )


async def test_a_refusal_of_the_worker_is_told_with_its_remedy(surroundings: Surroundings) -> None:
    """The worker is the real one; what it is given is no model."""
    await ended_run(surroundings, "quick-1", 10)
    async with shown(surroundings) as (pilot, _):
        await pilot.press("x")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, ConvertDialog))
        dialog = pilot.app.screen
        assert isinstance(dialog, ConvertDialog)
        await pilot.press("enter")
        assert dialog.phase == "working"
        await wait_until(pilot, lambda: dialog.phase == "failed", seconds=120)
        assert "→" in screen_text(pilot)
        assert not (surroundings.project / "models" / "quick-1-10-converted").exists()
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, CheckpointsScreen))


async def test_leaving_takes_two_presses_and_leaves_nothing(surroundings: Surroundings) -> None:
    await ended_run(surroundings, "quick-1", 10)
    async with shown(surroundings) as (pilot, screen):
        await pilot.press("F")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, FinalizeDialog))
        dialog = pilot.app.screen
        assert isinstance(dialog, FinalizeDialog)
        # What the keys call, all at once: the worker must not be faster than the presses.
        dialog.do_begin()
        dialog.do_close()
        assert dialog.phase == "working"
        assert "again ends it" in str(dialog.query_one(".box").border_subtitle)
        assert pilot.app.screen is dialog
        dialog.do_close()
        await wait_until(pilot, lambda: pilot.app.screen is screen)
        workers = [each for each in pilot.app.workers if each.group == "publish"]
        await wait_until(pilot, lambda: all(each.is_finished for each in workers), seconds=60)
    assert not list((surroundings.project / "models").glob("*"))


def test_a_new_run_gets_the_next_number(tmp_path: Path) -> None:
    for name in ("quick-1", "quick-2", "plain"):
        (tmp_path / name).mkdir()
    assert unused_name(tmp_path / "quick-1").name == "quick-3"
    assert unused_name(tmp_path / "plain").name == "plain-2"


@pytest.fixture
def surroundings(surroundings: Surroundings) -> Surroundings:
    """The disk is always as full."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return replace(surroundings, free_bytes=lambda _: 74 * 2**30)
