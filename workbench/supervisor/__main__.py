"""``python -m workbench.supervisor RUN``: a run folder in, an exit status out.

``--clean-up JOB RUN`` ends what is left of a lost job and writes its outcome, under the same lock.
"""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.runs.job_file import JOB_ID, JOB_VARIABLE, new_job_id
from workbench.runs.layout import RunFolder
from workbench.supervisor.clean_up import clean_up
from workbench.supervisor.life import supervise


def main() -> int:
    """Supervise one job; give the exit status that the job deserves."""
    parser = argparse.ArgumentParser(prog="python -m workbench.supervisor", description=__doc__)
    parser.add_argument("run", help="run folder with command.json")
    parser.add_argument("--clean-up", metavar="JOB", help="end what is left of a lost job")
    parser.add_argument(
        "--detach", action="store_true", help="go on in a child that belongs to nobody"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run = RunFolder(Path(arguments.run))
    job = arguments.clean_up or os.environ.get(JOB_VARIABLE) or new_job_id(run.name)
    if not JOB_ID.fullmatch(job):
        parser.error(f"{job!r} is not a job id")
    if arguments.detach and os.fork() != 0:
        # The caller need not reap the supervisor, however long both of them live.
        os._exit(0)
    try:
        if arguments.clean_up:
            clean_up(run, job)
            return 0
        return asyncio.run(supervise(run, job)).exit_status
    except WorkbenchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
