"""The whole way with real processes: config → preview → job → curve → save → stop → found again."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.tui.conftest import screen_text, type_into, wait_until
from workbench.runs.checkpoints import list_checkpoints
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import verify
from workbench.runs.outcome import read_outcome
from workbench.tui.app import WorkbenchApp
from workbench.tui.screens.finalize import FinalizeDialog
from workbench.tui.screens.jobs import JobsScreen
from workbench.tui.screens.launch_preview import LaunchPreview
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.config_list import ConfigList

FLAGS = "--max-steps 400 evaluation.every_steps=0 training.device=cpu"


@pytest.mark.end_to_end
async def test_a_job_is_started_steered_and_found_again(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    import time
    from dataclasses import replace

    surroundings = replace(surroundings, clock=time.time)
    app = WorkbenchApp(surroundings, screen="configs")
    async with app.run_test(size=(120, 36)) as pilot:
        configs = app.screen.query_one("#config-list", ConfigList)
        await wait_until(pilot, lambda: configs.choose("demo"))
        await pilot.press("L")
        await wait_until(pilot, lambda: isinstance(app.screen, LaunchPreview))
        await pilot.press("i")
        await type_into(pilot, "#flag-field", FLAGS)
        await pilot.press("enter")
        await wait_until(pilot, lambda: "--max-steps 400" in screen_text(pilot), seconds=60)
        await wait_until(pilot, lambda: "steps per epoch" in screen_text(pilot), seconds=60)
        await wait_until(pilot, lambda: "◌" not in screen_text(pilot), seconds=60)
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(app.screen, JobsScreen), seconds=60)
        screen = app.screen
        assert isinstance(screen, JobsScreen)
        await wait_until(
            pilot, lambda: screen.picture is not None and screen.picture.step >= 3, seconds=90
        )
        await pilot.press("S")
        await wait_until(pilot, lambda: "saved checkpoint-" in screen_text(pilot), seconds=60)
        await pilot.press("q")
    assert app.parting == ["demo-1"]

    app = WorkbenchApp(surroundings, screen="jobs")
    async with app.run_test(size=(120, 36)) as pilot:
        found = app.screen
        assert isinstance(found, JobsScreen)
        await wait_until(
            pilot, lambda: found.picture is not None and found.picture.has_link, seconds=60
        )
        picture = found.picture
        assert picture is not None
        curves = picture.curves
        assert curves is not None
        assert curves.loss.raw.x[0] == 1.0
        assert picture.last_checkpoint is not None
        await pilot.press("X")
        await wait_until(pilot, lambda: "Save, then stop" in screen_text(pilot))
        await pilot.press("n")
        await wait_until(pilot, lambda: "■ stopped" in screen_text(pilot), seconds=60)
    outcome = read_outcome(RunFolder(surroundings.project / "output" / "demo-1").outcome)
    assert outcome is not None
    assert outcome.state == "stopped"


@pytest.mark.end_to_end
async def test_a_checkpoint_of_the_demo_is_published_from_its_screen(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    """Trained by ``workbench train``; the worker, the server and the reply are the real ones."""
    import time
    from dataclasses import replace

    surroundings = replace(surroundings, clock=time.time)
    run = RunFolder(surroundings.project / "output" / "demo-1")
    train = ["train", "-t", "demo", "--max-steps", "2", f"training.output_dir={run.path}"]
    training = await asyncio.create_subprocess_exec(sys.executable, "-m", "workbench", *train)
    assert await training.wait() == 0
    app = WorkbenchApp(surroundings, screen="checkpoints")
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "▌    checkpoint-2 " in screen_text(pilot), seconds=60)
        await pilot.press("v")
        await wait_until(pilot, lambda: "✓ verified" in screen_text(pilot), seconds=60)
        await pilot.press("F")
        await wait_until(pilot, lambda: isinstance(app.screen, FinalizeDialog))
        dialog = app.screen
        assert isinstance(dialog, FinalizeDialog)
        await pilot.press("tab", "tab", "right", "right", "right")
        command = "workbench finalize output/demo-1 models/demo-1-2 --step 2 --gguf f16"
        assert dialog.command_line() == command
        await pilot.press("enter")
        await wait_until(pilot, lambda: dialog.phase in ("done", "failed"), seconds=240)
        text = screen_text(pilot)
        assert dialog.phase == "done", text
        for part in ("step 2, ", "equal the checkpoint's", "f16.gguf", "replied", command):
            assert part in text, (part, text)
        await pilot.press("enter")
        await wait_until(pilot, lambda: "made here" in screen_text(pilot), seconds=60)
    made = surroundings.project / "models" / "demo-1-2"
    assert verify(made).step == 2
    assert not (made / "training_state").exists()
    assert (made / "demo-1-2-f16.gguf").read_bytes()[:4] == b"GGUF"
    assert [each.step for each in list_checkpoints(run)] == [2]


async def test_two_checkpoints_are_asked_the_same_by_real_servers(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    """Load, lock the seed, answer twice alike, compare, vote, go back: nothing is played here."""
    from tests.inference.tiny_model import add_checkpoint, write_tiny_model
    from workbench.tui.screens.chat import ChatScreen

    run = RunFolder(surroundings.project / "output" / "quick-1")
    run.path.mkdir(parents=True)
    run.config.write_text("description: made by hand\n")
    run.origins.write_text("{}\n")
    run.checkpoints.mkdir()
    for seed, step in ((1, 10), (2, 20)):
        add_checkpoint(run, write_tiny_model(tmp_path / f"model-{seed}", seed=seed), step)
    app = WorkbenchApp(surroundings, screen="chat")
    async with app.run_test(size=(120, 36)) as pilot:
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        await wait_until(pilot, lambda: "checkpoint-20" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus, seconds=120)
        await pilot.press("f7", "1", *(["down"] * 5), "1", "2", "f7", *"Hello", "enter")
        await wait_until(pilot, lambda: "12 tok" in screen_text(pilot), seconds=60)
        await wait_until(pilot, lambda: not screen.key_state().refused)
        await pilot.press("f8", "f5")
        await wait_until(pilot, lambda: "‹ 2/2 ›" in screen_text(pilot))
        await wait_until(pilot, lambda: not screen.key_state().refused, seconds=60)
        conversation = screen.conversation
        assert conversation is not None
        first, second = conversation.path[0].after
        assert first.seed == second.seed
        assert first.text == second.text != ""

        await pilot.press("f6")
        await wait_until(pilot, lambda: "Compare quick-1/checkpoint-20 with" in screen_text(pilot))
        await wait_until(pilot, lambda: "checkpoint-10" in screen_text(pilot))
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: screen.query_one("#prompt-both").has_focus)
        await pilot.press("enter")  # the message of before stands in the field
        await wait_until(pilot, lambda: screen_text(pilot).count("12 tok ·") >= 2, seconds=120)
        await wait_until(pilot, lambda: not screen.key_state().refused, seconds=60)
        pair = screen.pair
        assert pair is not None
        ours, theirs = (each.path[1] for each in pair.conversations)
        assert ours.seed == theirs.seed == first.seed
        assert ours.settings == theirs.settings
        assert ours.text == first.text, "the same model, prompt, settings and seed"
        assert theirs.text not in ("", ours.text)
        await pilot.press("escape", "greater_than_sign")
        await wait_until(pilot, lambda: "checkpoint-10 is better" in screen_text(pilot))
        assert '"vote":"b"' in (surroundings.project / "output" / "votes.jsonl").read_text()
        await pilot.press("f6")
        await wait_until(pilot, lambda: screen.query_one("#prompt").has_focus, seconds=120)
