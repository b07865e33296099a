"""The Samantha tour can be walked, from the model folder to the published model.

As in ``test_tutorial``: `bash` runs, `bash answer TEXT` is asked something, `bash by-hand` is not
run. `bash serves TEXT` is left running once it has said TEXT, until the next of its kind. What a
block exports the blocks behind it see.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.miniature import write_base_model, write_mirror
from tests.cli.test_tutorial import BLOCK, Step, pattern_of
from tests.short_folder import short_folder
from workbench.cli.main import VERBS

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "tutorial" / "samantha.md"
LIMIT_SECONDS = 240.0


def steps() -> list[Step]:
    found = []
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    for (language, mark, text), behind in zip(blocks, [*blocks[1:], ("", "", "")], strict=True):
        if language == "bash":
            found.append(Step(text, mark, behind[2] if behind[0] == "text" else ""))
    return found


class Walk:
    """A home with a model and the data set, and the commands of the page in it."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self._folder, self._exports = folder, ""
        self._server: subprocess.Popen[str] | None = None
        self._said = folder / "said"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        write_base_model(folder / "models" / "mistral_7b")
        write_mirror(folder / "mirror")
        program = folder / "bin" / "workbench"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m workbench "$@"\n')
        program.chmod(0o755)
        self._environment = os.environ | {
            "HOME": str(folder),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "WORKBENCH_HUB_MIRROR": str(folder / "mirror"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(runtime),
            "OMP_NUM_THREADS": "1",
        }
        self._environment.pop("WORKBENCH_TOKEN", None)

    def take(self, step: Step) -> str:
        """Run a step; give what it printed, once it is done or serves."""
        # The port that the page names may be taken on this machine.
        commands = step.commands.replace("8123", str(self._port))
        script = self._exports + commands
        self._exports += "".join(f"{line}\n" for line in re.findall(r"^export .*$", commands, re.M))
        if step.mark.startswith("serves "):
            return self._serve(script, step.mark.removeprefix("serves "))
        done = subprocess.run(
            self._shell(script),
            cwd=self._folder,
            env=self._environment,
            input=step.mark.removeprefix("answer ") if step.mark.startswith("answer") else "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (step.commands, done.stdout)
        return done.stdout

    def shown(self, step: Step) -> str:
        """Give what the page shows of a step, with the port of this walk."""
        return step.shown.replace("8123", str(self._port))

    def _shell(self, script: str) -> list[str]:
        return ["bash", "-e", "-o", "pipefail", "-c", script]

    def _serve(self, script: str, sign: str) -> str:
        self.end_server()
        with self._said.open("w") as said:
            self._server = subprocess.Popen(
                self._shell(script),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        deadline = time.monotonic() + LIMIT_SECONDS
        while sign not in (told := self._said.read_text()):
            assert self._server.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        # A server says several lines at once; the last of them is written by then.
        time.sleep(0.2)
        return self._said.read_text()

    def end_server(self) -> None:
        """End what serves, as Ctrl-C does."""
        if self._server is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGINT)
        try:
            self._server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            raise
        self._server = None


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with short_folder() as runtime:
        walk = Walk(tmp_path_factory.mktemp("samantha"), runtime)
        yield walk
        walk.end_server()


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_the_tour_can_be_walked_and_prints_what_it_shows(walk: Walk) -> None:
    num_run = num_lines = 0
    for step in steps():
        if step.mark == "by-hand":
            continue
        printed = walk.take(step)
        num_run += 1
        lines = iter(printed.splitlines())
        for line in walk.shown(step).splitlines():
            if line.strip() in ("", "…"):
                continue
            pattern = pattern_of(line)
            assert any(re.fullmatch(pattern, each.strip()) for each in lines), (line, printed)
            num_lines += 1
    assert num_run > 15
    assert num_lines > 40


def test_every_command_of_the_tour_is_one_of_ours_and_none_is_left_out() -> None:
    commands = re.findall(r"^workbench (\S+)", "".join(step.commands for step in steps()), re.M)
    assert len(commands) > 20
    assert set(commands) <= set(VERBS)
    told = {"data", "estimate", "train", "control", "tb", "chat", "serve", "checkpoints"}
    assert told | {"finalize", "convert"} <= set(commands)
    by_hand = [step.commands for step in steps() if step.mark == "by-hand"]
    assert not [text for text in by_hand if "workbench" in text], "a test runs every one of them"
