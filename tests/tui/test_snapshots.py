"""One picture per screen and form. A changed picture is looked at before it is recorded anew:

make snapshots, then look at the SVG files in git's diff
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import screen_text, type_into, wait_until
from tests.tui.scripted_server import ScriptedServer, ScriptedServers
from tests.tui.scripted_supervisor import NOW, ScriptedSupervisor
from tests.tui.test_chat_screen import app_with, finished_run
from tests.tui.test_checkpoints_screen import ended_run
from tests.tui.test_launch_preview import ScriptedChecks
from workbench.jobs.preflight import Check
from workbench.runs.events import CheckpointEvent, EvaluationEvent
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome
from workbench.tui.app import WorkbenchApp
from workbench.tui.chat.side_pane import SidePane
from workbench.tui.screens.jobs import JobsScreen
from workbench.tui.screens.launch_preview import LaunchPreview
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.config_list import ConfigList

SIZES = [(80, 24), (120, 36)]
Compare = Callable[..., bool]
Prepare = Callable[[Pilot[None]], Awaitable[None]]

pytestmark = pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x36"])


@pytest.fixture
def shows(snap_compare: Compare, size: tuple[int, int]) -> Callable[[WorkbenchApp, Prepare], None]:
    """Compare what a program shows once it was prepared."""

    def compare(app: WorkbenchApp, prepare: Prepare) -> None:
        assert snap_compare(app, terminal_size=size, run_before=prepare)

    return compare


def test_configs(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        # What the program brings along itself is none of this picture.
        await pilot.press("slash")
        await type_into(pilot, "#config-filter", "small")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "ten steps" in screen_text(pilot))
        pilot.app.screen.query_one("#config-list", ConfigList).choose("small/longer")
        await wait_until(pilot, lambda: "longer" in str(pilot.app.screen.resolution))  # type: ignore[attr-defined]

    shows(WorkbenchApp(surroundings, screen="configs"), prepare)


def test_launch_preview(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(surroundings.project)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    look = ScriptedChecks(
        Check("config", "ok", "small/quick: 60 keys, 0 errors"),
        Check("model", "ok", "model: llama, 0.1 M parameters, random weights"),
        Check("folder", "ok", f"new run in {surroundings.project}/output/quick-1"),
        Check("disk", "warning", "74 GiB free, the plan needs 68", "lower checkpoints.keep"),
    )
    look.let_all_go()

    async def prepare(pilot: Pilot[None]) -> None:
        await wait_until(
            pilot, lambda: "longer.yaml" in screen_text(pilot) or "a hundred" in screen_text(pilot)
        )
        pilot.app.push_screen(LaunchPreview("small/quick", typed=["--lr", "1e-4"], look=look))
        await wait_until(pilot, lambda: "asks" in screen_text(pilot))
        await wait_until(pilot, lambda: "◌" not in screen_text(pilot))

    shows(WorkbenchApp(surroundings, screen="configs"), prepare)


def _write_history(job: ScriptedSupervisor) -> None:
    for step in range(1, 181):
        loss = None if 120 <= step < 126 else 1.2 + 4 * math.exp(-step / 40) + 0.2 * math.sin(step)
        job.log_metrics(step, loss)
        if step % 50 == 0:
            job.log_event(
                EvaluationEvent(
                    time=NOW - 200 + step,
                    attempt=1,
                    step=step,
                    loss=1.4 + 3 * math.exp(-step / 40),
                    perplexity=None,
                    accuracy=None,
                    target_tokens=900,
                    seconds=1.0,
                    best=True,
                )
            )
    job.log_event(
        CheckpointEvent(
            time=NOW - 90,
            attempt=1,
            step=150,
            path="checkpoints/checkpoint-150",
            bytes=5 << 20,
            seconds=1.0,
            best=True,
        )
    )
    job.write_log(
        "".join(
            f"[default0]:19:5{number % 10}:00 INFO step {170 + number}/300 loss 1.2{number}\n"
            for number in range(10)
        )
    )


class AppWithJob(WorkbenchApp):
    """A program whose scripted job goes when it goes: after its picture was taken."""

    job: ScriptedSupervisor | None = None

    async def on_unmount(self) -> None:
        if self.job is not None:
            await self.job.close()


async def _a_live_job(surroundings: Surroundings, pilot: Pilot[None]) -> None:
    """Put a training job beside one that failed, and wait until all of it is drawn."""
    failed = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-1"))
    failed.log_metrics(3, 4.5)
    failed.end(
        Outcome(
            attempt=1,
            state="failed",
            step=3,
            time=NOW - 5000,
            reason="out_of_memory",
            message="rank 0 ran out of memory",
        )
    )
    await failed.close_files()
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-2"))
    _write_history(job)
    await job.answer()
    app = pilot.app
    assert isinstance(app, AppWithJob)
    app.job = job
    screen = app.screen
    assert isinstance(screen, JobsScreen)
    await wait_until(pilot, lambda: screen.picture is not None and screen.picture.name == "quick-2")
    await wait_until(pilot, lambda: "180/300" in screen_text(pilot))
    await wait_until(pilot, lambda: "✗ failed" in screen_text(pilot))
    await wait_until(pilot, lambda: screen.picture is not None and screen.picture.has_link)
    await wait_until(pilot, lambda: screen.picture is not None and screen.picture.log)
    app.clear_said()
    await pilot.pause()


def _shown_with_a_job(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    then: Prepare,
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await _a_live_job(surroundings, pilot)
        await then(pilot)

    shows(AppWithJob(surroundings, screen="jobs"), prepare)


def test_jobs(surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]) -> None:
    _shown_with_a_job(surroundings, shows, _nothing)


def test_jobs_empty(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await wait_until(pilot, lambda: "No jobs yet" in screen_text(pilot))

    shows(WorkbenchApp(surroundings, screen="jobs"), prepare)


def test_a_zoomed_chart(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def zoom(pilot: Pilot[None]) -> None:
        pilot.app.screen.query_one("#loss-chart").focus()
        await pilot.press("z")
        await wait_until(pilot, lambda: pilot.app.screen.query_one("#loss-chart").size.height > 15)

    _shown_with_a_job(surroundings, shows, zoom)


def test_the_stop_menu(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def stop(pilot: Pilot[None]) -> None:
        await pilot.press("X")
        await wait_until(pilot, lambda: "Save, then stop" in screen_text(pilot))

    _shown_with_a_job(surroundings, shows, stop)


def test_the_abort_prompt(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def abort(pilot: Pilot[None]) -> None:
        await pilot.press("X")
        await wait_until(pilot, lambda: "Save, then stop" in screen_text(pilot))
        await pilot.press("a")
        await wait_until(pilot, lambda: "Nothing happens until" in screen_text(pilot))

    _shown_with_a_job(surroundings, shows, abort)


def test_help(surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]) -> None:
    async def ask(pilot: Pilot[None]) -> None:
        await wait_until(pilot, lambda: "No jobs yet" in screen_text(pilot))
        await pilot.press("question_mark")
        await wait_until(pilot, lambda: "Keys here" in screen_text(pilot))

    shows(WorkbenchApp(surroundings, screen="jobs"), ask)


def test_chat(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.run(finished_run(surroundings))
    watch = iter(range(10_000))
    monkeypatch.setattr(random, "randrange", lambda _: 7)
    still = replace(surroundings, stopwatch=lambda: float(next(watch) // 10_000))
    server_holder: list[ScriptedServer] = []

    async def prepare(pilot: Pilot[None]) -> None:
        await wait_until(pilot, lambda: "checkpoint-10" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "is loaded" in screen_text(pilot))
        server = server_holder[0]
        for _ in server.pieces:
            server.go_on.release()
        await type_into(pilot, "#prompt", "What is your name?")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        pilot.app.clear_said()  # type: ignore[attr-defined]
        await type_into(pilot, "#prompt", "And who are you?")

    server = ScriptedServer("My name is ", "Samantha. ", "I keep you company.")
    server_holder.append(server)
    shows(app_with(server, still), prepare)


def test_chat_picker(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    asyncio.run(finished_run(surroundings, "quick-1"))
    asyncio.run(finished_run(surroundings, "quick-2"))

    async def prepare(pilot: Pilot[None]) -> None:
        await wait_until(pilot, lambda: screen_text(pilot).count("checkpoint-10") == 2)

    shows(WorkbenchApp(surroundings, screen="chat"), prepare)


def _with_checkpoints(surroundings: Surroundings) -> Surroundings:
    """Two runs that have ended; the disk is always as full."""
    asyncio.run(ended_run(surroundings, "quick-1", 10, 20))
    asyncio.run(ended_run(surroundings, "quick-2", 50, 100, 150))
    return replace(surroundings, free_bytes=lambda _: 74 * 2**30)


async def _checkpoints_listed(pilot: Pilot[None]) -> None:
    await wait_until(pilot, lambda: "quick-1" in screen_text(pilot))
    await wait_until(pilot, lambda: "checkpoint-150" in screen_text(pilot))


def test_checkpoints(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await _checkpoints_listed(pilot)
        await pilot.press("v")
        await wait_until(pilot, lambda: "✓ verified" in screen_text(pilot))

    shows(WorkbenchApp(_with_checkpoints(surroundings), screen="checkpoints"), prepare)


def test_checkpoints_empty(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await wait_until(pilot, lambda: "Nothing saved yet" in screen_text(pilot))

    still = replace(surroundings, free_bytes=lambda _: 74 * 2**30)
    shows(WorkbenchApp(still, screen="checkpoints"), prepare)


def test_finalize(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await _checkpoints_listed(pilot)
        await pilot.press("F")
        await wait_until(pilot, lambda: "Same as" in screen_text(pilot))
        await pilot.press("tab", "tab", "right")
        await wait_until(pilot, lambda: "--gguf q8_0" in screen_text(pilot))

    shows(WorkbenchApp(_with_checkpoints(surroundings), screen="checkpoints"), prepare)


def test_what_was_finalized(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    from workbench.jobs.model_worker import Published
    from workbench.tui.screens.finalize import FinalizeDialog

    server = ScriptedServer("My name is Samantha. ", "It is nice to meet you.")

    async def prepare(pilot: Pilot[None]) -> None:
        await _checkpoints_listed(pilot)
        await pilot.press("F")
        await wait_until(pilot, lambda: "Same as" in screen_text(pilot))
        dialog = pilot.app.screen
        assert isinstance(dialog, FinalizeDialog)
        dialog.phase = "working"
        dialog.start_server = server.start
        for stage in ("copying", "logits", "logits of the checkpoint", "logits of transformers"):
            dialog.tell_stage(stage, 4_000_000, 4_000_000)
        for _ in server.pieces:
            server.go_on.release()
        published = Published(
            path=str(surroundings.project / "models" / "quick-2-150"),
            step=150,
            bytes=14_495_514_624,
            files={f"file-{number}": "" for number in range(9)},
            stop_ids=[2, 32000],
            difference=0.0,
            reference_difference=3e-7,
            gguf=None,
        )
        dialog.take(published)
        await wait_until(pilot, lambda: "replied" in screen_text(pilot))

    shows(WorkbenchApp(_with_checkpoints(surroundings), screen="checkpoints"), prepare)


def test_the_delete_prompt(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    async def prepare(pilot: Pilot[None]) -> None:
        await _checkpoints_listed(pilot)
        await pilot.press("D")
        await wait_until(pilot, lambda: "Type its step" in screen_text(pilot))

    shows(WorkbenchApp(_with_checkpoints(surroundings), screen="checkpoints"), prepare)


def _talking(pilot: Pilot[None], server: ScriptedServer) -> Awaitable[None]:
    async def talk() -> None:
        await wait_until(pilot, lambda: "checkpoint-20" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "is loaded" in screen_text(pilot))
        for _ in server.pieces:
            server.go_on.release()
        await type_into(pilot, "#prompt", "What is your name?")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "ended by itself" in screen_text(pilot))
        pilot.app.clear_said()  # type: ignore[attr-defined]

    return talk()


def test_chat_settings(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.run(finished_run(surroundings, steps=(10, 20)))
    monkeypatch.setattr(random, "randrange", lambda _: 7)
    server = ScriptedServer("My name is ", "Samantha. ", "I keep you company.")

    async def prepare(pilot: Pilot[None]) -> None:
        await _talking(pilot, server)
        await pilot.press("f8", "f7", *"0.9", "enter", "3")
        await wait_until(pilot, lambda: "✗ 3 is too large" in screen_text(pilot))
        pilot.app.clear_said()  # type: ignore[attr-defined]

    shows(app_with(server, replace(surroundings, stopwatch=lambda: 0.0)), prepare)


def test_chat_compare(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One side has answered, the other is at it; the answers before have a vote."""
    asyncio.run(finished_run(surroundings, steps=(10, 20), with_weights=True))
    monkeypatch.setattr(random, "randrange", lambda _: 7)
    a = ScriptedServer("My name is ", "Samantha. ", "I keep you company.")
    b = ScriptedServer(
        "I am ", "your friend, ", "and I like long walks, slow mornings ", "and tea."
    )

    async def prepare(pilot: Pilot[None]) -> None:
        await _talking(pilot, a)
        await pilot.press("f6")
        await wait_until(pilot, lambda: "Compare quick-1" in screen_text(pilot))
        await wait_until(pilot, lambda: "checkpoint-10" in screen_text(pilot))
        await pilot.press("down", "enter")
        screen = pilot.app.screen
        await wait_until(pilot, lambda: screen.query_one("#prompt-both").has_focus)
        for server in (a, b):
            for _ in server.pieces:
                server.go_on.release()
        await pilot.press("enter")
        await wait_until(pilot, lambda: not screen.key_state().refused)  # type: ignore[attr-defined]
        await pilot.press("escape", "less_than_sign")
        await wait_until(pilot, lambda: "A 1 – 0 B" in screen_text(pilot))
        screen.query_one("#prompt-both").focus()
        await type_into(pilot, "#prompt-both", "And what do you like?")
        for _ in a.pieces:
            a.go_on.release()
        for _ in b.pieces[:3]:
            b.go_on.release()
        await pilot.press("enter")

        def is_half_way() -> bool:
            left, right = screen.query(SidePane)
            return (
                left.state.doing == "ended"
                and right.state.num_tokens == 3
                and "slow mornings" in str(right.transcript.exchanges[-1].render())
            )

        await wait_until(pilot, is_half_way)
        await wait_until(pilot, lambda: "esc Stop B" in screen_text(pilot))
        pilot.app.clear_said()  # type: ignore[attr-defined]

    servers = ScriptedServers(checkpoint_20=a, checkpoint_10=b)
    shows(app_with(servers, replace(surroundings, stopwatch=lambda: 0.0)), prepare)


async def _nothing(pilot: Pilot[None]) -> None:
    await pilot.pause()


def test_the_light_theme(
    surroundings: Surroundings, shows: Callable[[WorkbenchApp, Prepare], None]
) -> None:
    _shown_with_a_job(replace(surroundings, light=True), shows, _nothing)


def test_without_colour(
    surroundings: Surroundings,
    shows: Callable[[WorkbenchApp, Prepare], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _shown_with_a_job(replace(surroundings, colour=False), shows, _nothing)
