"""Random keys, sizes and news, by a seed: nothing breaks, and no job is ended unasked."""

import random

import pytest

from tests.tui.conftest import wait_until
from tests.tui.scripted_supervisor import ScriptedSupervisor
from workbench.control.messages import Abort, Stop
from workbench.runs.layout import RunFolder
from workbench.tui import keys
from workbench.tui.app import WorkbenchApp
from workbench.tui.screens.jobs import JobsScreen
from workbench.tui.surroundings import Surroundings

NUM_KEYS = 30
# Neither leaves, nor writes the number that abort asks for, nor says yes to a stop.
LEFT_OUT = {"q", "ctrl+c", "s", "n", "7"}
SIZES = [(120, 36), (80, 24), (61, 17), (40, 10), (200, 60)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_keys_break_nothing_and_end_no_job(
    surroundings: Surroundings, seed: int
) -> None:
    draw = random.Random(seed)
    pressable = sorted({key for row in keys.TABLE for key in row.keys} - LEFT_OUT)
    job = ScriptedSupervisor(RunFolder(surroundings.project / "output" / "quick-7"))
    for step in range(1, 40):
        job.log_metrics(step, 2.0)
    await job.answer()
    app = WorkbenchApp(surroundings, screen="jobs")
    try:
        async with app.run_test(size=(120, 36)) as pilot:
            screen = app.screen
            assert isinstance(screen, JobsScreen)
            await wait_until(pilot, lambda: screen.picture is not None and screen.picture.has_link)
            for number in range(NUM_KEYS):
                if number % 10 == 9:
                    await pilot.resize_terminal(*draw.choice(SIZES))
                    job.log_metrics(40 + number, draw.choice([1.0, None]))
                await pilot.press(draw.choice(pressable))
                focused = app.focused
                assert focused is None or focused.is_attached
    finally:
        await job.close()
    assert not [each for each in job.received if isinstance(each, (Stop, Abort))]
