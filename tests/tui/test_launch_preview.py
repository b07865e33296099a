"""The launch preview: checks as they finish, flags, the command; nothing starts before enter."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from tests.tui.conftest import screen_text, type_into, wait_until
from tests.tui.scripted_supervisor import NOW, ScriptedSupervisor
from workbench.config.load import ResolvedConfig
from workbench.jobs.data_worker import Progress
from workbench.jobs.preflight import Check
from workbench.runs.layout import RunFolder
from workbench.runs.outcome import Outcome
from workbench.tui.app import WorkbenchApp
from workbench.tui.screens.confirm import Confirm
from workbench.tui.screens.jobs import JobsScreen
from workbench.tui.screens.launch_preview import LaunchPreview
from workbench.tui.surroundings import Surroundings


class ScriptedChecks:
    """Looks at nothing; gives what a test wants, each when it is let go."""

    def __init__(self, *checks: Check | Progress) -> None:
        self.checks = checks
        self.go_on = threading.Semaphore(0)
        self.seen: list[ResolvedConfig] = []

    def __call__(self, resolved: ResolvedConfig, *, project: Path) -> Iterator[Check | Progress]:
        self.seen.append(resolved)
        for check in self.checks:
            assert self.go_on.acquire(timeout=20)
            yield check

    def let_all_go(self) -> None:
        self.go_on.release(100)


GOOD = Check("config", "ok", "small/quick: 60 keys, 0 errors")
WARNING = Check("disk", "warning", "disk is nearly full", "free some space")
ERROR = Check("model", "error", "model folder m: has no tokenizer.json", "download it")


@asynccontextmanager
async def on_preview(
    surroundings: Surroundings, look: ScriptedChecks, size: tuple[int, int] = (120, 36)
) -> AsyncIterator[tuple[Pilot[None], LaunchPreview]]:
    app = WorkbenchApp(surroundings, screen="configs")
    async with app.run_test(size=size) as pilot:
        screen = LaunchPreview("small/quick", look=look)
        app.push_screen(screen)
        await wait_until(pilot, lambda: screen.is_current and screen._planned is not None)
        yield pilot, screen
        look.let_all_go()


async def test_checks_arrive_as_they_finish(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD, ERROR)
    async with on_preview(surroundings, look) as (pilot, _):
        assert "◌ checking…" in screen_text(pilot)
        look.go_on.release()
        await wait_until(pilot, lambda: "✓ small/quick: 60 keys" in screen_text(pilot))
        assert "◌ checking…" in screen_text(pilot)
        look.go_on.release()
        await wait_until(pilot, lambda: "✗ model folder m" in screen_text(pilot))
        assert "→ download it" in screen_text(pilot)
        assert "◌" not in screen_text(pilot)


async def test_it_says_how_far_preparing_the_data_is(surroundings: Surroundings) -> None:
    look = ScriptedChecks(
        GOOD,
        Progress(stage="starting", done=0, total=0),
        Progress(stage="tokenizing", done=12_400, total=50_000),
        Progress(stage="packing", done=0, total=1),
    )
    async with on_preview(surroundings, look) as (pilot, screen):
        look.go_on.release(2)
        await wait_until(pilot, lambda: screen._progress is not None)
        assert "◌ checking…" in screen_text(pilot), "a stage without numbers is no news"
        look.go_on.release()
        await wait_until(pilot, lambda: "◌ tokenizing 12,400 of 50,000" in screen_text(pilot))
        assert "✓1" in screen_text(pilot), "progress is not counted as a check"
        look.go_on.release()
        await wait_until(pilot, lambda: "◌" not in screen_text(pilot))
        assert "tokenizing" not in screen_text(pilot)


async def test_closing_the_preview_ends_what_prepares_the_data(
    surroundings: Surroundings,
) -> None:
    has_ended = threading.Event()

    class Endless(ScriptedChecks):
        def __call__(
            self, resolved: ResolvedConfig, *, project: Path
        ) -> Iterator[Check | Progress]:
            try:
                while not has_ended.wait(0.02):
                    yield Progress(stage="tokenizing", done=1, total=2)
            finally:
                has_ended.set()

    async with on_preview(surroundings, Endless()) as (pilot, screen):
        await wait_until(pilot, lambda: "◌ tokenizing 1 of 2" in screen_text(pilot))
        assert not has_ended.is_set()
        await pilot.press("escape")
        await wait_until(pilot, lambda: pilot.app.screen is not screen)
        await wait_until(pilot, has_ended.is_set)


async def test_an_error_keeps_it_from_starting_and_names_the_remedy(
    surroundings: Surroundings,
) -> None:
    look = ScriptedChecks(ERROR)
    async with on_preview(surroundings, look) as (pilot, screen):
        look.let_all_go()
        await wait_until(pilot, lambda: "✗1" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "has no tokenizer.json; download it" in screen_text(pilot))
        assert pilot.app.screen is screen
        assert not (surroundings.project / "output").exists()


async def test_enter_waits_for_the_checks(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD)
    async with on_preview(surroundings, look) as (pilot, _):
        await pilot.press("enter")
        await wait_until(pilot, lambda: "the checks are not through yet" in screen_text(pilot))
        assert not (surroundings.project / "output").exists()


async def test_warnings_are_asked_about_and_no_starts_nothing(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD, WARNING)
    async with on_preview(surroundings, look) as (pilot, screen):
        look.let_all_go()
        await wait_until(pilot, lambda: "Launch (1 warning: asks)" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        assert "disk is nearly full; free some space" in screen_text(pilot)
        await pilot.press("enter")  # is not a yes
        assert isinstance(pilot.app.screen, Confirm)
        await pilot.press("n")
        await wait_until(pilot, lambda: pilot.app.screen is screen)
        assert not (surroundings.project / "output").exists()


async def test_typed_flags_change_config_plan_and_command(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD)
    look.let_all_go()
    async with on_preview(surroundings, look) as (pilot, screen):
        assert "small/quick → quick-1" in screen_text(pilot)
        await pilot.press("i")
        await type_into(pilot, "#flag-field", "--lr 2e-5 batch.train=2")
        await pilot.press("enter")
        await wait_until(pilot, lambda: len(look.seen) == 2)
        config = look.seen[1].config
        assert (config.optimizer.learning_rate, config.batch.train) == (2e-5, 2)
        await wait_until(pilot, lambda: "of 2 rows" in screen_text(pilot))
        assert screen.command_line.endswith("--lr 2e-5 batch.train=2")
        assert "train -t small/quick" in screen_text(pilot)
        # What is there already is added to, not typed over: it may be the folder of a run.
        await pilot.press("i", "space", *"seed", "backspace", "backspace", "backspace", "backspace")
        await pilot.press("enter")
        await wait_until(pilot, lambda: len(look.seen) == 3)
        assert screen.command_line.endswith("--lr 2e-5 batch.train=2")


async def test_a_mistake_in_what_was_typed_is_a_check(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD)
    look.let_all_go()
    async with on_preview(surroundings, look) as (pilot, screen):
        await pilot.press("i")
        await type_into(pilot, "#flag-field", "optimizer.learning_rte=1")
        await pilot.press("enter")
        await wait_until(pilot, lambda: "learning_rate?" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "! enter Launch: " in screen_text(pilot))
        assert pilot.app.screen is screen


async def test_a_check_that_breaks_is_told_and_starts_nothing(surroundings: Surroundings) -> None:
    class Broken(ScriptedChecks):
        def __call__(
            self, resolved: ResolvedConfig, *, project: Path
        ) -> Iterator[Check | Progress]:
            raise ZeroDivisionError("a fault of ours")

    async with on_preview(surroundings, Broken()) as (pilot, screen):
        await wait_until(pilot, lambda: "the checks broke: ZeroDivisionError" in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "! enter Launch: " in screen_text(pilot))
        assert pilot.app.screen is screen


async def test_the_command_is_copied_as_it_is_shown(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD)
    async with on_preview(surroundings, look) as (pilot, screen):
        await pilot.press("y")
        await wait_until(pilot, lambda: "command copied" in screen_text(pilot))
        assert pilot.app.clipboard == screen.command_line


async def test_the_narrow_form_has_tabs(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD)
    look.let_all_go()
    async with on_preview(surroundings, look, (80, 24)) as (pilot, _):
        await wait_until(pilot, lambda: "[Checks]  Plan  Flags  Command" in screen_text(pilot))
        await pilot.press("right_square_bracket", "right_square_bracket")
        await wait_until(pilot, lambda: "--max-steps" in screen_text(pilot))
        await pilot.press("right_square_bracket")
        await wait_until(pilot, lambda: "→ supervisor →" in screen_text(pilot))


async def test_a_real_check_of_a_project_that_cannot_train(surroundings: Surroundings) -> None:
    """The tiny project has no tokenizer and no data: preflight says so, file by file."""
    app = WorkbenchApp(surroundings, screen="configs")
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "ten steps" in screen_text(pilot))
        app.push_screen(LaunchPreview("small/quick"))
        await wait_until(pilot, lambda: "has no tokenizer.json" in screen_text(pilot))
        await wait_until(pilot, lambda: "◌" not in screen_text(pilot))
        await pilot.press("enter")
        await wait_until(pilot, lambda: "! enter Launch: " in screen_text(pilot))
        assert not (surroundings.project / "output").exists()


async def test_start_again_previews_the_run_s_own_config_in_its_own_folder(
    surroundings: Surroundings,
) -> None:
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-1"))
    job.log_metrics(1, 2.0)
    job.end(Outcome(attempt=1, state="stopped", step=1, time=NOW))
    await job.close_files()
    app = WorkbenchApp(surroundings, screen="jobs")
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until(pilot, lambda: "■ stopped" in screen_text(pilot))
        screen = app.screen
        assert isinstance(screen, JobsScreen)
        await wait_until(pilot, lambda: screen.picture is not None and screen.picture.has_ended)
        await pilot.press("R")
        await wait_until(pilot, lambda: isinstance(app.screen, LaunchPreview))
        assert isinstance(app.screen, LaunchPreview)
        await wait_until(pilot, lambda: "quick-1, one more attempt" in screen_text(pilot))
        assert f"training.output_dir={job.run.path}" in app.screen.command_line


FORECAST = Check("time", "ok", "10 steps, 4.2 min (training 4 min, samples 12 s); 24 s per step")


async def test_the_forecast_stands_whole_in_the_plan(surroundings: Surroundings) -> None:
    look = ScriptedChecks(GOOD, FORECAST)
    async with on_preview(surroundings, look) as (pilot, screen):
        look.let_all_go()
        await wait_until(pilot, lambda: "time      10 steps, 4.2 min" in screen_text(pilot))
        plan = " ".join(line.plain.strip() for line in screen._plan_lines(40))
        assert FORECAST.message in " ".join(plan.split())
        assert "✓1" in screen_text(pilot), "it is no check"
        assert "begins    at step 0, with random weights of seed" in screen_text(pilot)


async def test_a_model_that_is_only_named_is_marked_as_published(
    surroundings: Surroundings,
) -> None:
    named = surroundings.project / "configs" / "small" / "quick.yaml"
    named.write_text(named.read_text() + "model:\n  path: Qwen/Qwen2.5-7B-Instruct\n")
    async with on_preview(surroundings, ScriptedChecks(GOOD)) as (pilot, _):
        await wait_until(
            pilot,
            lambda: "model     qwen2.5-7b, not here; as published: qwen2" in screen_text(pilot),
        )
