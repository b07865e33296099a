"""Every curl command and the Python of docs/how_to/serve.md, run against a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inference.conftest import TOKEN, Server

PAGE = (Path(__file__).parents[2] / "docs/how_to/serve.md").read_text()
COMMANDS = [
    block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if block.startswith("curl")
]


def environment_of(server: Server) -> dict[str, str]:
    return {
        **os.environ,
        "SOCKET": str(server.socket),
        "URL": server.url,
        "WORKBENCH_TOKEN": TOKEN,
    }


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("\n")[0][-60:])
def test_a_command_of_the_page_is_answered(server: Server, command: str) -> None:
    shown = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)],
        env=environment_of(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    if '"stream": true' not in command:
        assert json.loads(shown.stdout)
        return
    events = shown.stdout.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] > 0


def test_the_python_of_the_page_works(server: Server) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=environment_of(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()
