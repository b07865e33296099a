"""The page about data tells the truth: its files are written, its commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "data.md"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with every file that the page shows."""
    folder = tmp_path_factory.mktemp("page")
    for _, name, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
    return folder


def commands() -> list[tuple[str, list[str]]]:
    """Give each command with the lines that the page shows of what it says."""
    found: list[tuple[str, list[str]]] = []
    for language, _, text in BLOCK.findall(PAGE.read_text("utf-8")):
        for line in text.splitlines() if language == "sh" else ():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def test_every_command_of_the_page_does_what_it_says(folder: Path) -> None:
    assert len(commands()) > 5
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "120"}
    for command, said in commands():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        for line in said:
            assert line.rstrip() in done.stdout, f"{command}\n{done.stdout}{done.stderr}"
