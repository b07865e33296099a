"""Forks children that save checkpoints, and kills each at a random moment of its save.

Run as ``python -m tests.training.killed_saves FOLDER NUM_KILLS SEED``; prints one JSON line per
child. Forked from one process, so that torch is loaded once.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.training.tiny import CPU
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.distributed import Ranks
from workbench.training.state import FORMAT_VERSION, SavedState


def content_of(step: int) -> checkpoint.Content:
    weights = {
        f"model.layers.{layer}.weight": torch.full((256, 512), float(step)) for layer in range(8)
    }
    return checkpoint.Content(
        weights=weights,
        statistics={"row": torch.full((5000,), float(step))},
        common={"config.json": b"{}", "tokenizer.json": b"x" * 100_000},
        device=CPU,
    )


def state_of(step: int) -> SavedState:
    return SavedState(
        version=FORMAT_VERSION,
        step=step,
        tokens=step,
        target_tokens=step,
        epoch=0.0,
        data_position=step,
        rounding_counter=step,
        steps_per_epoch=1,
        previous_gradient_norm=None,
    )


def save(run: RunFolder, step: int) -> None:
    checkpoint.save(run, content_of(step), state_of(step), Ranks())


def main() -> None:
    torch.set_num_threads(1)
    run, num_kills = RunFolder(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(int(sys.argv[3]))
    begin = time.monotonic()
    save(run, 1)
    usual_seconds = time.monotonic() - begin
    for step in range(2, num_kills + 2):
        child = os.fork()
        if child == 0:
            save(run, step)
            os._exit(0)
        time.sleep(chance.uniform(0.0, 1.3) * usual_seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        partial = Path(run.partial_checkpoint(step)).exists()
        sys.stdout.write(
            json.dumps({"step": step, "killed": os.WIFSIGNALED(status), "partial": partial}) + "\n"
        )


if __name__ == "__main__":
    main()
