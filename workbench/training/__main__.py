"""``python -m workbench.training RUN``: one rank of a job, started by torchrun."""

import argparse
import faulthandler
import os
import signal
import sys


def main() -> int:
    """Prepare the process, then load torch and run the rank; give the exit code."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Read when torch loads OpenMP. Threads that spin while they wait cost 20 times the step time
    # as soon as anything else runs on the machine (2 cores, demo model: 5.8 s against 0.28 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Without it the allocator of a GPU reserves up to a fifth more than it hands out (1.2 B shapes,
    # one H200); a setting of the user's own counts.
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    parser = argparse.ArgumentParser(prog="python -m workbench.training")
    parser.add_argument("run", help="the run folder")
    arguments = parser.parse_args()

    from workbench.runs.layout import RunFolder
    from workbench.training.rank import run_rank

    return run_rank(RunFolder(arguments.run))


if __name__ == "__main__":
    sys.exit(main())
