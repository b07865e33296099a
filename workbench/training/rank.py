"""One rank from start to end: read the run folder, build, train, say how it ended.

The end is told to the supervisor when there is one, in the exit code and torchrun's error file
always. A mistake that someone can mend is shown in one line, anything else with its traceback.
"""

import logging
import os
import queue
import sys
from dataclasses import replace

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import record

from workbench.config.checks import not_in_this_version
from workbench.config.load import ConfigProblems, read_resolved
from workbench.config.memory_fit import Counts
from workbench.config.schema.config import Config
from workbench.control.messages import JobFailure, Leaving
from workbench.errors import ConfigError, DataError, RefusedError, RunError, WorkbenchError
from workbench.runs.job_file import JOB_VARIABLE, read_job_file
from workbench.runs.layout import RunFolder
from workbench.training import distributed
from workbench.training.build import Built, build
from workbench.training.checkpoint import SaveError
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.device import choose_device_type
from workbench.training.distributed import Ranks
from workbench.training.engine.calibration import keep_cpu_rates
from workbench.training.engine.plan import measured_peaks, write_plan
from workbench.training.loop import Ending, NonfiniteError
from workbench.training.out_of_memory import advice, is_out_of_memory
from workbench.training.publisher import Publisher
from workbench.training.report import next_attempt, peak_host_bytes

logger = logging.getLogger(__name__)

# Some libraries put pages into an exception; the log has them all.
_LONGEST_MESSAGE = 2000


def run_rank(run: RunFolder) -> int:
    """Run this rank of the job on a run folder; give the exit code."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if is_first else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        _train(run)
    except WorkbenchError as error:
        # The error file that torchrun reads was filled on the way; a traceback would hide the line.
        logger.error("%s", error)
        return 1
    return 0


@record
def _train(run: RunFolder) -> None:
    """Train; whatever is raised has been told to the supervisor and to torchrun."""
    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    publisher: Publisher | None = None
    built: Built | None = None
    config: Config | None = None
    device = torch.device("cpu")
    step = 0
    try:
        config = read_resolved(run.config)
        _refuse_what_is_not_built(config, run)
        device_type = choose_device_type(config.training.device)
        ranks = distributed.join(device_type)
        attempt, publisher = _meet_supervisor(run, ranks, wishes)
        device = (
            torch.device("cpu") if device_type == "cpu" else torch.device("cuda", ranks.local_rank)
        )
        built = build(
            run,
            config,
            device=device,
            ranks=ranks,
            attempt=attempt,
            is_restart=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0",
            control=ControlPoint(ranks, wishes),
            publisher=publisher,
        )
        step = built.training.state.step
        ending = built.training.train()
        _say_goodbye(run, built, ending, ranks)
        if publisher is not None:
            publisher.leave(Leaving(state=ending.state, step=ending.step))
    except Exception as error:
        if built is not None:
            step = built.training.state.step
        remedy = _remedy(error, config, device, built)
        if publisher is not None:
            publisher.leave(_last_words(error, step, remedy))
        raise
    finally:
        if built is not None:
            built.training.report.close()
        distributed.leave()


def _refuse_what_is_not_built(config: Config, run: RunFolder) -> None:
    """Refuse a run folder that only a dry run could write: its engine is not in this version.

    Raises:
        ConfigProblems: with the keys that ask for it.
    """
    problems = [replace(problem, file=run.config) for problem in not_in_this_version(config)]
    if problems:
        raise ConfigProblems(problems)


def _meet_supervisor(
    run: RunFolder, ranks: Ranks, wishes: "queue.SimpleQueue[Wish]"
) -> tuple[int, Publisher | None]:
    """Give the number of this attempt, and rank 0's line to the supervisor if the job has one."""
    job = os.environ.get(JOB_VARIABLE)
    job_file = read_job_file(run.job)
    if job is None:
        return ranks.gather(next_attempt(run))[0], None
    if job_file is None or job_file.job != job:
        raise RunError(
            f"does not name the job {job} that this process belongs to",
            where=str(run.job),
            remedy="start the run again",
        )
    publisher = Publisher(job_file.socket, job, wishes) if ranks.rank == 0 else None
    return job_file.attempt, publisher


def _say_goodbye(run: RunFolder, built: Built, ending: Ending, ranks: Ranks) -> None:
    measured = measured_peaks(built.device, peak_host_bytes())
    if ranks.rank == 0:
        step_seconds = built.training.report.step_seconds
        write_plan(run.plan, built.plan, measured, step_seconds)
        if built.device.type == "cpu" and step_seconds:
            keep_cpu_rates(built.plan, step_seconds, width=built.width, dtype=built.dtype)
    words = f"{ending.state} at step {ending.step} of {built.training.max_steps}"
    built.training.report.text("train_results", f"{words}, {measured}", ending.step)
    logger.info("%s", words)


def _remedy(
    error: Exception, config: Config | None, device: torch.device, built: Built | None
) -> str:
    """Say what to do about an error; about a lack of memory the log says it too."""
    if isinstance(error, WorkbenchError):
        return error.remedy
    if config is None or not is_out_of_memory(error):
        return "see the traceback in the log"
    budget_bytes, counts = None, None
    if built is not None:
        rows = built.training.rows
        budget_bytes = built.plan.budget_bytes
        counts = Counts(longest_row=rows.longest_row, steps_per_epoch=rows.steps_per_epoch)
    remedy = advice(error, config, device=device, budget_bytes=budget_bytes, counts=counts)
    logger.error("out of memory; what can be done, cheapest first:\n%s", remedy)
    return remedy


def _last_words(error: Exception, step: int, remedy: str) -> Leaving:
    if isinstance(error, WorkbenchError):
        message = f"{error.where}: {error.what}"
    else:
        message = f"{type(error).__name__}: {error}"
    return Leaving(
        state="failed",
        step=step,
        reason=_reason(error),
        message=message[:_LONGEST_MESSAGE],
        remedy=remedy,
    )


def _reason(error: Exception) -> JobFailure:
    match error:
        case SaveError():
            return error.reason
        case NonfiniteError():
            return "nonfinite_loss"
        case DataError():
            return "data"
        case ConfigError() | RunError():
            return "config"
        case RefusedError():  # a plan that the budget or the host does not hold
            return "out_of_memory"
        case _ if is_out_of_memory(error):
            return "out_of_memory"
        case DistError():
            return "communication"
        case _:
            return "internal"
