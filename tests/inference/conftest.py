"""A tiny model on disk, and a server of it in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.inference.tiny_model import write_tiny_model

TOKEN = "a token for tests"


@dataclass(frozen=True)
class Server:
    """A running server: where it is, and what it has logged."""

    socket: Path
    url: str
    model: str
    folder: Path
    log: Path
    process: "subprocess.Popen[str]"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def runtime_folder() -> Iterator[Path]:
    """XDG_RUNTIME_DIR with a path short enough for sockets, and the folder for them in it."""
    folder = Path(tempfile.mkdtemp(prefix="wb-"))
    (folder / "workbench").mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server(
    tiny_model: Path, runtime_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "workbench.inference", "--parent-pipe", "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--model", str(tiny_model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={
                **os.environ,
                "XDG_RUNTIME_DIR": str(runtime_folder),
                "WORKBENCH_TOKEN": TOKEN,
            },
        )
    assert process.stdin is not None
    assert process.stdout is not None
    said = []
    ready: dict[str, str] = {}
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1]["type"] == "ready":
            ready = said[-1]
            break
    assert ready, f"the server did not start: {said} {log.read_text()}"
    yield Server(Path(ready["socket"]), ready["url"], ready["model"], tiny_model, log, process)
    # The parent's end of the pipe closes, as when the parent dies.
    process.stdin.close()
    assert process.wait(timeout=15) == 0
    assert not Path(ready["socket"]).exists()
    process.stdout.close()
