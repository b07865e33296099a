"""What a fresh process has loaded when the first frame is drawn."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "tokenizers", "datasets", "numpy", "httpx", "fastapi", "jinja2"]

CODE = """
import asyncio, sys
from pathlib import Path
from workbench.tui.app import WorkbenchApp
from workbench.tui.surroundings import Surroundings

async def main():
    app = WorkbenchApp(Surroundings(project=Path(sys.argv[1])), screen=sys.argv[2])
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.pause()
        drawn = "".join(
            segment.text for strip in app.screen._compositor.render_strips() for segment in strip
        )
        assert "Detach" in drawn, drawn

asyncio.run(main())
print(*[name for name in sys.argv[3:] if name in sys.modules])
"""


@pytest.mark.parametrize("screen", ["configs", "jobs", "chat"])
def test_the_first_frame_of_a_screen_loads_nothing_heavy(screen: str, project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(project), screen, *HEAVY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_check_would_see_a_heavy_module(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import numpy\n" + CODE, str(project), "configs", *HEAVY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["numpy"]
