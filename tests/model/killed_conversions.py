"""Forks children that convert a model, and kills each at a random moment.

Run as ``python -m tests.model.killed_conversions SOURCE FOLDER NUM_KILLS``; prints one JSON line
per child. Forked from one process, so that torch is loaded once.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from workbench.model.conversion_plan import Wish, plan_conversion
from workbench.model.convert import convert
from workbench.runs.whole_folder import MARKER, partial_of


def hashes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != MARKER
    }


def main() -> None:
    torch.set_num_threads(1)
    source, destination = Path(sys.argv[1]), Path(sys.argv[2]) / "out"
    chance = random.Random(3)

    def make(path: Path) -> None:
        convert(plan_conversion(source, Wish(dtype=torch.bfloat16)), path, 20_000)

    make(destination.with_name("first"))  # loads all that is imported late
    expected = hashes_of(destination.with_name("first"))
    shutil.rmtree(destination.with_name("first"))
    begin = time.monotonic()
    make(destination.with_name("first"))
    usual_seconds = time.monotonic() - begin
    for _ in range(int(sys.argv[3])):
        child = os.fork()
        if child == 0:
            make(destination)
            os._exit(0)
        time.sleep(chance.uniform(0.0, 1.2) * usual_seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        state = "absent"
        if destination.exists():
            state = "whole" if hashes_of(destination) == expected else "torn"
        told = {
            "killed": os.WIFSIGNALED(status),
            "state": state,
            "partial": partial_of(destination).exists(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        shutil.rmtree(destination, ignore_errors=True)


if __name__ == "__main__":
    main()
