"""The tour of the configs can be walked: its commands run, and print what it shows of them.

A block of commands is marked in its first line: `bash` runs, `bash fails` is refused, `bash answer
TEXT` is asked something, `bash by-hand` needs a person or minutes and is not run. A block of text
behind it holds lines of what it prints; `…` stands for anything.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench.cli.main import VERBS
from workbench.config.load import parse_overrides, resolve
from workbench.config.tree_svg import tree_svg
from workbench.jobs.editor import VSCODE_SOCKET

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "tutorial" / "configuration.md"
BLOCK = re.compile(r"^```(\w+)(?: (.*?))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """Commands of the page, and the lines it shows of what they print."""

    commands: str
    mark: str
    shown: str


def steps() -> Iterator[Step]:
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    for number, (language, mark, text) in enumerate(blocks):
        if language == "bash":
            behind = blocks[number + 1] if number + 1 < len(blocks) else ("", "", "")
            yield Step(text, mark, behind[2] if behind[0] == "text" else "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what the tour walks through: it edits files and makes new ones."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "chat_templates"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copytree(
        REPOSITORY / "workbench", folder / "workbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, script in (
        ("workbench", f'exec {sys.executable} -m workbench "$@"'),
        ("stub-editor", f'echo "$@" >>{folder}/opened'),
    ):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return folder


def walk(step: Step, checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{checkout}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "EDITOR": "stub-editor",
        "XDG_STATE_HOME": str(checkout / "state"),
        "XDG_CACHE_HOME": str(checkout / "cache"),
    }
    for name in ("VISUAL", VSCODE_SOCKET):
        environment.pop(name, None)
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step.commands],
        cwd=checkout,
        env=environment,
        input=step.mark.removeprefix("answer ") if step.mark.startswith("answer") else None,
        stdin=None if step.mark.startswith("answer") else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def pattern_of(line: str) -> str:
    """Turn a shown line into a pattern: `…` is anything, blanks are any number of blanks."""
    pieces = [r"\s+".join(map(re.escape, piece.split())) for piece in line.split("…")]
    return r"\s*.*\s*".join(pieces)


def test_the_tour_can_be_walked_and_prints_what_it_shows(checkout: Path) -> None:
    num_lines = num_run = 0
    for step in steps():
        if step.mark == "by-hand":
            continue
        done = walk(step, checkout)
        is_refused = step.mark == "fails"
        assert (done.returncode == 2) == is_refused, (step.commands, done.stdout)
        assert is_refused or done.returncode == 0, (step.commands, done.stdout)
        num_run += 1
        printed = iter(done.stdout.splitlines())
        for line in step.shown.splitlines():
            if line.strip() in ("", "…"):
                continue
            # In the order shown; lines between are what the page leaves out.
            pattern = pattern_of(line)
            assert any(re.fullmatch(pattern, each.strip()) for each in printed), (line, done.stdout)
            num_lines += 1
    assert num_run > 12
    assert num_lines > 30
    opened = (checkout / "opened").read_text().splitlines()
    assert len(opened) == 7
    assert opened[0].endswith("long_context.tree.svg")
    assert [len(line.split()) for line in opened[1:5]] == [1, 2, 5, 3]
    assert opened[5].endswith("long_context.resolved.yaml")
    assert (checkout / "long_context.svg").is_file()


def test_every_command_of_the_tour_is_one_of_ours() -> None:
    commands = re.findall(r"^workbench (\S+)", "".join(step.commands for step in steps()), re.M)
    assert len(commands) > 20
    assert {each for each in commands if not each.startswith("-")} <= set(VERBS)


def test_the_picture_of_the_tour_shows_the_config_as_it_is() -> None:
    resolved = resolve("1gpu_llama_7b/long_context", overrides=parse_overrides([]))
    picture = (REPOSITORY / "docs" / "pictures" / "long_context.svg").read_text("utf-8")

    def files(svg: str) -> list[str]:
        found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g")
        return [group.attrib["data-file"] for group in found if "data-file" in group.attrib]

    assert len(files(picture)) > 3
    assert files(picture) == files(tree_svg(resolved))
