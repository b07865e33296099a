"""Following a job to its end: shared by train and ``--batch``.

Ctrl-C once stops the job, so that it saves; twice aborts it. Invariant: the follower returns only
with an outcome, and leaves the job alone when it is killed itself.
"""

import asyncio
import contextlib
import signal
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

from workbench.cli import output
from workbench.cli.narration import check_line, event_line, metrics_line
from workbench.cli.preparing import Preparing
from workbench.config.load import ResolvedConfig
from workbench.control.messages import CommandName, Failed
from workbench.errors import ControlError, WorkbenchError
from workbench.jobs.connection import JobConnection
from workbench.jobs.data_worker import Progress
from workbench.jobs.follow import (
    EndedUpdate,
    EventUpdate,
    LinkUpdate,
    LogUpdate,
    MetricsUpdate,
    StatusUpdate,
    Update,
)
from workbench.jobs.preflight import preflight
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.runs.outcome import Outcome

_RETRY_SECONDS = 0.2
_RETRIES = 150


def passed(resolved: ResolvedConfig, options: Any) -> int:  # noqa: ANN401 - argparse's namespace
    """Run the preflight and tell each check; give 0, or the exit status of the first error.

    While the data is prepared, how far that is stands in a moving line.
    """
    status = 0
    starts = not getattr(options, "dry_run", False)
    with Preparing() as preparing:
        for found in preflight(
            resolved, project=options.project, devices=options.devices, starts=starts
        ):
            if isinstance(found, Progress):
                preparing.show(found)
                continue
            preparing.tell(check_line(found))
            if found.state == "error" and status == 0:
                status = found.exit_status
    return status


class Screen:
    """Narration on stderr: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, tells_metrics: bool) -> None:
        self._tells_metrics = tells_metrics
        self._bar: tqdm[None] | None = None
        self.last: MetricsRecord | None = None

    def __enter__(self) -> "Screen":
        if sys.stderr.isatty():
            self._bar = tqdm(total=None, unit="step", file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, line: str) -> None:
        """Write a line above the bar."""
        if self._bar is None:
            output.narrate(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def show(self, update: Update) -> None:
        """Tell what a person wants to know of an update."""
        match update:
            case EventUpdate(event=event):
                self.tell(event_line(event))
            case MetricsUpdate(record=record):
                self.last = record
                if self._bar is not None:
                    self._bar.n = record.step
                    loss = "not finite" if record.loss is None else f"{record.loss:.4f}"
                    self._bar.set_postfix_str(f"loss {loss}", refresh=True)
                elif self._tells_metrics:
                    self.tell(metrics_line(record))
            case StatusUpdate(status=status):
                if self._bar is not None:
                    self._bar.total = status.max_steps
                    self._bar.n = max(self._bar.n, status.step)
                    self._bar.set_description_str(status.state, refresh=True)
            case LinkUpdate(connected=False, reason=reason):
                self.tell(f"the supervisor does not answer: {reason}; reading the run's files")
            case LinkUpdate() | LogUpdate() | EndedUpdate():
                pass


class Interruptions:
    """Ctrl-C as commands: the first stops, the second aborts, later ones do nothing more."""

    def __init__(self, connection: JobConnection, screen: Screen) -> None:
        self._connection, self._screen = connection, screen
        self._tasks: set[asyncio.Task[None]] = set()
        self.count = 0

    def __enter__(self) -> "Interruptions":
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        for task in self._tasks:
            task.cancel()

    def _take(self) -> None:
        self.count += 1
        name: CommandName
        if self.count == 1:
            name = "stop"
            self._screen.tell("stopping: saves, then leaves (Ctrl-C again aborts)")
        elif self.count == 2:
            name = "abort"
            self._screen.tell("aborting: ends every process of the job")
        else:
            return
        task = asyncio.get_running_loop().create_task(self._send(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, name: CommandName) -> None:
        for _ in range(_RETRIES):
            with contextlib.suppress(ControlError):
                handle = await self._connection.command(name)
                answer = await handle.accepted()
                if isinstance(answer, Failed):
                    self._screen.tell(f"{name}: {answer.message}; {answer.remedy}")
                return
            await asyncio.sleep(_RETRY_SECONDS)
        self._screen.tell(f"{name}: the supervisor does not answer")


async def follow(
    run: RunFolder, attempt: int, *, records_on_stdout: bool
) -> tuple[Outcome, Screen, bool]:
    """Follow an attempt of a run to its end.

    Args:
        run: a run that was started.
        attempt: what earlier ones left in the files is passed over.
        records_on_stdout: write its records as JSON lines, last the outcome.

    Returns:
        The outcome, the screen with the last metrics, and whether Ctrl-C was pressed.
    """
    connection = JobConnection(run, log_history_bytes=0)
    with (
        Screen(tells_metrics=not records_on_stdout) as screen,
        Interruptions(connection, screen) as interruptions,
    ):
        async with contextlib.aclosing(connection.updates()) as updates:
            async for update in updates:
                if attempt_of(update) not in (None, attempt):
                    continue
                screen.show(update)
                if records_on_stdout:
                    try:
                        write_record(update)
                    except (BrokenPipeError, WorkbenchError) as error:
                        # The exit status is the job's: it is followed all the same.
                        records_on_stdout = False
                        output.stop_writing()
                        why = "nobody reads stdout any more"
                        why = why if isinstance(error, BrokenPipeError) else str(error)
                        screen.tell(f"no more records are written: {why}")
                if isinstance(update, EndedUpdate):
                    return update.outcome, screen, interruptions.count > 0
    raise AssertionError("the updates ended without an outcome")


def attempt_of(update: Update) -> int | None:
    """Give the attempt that an update speaks of, None where it speaks of none."""
    match update:
        case EventUpdate(event=event):
            return event.attempt
        case MetricsUpdate(record=record):
            return record.attempt
        case _:
            return None


def write_record(update: Update) -> None:
    """Write the record of an update as one JSON line on stdout, exactly as in its file."""
    match update:
        case EventUpdate(event=event):
            output.result_record(event)
        case MetricsUpdate(record=record):
            output.result_record(record)
        case EndedUpdate(outcome=outcome):
            output.result_record(outcome)
        case LogUpdate() | StatusUpdate() | LinkUpdate():
            pass
