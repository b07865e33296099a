"""The page about memory tells the truth: its commands run, and its table is what they say.

A line of the page may leave out words (``…``); blanks count as one.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.config.known_models import known_model
from workbench.config.load import parse_overrides, resolve
from workbench.config.memory_fit import Machine, fit
from workbench.config.memory_parts import GIB

PAGE = (Path(__file__).parents[2] / "docs" / "how_to" / "memory.md").read_text("utf-8")
ROW = re.compile(
    r"^\| .+? \| .+? \| `(\S+) -M (\S+)(.*?)` "
    r"\| ([\d.]+) GiB of [\d.]+ \| ([\d.]+) GiB of (\d+) \|$",
    re.M,
)


def commands() -> list[tuple[str, list[str]]]:
    """Give each command with the lines that the page shows of what it says."""
    found: list[tuple[str, list[str]]] = []
    for text in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S):
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip("… "):
                found[-1][1].append(line)
    return found


def is_among(shown: str, lines: list[str]) -> bool:
    """Say whether a line of the page is one of those that were printed."""
    words = [re.escape(" ".join(part.split())) for part in shown.split("…")]
    pattern = re.compile(r"\s*" + r".*".join(words) + r"\s*")
    return any(pattern.fullmatch(" ".join(line.split())) for line in lines)


@pytest.mark.parametrize(("command", "shown"), commands(), ids=lambda value: str(value)[:60])
def test_every_command_of_the_page_says_what_it_shows(
    command: str, shown: list[str], tmp_path: Path
) -> None:
    assert shown
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in shown:
        assert is_among(line, done.stdout.splitlines()), f"{line}\n{done.stdout}"


def test_the_table_holds_what_estimate_says() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 6
    for name, model, more, on_card, on_host, host_gib in rows:
        config = resolve(name, overrides=parse_overrides(shlex.split(more))).config
        found = fit(config, known_model(model)[1], Machine(host_gib=float(host_gib)))
        assert found.verdict in ("fits", "tight"), name
        assert found.worst.total / GIB == pytest.approx(float(on_card), rel=0.1), name
        assert found.host_needed / GIB == pytest.approx(float(on_host), rel=0.1), name
