"""The jobs screen against a scripted supervisor: live data, commands, and what goes wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import screen_text, wait_until
from tests.tui.scripted_supervisor import NOW, ScriptedSupervisor, write_checkpoint
from workbench.control.messages import (
    Abort,
    Ended,
    Evaluate,
    Held,
    Pause,
    Resume,
    Save,
    Saved,
    Stop,
)
from workbench.runs.events import CheckpointEvent, EvaluationEvent, SampleEvent
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import FirstError, Outcome
from workbench.tui.app import WorkbenchApp
from workbench.tui.job_picture import JobPicture
from workbench.tui.screens.jobs import JobsScreen
from workbench.tui.screens.stop_menu import AbortPrompt, StopMenu
from workbench.tui.surroundings import Surroundings
from workbench.tui.widgets.chart import Chart
from workbench.tui.widgets.log_view import LogView


@asynccontextmanager
async def on_a_job(
    surroundings: Surroundings, size: tuple[int, int] = (120, 36), *, num_records: int = 100
) -> AsyncIterator[tuple[Pilot[None], ScriptedSupervisor, JobsScreen]]:
    """Open the jobs screen on a training job with some history."""
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-3"))
    for step in range(1, num_records + 1):
        job.log_metrics(step, 4.0 - 2.0 * step / 100)
    job.write_log("[default0]:first words\n[default0]:10%\r50%\r\x1b[32mdone\x1b[0m\n")
    await job.answer()
    app = WorkbenchApp(surroundings, screen="jobs")
    try:
        async with app.run_test(size=size) as pilot:
            screen = app.screen
            assert isinstance(screen, JobsScreen)
            await wait_until(pilot, lambda: screen.picture is not None and screen.picture.has_link)
            await wait_until(pilot, lambda: picture(screen).max_steps == 300)
            yield pilot, job, screen
    finally:
        await job.close()


def picture(screen: JobsScreen) -> JobPicture:
    assert screen.picture is not None
    return screen.picture


async def test_a_job_that_runs_is_found_with_its_whole_history(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, _, screen):
        await wait_until(pilot, lambda: picture(screen).step == 100)
        curves = picture(screen).curves
        assert curves is not None
        assert curves.loss.raw.x.tolist() == [float(step) for step in range(1, 101)]
        text = screen_text(pilot)
        assert "100/300" in text
        assert "● training" in text
        assert "2.0000 ▼" in text
        assert "supervisor answers" in text
        assert " done" in text
        assert "50%" not in text


async def test_news_move_the_chart_at_the_pace_of_the_screen(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        chart = screen.query_one("#loss-chart", Chart)
        await wait_until(pilot, lambda: chart.num_drawn > 0)
        before = chart.num_drawn
        for step in range(101, 301):
            job.log_metrics(step, 1.0)
        await wait_until(pilot, lambda: picture(screen).step == 300)
        await wait_until(pilot, lambda: "300/300" in screen_text(pilot))
        assert before < chart.num_drawn < before + 100


async def test_a_save_shows_that_it_was_accepted_and_what_it_made(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        await pilot.press("S")
        await wait_until(pilot, lambda: job.received)
        assert isinstance(job.received[0], Save)
        await wait_until(pilot, lambda: "quick-3: saving at the next step…" in screen_text(pilot))
        assert "saving…" in screen_text(pilot)
        job.finish_command(
            Saved(step=101, path="checkpoints/checkpoint-101", bytes=5 << 20, seconds=2.0)
        )
        await wait_until(
            pilot, lambda: "quick-3: saved checkpoint-101, 5 MiB in 2 s" in screen_text(pilot)
        )


async def test_a_second_press_says_since_when_and_sends_nothing(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        await pilot.press("S")
        await wait_until(pilot, lambda: "saving at" in screen_text(pilot))
        await pilot.press("S", "S")
        await wait_until(pilot, lambda: "saving… already" in screen_text(pilot))
        assert len(job.received) == 1


async def test_pause_and_resume_are_one_key(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        await pilot.press("P")
        await wait_until(pilot, lambda: job.received)
        assert isinstance(job.received[0], Pause)
        job.say_state("paused")
        job.finish_command(Held(step=100, paused=True))
        await wait_until(pilot, lambda: "paused at step 100" in screen_text(pilot))
        assert "P Resume" in screen_text(pilot)
        await pilot.press("P")
        await wait_until(pilot, lambda: len(job.received) == 2)
        assert isinstance(job.received[1], Resume)
        assert "ETA" not in screen_text(pilot)
        assert picture(screen).state == "paused"


async def test_evaluate_is_sent(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        await pilot.press("V")
        await wait_until(pilot, lambda: job.received)
        assert isinstance(job.received[0], Evaluate)


@pytest.mark.parametrize(("key", "save"), [("s", True), ("n", False)])
async def test_the_stop_menu_stops_with_or_without_a_save(
    surroundings: Surroundings, key: str, save: bool
) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        await pilot.press("X")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, StopMenu))
        text = screen_text(pilot)
        assert "loses 100 steps (1 m 40 s)" in text
        assert "workbench control stop quick-3" in text
        await pilot.press(key)
        await wait_until(pilot, lambda: job.received)
        sent = job.received[0]
        assert isinstance(sent, Stop)
        assert sent.save is save


async def test_enter_and_escape_stop_nothing(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        await pilot.press("X")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, StopMenu))
        await pilot.press("enter", "escape")
        await wait_until(pilot, lambda: pilot.app.screen is screen)
        assert job.received == []


async def test_abort_needs_the_number_to_be_typed(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        await pilot.press("X")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, StopMenu))
        await pilot.press("a")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, AbortPrompt))
        await pilot.press("enter", "4", "enter")
        await pilot.pause()
        assert isinstance(pilot.app.screen, AbortPrompt)
        assert job.received == []
        await pilot.press("backspace", "3")
        await wait_until(pilot, lambda: "It matches" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: job.received)
        assert isinstance(job.received[0], Abort)
        job.finish_command(Ended(state="aborted", step=100, checkpoint=None, killed=2))
        await wait_until(pilot, lambda: "2 processes had to be killed" in screen_text(pilot))
        assert pilot.app.screen is screen


async def test_a_dialog_ignores_keys_in_its_first_moments(surroundings: Surroundings) -> None:
    from dataclasses import replace

    watch = [100.0]
    surroundings = replace(surroundings, guard_seconds=0.25, stopwatch=lambda: watch[0])
    async with on_a_job(surroundings) as (pilot, job, _):
        await pilot.press("X")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, StopMenu))
        await pilot.press("s", "n")
        assert isinstance(pilot.app.screen, StopMenu)
        assert job.received == []
        watch[0] += 0.3
        await pilot.press("s")
        await wait_until(pilot, lambda: job.received)


async def test_a_job_without_a_sign_of_life_is_shown_as_silent_only(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        job.say_idle(240.0)
        await wait_until(pilot, lambda: "? silent 4m" in screen_text(pilot))
        assert picture(screen).state == "training"
        job.say_idle(0.5)
        await wait_until(pilot, lambda: "silent" not in screen_text(pilot))


async def test_when_the_supervisor_vanishes_the_files_go_on_and_keys_are_off(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        await job.vanish()
        await wait_until(pilot, lambda: "does not answer since" in screen_text(pilot))
        job.log_metrics(101, 0.5)
        await wait_until(pilot, lambda: picture(screen).step == 101)
        await pilot.press("S")
        await wait_until(pilot, lambda: "! S Save:" in screen_text(pilot))
        assert job.received == []
        await job.answer()
        await wait_until(pilot, lambda: "does not answer since" not in screen_text(pilot))
        await pilot.press("S")
        await wait_until(pilot, lambda: job.received)


async def test_a_refusal_is_shown_with_its_reason(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        job.state = "stopping"  # the screen does not know it yet
        await pilot.press("S")
        await wait_until(
            pilot, lambda: "save failed: the job is stopping; wait" in screen_text(pilot)
        )


async def test_a_failure_names_rank_and_cause(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        job.end(
            Outcome(
                attempt=1,
                state="failed",
                step=100,
                time=NOW,
                reason="out_of_memory",
                message="rank 0 ran out of memory",
                first_error=FirstError(
                    rank=0,
                    message="wanted 250 MiB",
                    remedy="1. end what else runs on this GPU, or choose another with -d: other "
                    "processes hold 13.7 GiB of its 24.0 GiB\n2. batch.microbatches: 8 (takes "
                    "1.2 GiB off)",
                ),
            )
        )
        await job.vanish()
        await wait_until(pilot, lambda: picture(screen).state == "failed")
        await wait_until(pilot, lambda: "✗ failed" in screen_text(pilot))
        text = screen_text(pilot)
        assert "out_of_memory: rank 0: wanted 250 MiB" in text
        assert "→ 1. end what else runs" in text
        assert "24.0 GiB" in text, "a long line goes on below"
        assert "→ 2. batch.microbatches: 8 (takes 1.2 GiB off)" in text
        await pilot.press("S")
        await wait_until(pilot, lambda: "the job has ended: failed" in screen_text(pilot))


async def test_evaluations_and_checkpoints_are_told(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        job.log_event(
            EvaluationEvent(
                time=NOW - 30,
                attempt=1,
                step=90,
                loss=1.25,
                perplexity=3.5,
                accuracy=None,
                target_tokens=100,
                seconds=1.0,
                best=True,
            )
        )
        job.log_event(
            CheckpointEvent(
                time=NOW - 60,
                attempt=1,
                step=90,
                path="checkpoints/checkpoint-90",
                bytes=5 << 20,
                seconds=1.0,
                best=True,
            )
        )
        await wait_until(pilot, lambda: "eval 1.2500 @90 (best)" in screen_text(pilot))
        text = screen_text(pilot)
        assert "last save checkpoint-90 best, 1 m 0 s ago" in text
        # One happening of a step hides the other on the axis; one of them is there.
        axis = [row for row in text.splitlines() if "└" in row]
        assert any("S" in row or "E" in row for row in axis)


async def test_what_the_model_says_is_shown_beside_its_numbers(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, _):
        job.log_event(
            SampleEvent(time=NOW, attempt=1, step=90, prompt="Who are you?", reply="I am Samantha.")
        )
        await wait_until(
            pilot, lambda: "said @90  Who are you? → I am Samantha." in screen_text(pilot)
        )
        assert "at step 90 Who are you? → I am Samantha." in screen_text(pilot), "in the log too"


async def test_a_loss_that_is_not_finite_leaves_a_gap_and_a_mark(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        for step in range(101, 141):
            job.log_metrics(step, None)
        job.log_metrics(141, 2.0)
        await wait_until(pilot, lambda: picture(screen).step == 141)
        await wait_until(
            pilot, lambda: any("└" in row and "!" in row for row in screen_text(pilot).splitlines())
        )


async def test_the_log_stands_still_while_it_is_read(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        job.write_log("".join(f"[default0]:line {number}\n" for number in range(100)))
        await wait_until(pilot, lambda: "line 99" in screen_text(pilot))
        log = screen.query_one("#job-log", LogView)
        log.focus()
        await pilot.press("k", "k", "k")
        assert not log.follows
        seen = [row for row in screen_text(pilot).splitlines() if "line 9" in row]
        job.write_log("[default0]:newest\n")
        await wait_until(pilot, lambda: log.num_new == 1)
        assert [row for row in screen_text(pilot).splitlines() if "line 9" in row] == seen
        await pilot.press("G")
        await wait_until(pilot, lambda: "newest" in screen_text(pilot))
        assert log.follows


async def test_charts_show_their_tail_and_say_so(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, _, screen):
        await wait_until(pilot, lambda: picture(screen).step == 100)
        screen.query_one("#loss-chart").focus()
        await pilot.press("plus")
        await wait_until(pilot, lambda: "LIVE TAIL 50 steps" in screen_text(pilot))
        assert screen.query_one("#memory-chart", Chart).tail == 50
        await pilot.press("0")
        await wait_until(pilot, lambda: "LIVE TAIL" not in screen_text(pilot))


async def test_a_zoomed_pane_has_the_screen_and_gives_it_back(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings) as (pilot, _, screen):
        chart = screen.query_one("#loss-chart", Chart)
        chart.focus()
        before = chart.size
        await pilot.press("z")
        await wait_until(pilot, lambda: chart.size.width > 100)
        assert not screen.query_one("#job-log").display
        await pilot.press("escape")
        await wait_until(pilot, lambda: chart.size == before)


async def test_resizing_while_news_stream_keeps_everything(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings, size=(200, 60)) as (pilot, job, screen):
        step = 101
        for size in ((80, 24), (40, 10), (120, 36), (61, 16), (200, 60)):
            await pilot.resize_terminal(*size)
            job.log_metrics(step, 1.5)
            await wait_until(pilot, lambda step=step: picture(screen).step == step)  # type: ignore[misc]
            if size == (40, 10):
                await wait_until(pilot, lambda: "Needs 60×16, this window" in screen_text(pilot))
                assert "quick-3 ● training" in screen_text(pilot)
            else:
                await wait_until(pilot, lambda: "Jobs" in screen_text(pilot))
            step += 1


async def test_the_narrow_form_shows_panes_as_tabs(surroundings: Surroundings) -> None:
    async with on_a_job(surroundings, size=(80, 24)) as (pilot, _, screen):
        await wait_until(pilot, lambda: "[Overview]  Loss  Memory  Log" in screen_text(pilot))
        await pilot.press("right_square_bracket", "right_square_bracket")
        await wait_until(pilot, lambda: "Overview  Loss  [Memory]  Log" in screen_text(pilot))
        assert screen.query_one("#memory-chart").display
        assert not screen.query_one("#loss-chart").display
        await pilot.press("right_square_bracket")
        await wait_until(pilot, lambda: "first words" in screen_text(pilot))


async def test_readonly_refuses_to_act_and_still_shows_the_keys(
    surroundings: Surroundings,
) -> None:
    from dataclasses import replace

    async with on_a_job(replace(surroundings, readonly=True)) as (pilot, job, _):
        await pilot.press("S", "X", "P")
        await wait_until(pilot, lambda: "started with --readonly" in screen_text(pilot))
        assert "S Save" in screen_text(pilot)
        assert job.received == []


async def test_leaving_says_what_keeps_running_and_touches_no_file(
    surroundings: Surroundings,
) -> None:
    async with on_a_job(surroundings) as (pilot, job, screen):
        await wait_until(pilot, lambda: picture(screen).step == 100)
        app = pilot.app
        assert isinstance(app, WorkbenchApp)
        before = files_of(job.run.path)
        await pilot.press("q")
        await pilot.pause()
        assert app.parting == ["quick-3"]
        assert files_of(job.run.path) == before


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_finished_run_is_listed_with_its_history(surroundings: Surroundings) -> None:
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-1"))
    for step in range(1, 11):
        job.log_metrics(step, 2.0)
    write_checkpoint(job.run, 10)
    job.end(
        Outcome(
            attempt=1, state="finished", step=10, time=NOW, checkpoint="checkpoints/checkpoint-10"
        )
    )
    await job.close_files()
    app = WorkbenchApp(surroundings, screen="jobs")
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "✓ finished" in screen_text(pilot))
        screen = app.screen
        assert isinstance(screen, JobsScreen)
        await wait_until(pilot, lambda: screen.picture is not None and screen.picture.step == 10)
        assert "EMA 2.0000" in screen_text(pilot)


async def test_without_jobs_the_screen_says_how_to_get_one(surroundings: Surroundings) -> None:
    app = WorkbenchApp(surroundings, screen="jobs")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "No jobs yet. 1 pick a config" in screen_text(pilot))
