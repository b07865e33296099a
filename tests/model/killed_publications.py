"""Forks children that publish a checkpoint, and kills each at a random moment.

Run as ``python -m tests.model.killed_publications CHECKPOINT FOLDER NUM_KILLS``; prints one JSON
line per child. Forked from one process, so that torch is loaded once.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from workbench.errors import RunError
from workbench.model.finalize import finalize
from workbench.runs.manifest import verify
from workbench.runs.whole_folder import partial_of


def state_of(destination: Path) -> str:
    if not destination.exists():
        return "absent"
    try:
        verify(destination)
    except RunError as error:
        return str(error)
    return "whole"


def main() -> None:
    torch.set_num_threads(1)
    checkpoint, destination = Path(sys.argv[1]), Path(sys.argv[2]) / "out"
    chance = random.Random(7)
    finalize(
        [checkpoint], destination.with_name("first"), gguf="f16"
    )  # loads all that is imported late
    shutil.rmtree(destination.with_name("first"))
    begin = time.monotonic()
    finalize([checkpoint], destination.with_name("first"), gguf="q8_0")
    usual_seconds = time.monotonic() - begin
    for number in range(int(sys.argv[3])):
        child = os.fork()
        if child == 0:
            finalize([checkpoint], destination, gguf="q8_0" if number % 2 else None)
            os._exit(0)
        time.sleep(chance.uniform(0.0, 1.2) * usual_seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        told = {
            "killed": os.WIFSIGNALED(status),
            "state": state_of(destination),
            "partial": partial_of(destination).exists(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        shutil.rmtree(destination, ignore_errors=True)


if __name__ == "__main__":
    main()
