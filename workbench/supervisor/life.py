"""The life of a supervisor, in order: lock, socket, job.json, torchrun, serve, outcome.

One event loop and no thread. Everything that happens comes through one inbox and is dealt with one
after the other, so that two viewers never meet. Invariant: the effect is on disk before it is told,
and when ``outcome.json`` appears no process of the job is left.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import msgspec

from workbench.control.address import new_address, remove_stale
from workbench.control.messages import (
    Abort,
    Command,
    Done,
    Ended,
    Evaluate,
    Event,
    Failed,
    FromPublisher,
    Hello,
    Leaving,
    Metrics,
    Pause,
    Progress,
    Resume,
    Save,
    Status,
    StatusRequest,
    Stop,
    Subscribe,
    Subscribed,
    Topic,
    ToSupervisor,
)
from workbench.control.states import BEFORE_FIRST_STEP, EndState, JobState
from workbench.errors import ConfigError, RefusedError, RunError
from workbench.runs.checkpoints import newest_complete
from workbench.runs.events import (
    AnyEvent,
    CheckpointEvent,
    CommandEvent,
    EvaluationEvent,
    ExitEvent,
    SampleEvent,
    StateEvent,
    WarningEvent,
)
from workbench.runs.job_file import (
    JOB_VARIABLE,
    JobFile,
    last_attempt,
    read_job_file,
    start_time_of,
    this_boot,
    this_host,
    write_job_file,
)
from workbench.runs.layout import RunFolder
from workbench.runs.lock import take_lock
from workbench.runs.outcome import Outcome, write_outcome
from workbench.runs.registry import entry_of, write_entry
from workbench.supervisor import processes
from workbench.supervisor.command_file import TorchrunCommand, allows_restarts, read_command
from workbench.supervisor.commands import (
    REFUSAL_REMEDIES,
    Commands,
    PendingCommand,
    answer_done,
    answer_failed,
)
from workbench.supervisor.failure import Failure, find_cause, gather
from workbench.supervisor.recorder import Recorder, file_size
from workbench.supervisor.server import Closed, Peer, Received, Server

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
"""Log lines are news at most this often."""

FAREWELL_SECONDS = 5.0
"""How long viewers may stay after the outcome."""

LEAVING_SECONDS = 30.0
"""How long the processes may take to end after rank 0 said that it leaves in peace."""

DEATH_SECONDS = 10.0
"""How long they may take after rank 0 has failed or died: its mates may wait for it forever."""

TOPICS: tuple[Topic, ...] = ("events", "metrics", "log")


@dataclass(frozen=True)
class TorchrunEnded:
    """torchrun is gone; its exit code is negative for a signal."""

    code: int


@dataclass(frozen=True)
class StopAsked:
    """The supervisor itself was asked to end by SIGTERM or SIGINT."""


@dataclass(frozen=True)
class Tick:
    """Time for news of the log, and for a look at the limits."""


@dataclass(frozen=True)
class AllGone:
    """The last process of the job is gone; ``killed`` needed SIGKILL."""

    killed: int


Happening = Received | Closed | TorchrunEnded | StopAsked | Tick | AllGone


async def supervise(run: RunFolder, job: str) -> Outcome:
    """Take a run from the start of torchrun to its outcome.

    Raises:
        RefusedError: another supervisor holds the lock.
        ControlError: there is no safe place for the socket.
        RunError: command.json is missing or is none.
    """
    lock = take_lock(run.lock)
    if lock is None:
        with contextlib.suppress(RunError):
            holder = read_job_file(run.job)
            name = holder.job if holder is not None else "another job"
        raise RefusedError(
            f"job {name} is running in this folder",
            where=str(run.path),
            remedy="wait for its end, or stop it: workbench control stop",
        )
    write_diagnostics_to(run.supervisor_log)
    command = read_command(run)
    attempt = last_attempt(run) + 1
    with contextlib.suppress(RunError):
        if earlier := read_job_file(run.job):
            remove_stale(Path(earlier.socket))
    processes.become_subreaper()
    address = new_address()
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    server = Server(job, inbox)
    await server.listen(address)
    try:
        life = Life(run, job, attempt, server, inbox)
        try:
            return await life.live(address, command)
        finally:
            await life.close()
    finally:
        await server.close()
        address.unlink(missing_ok=True)


def write_diagnostics_to(path: Path) -> None:
    """Let everything this process says from now on go to the end of a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


class Life:
    """One start of a job: what its processes said, what was asked of it, and how it ends."""

    def __init__(
        self,
        run: RunFolder,
        job: str,
        attempt: int,
        server: Server,
        inbox: "asyncio.Queue[Happening]",
    ) -> None:
        self._run, self._job, self._attempt = run, job, attempt
        self._server, self._inbox = server, inbox
        self._recorder = Recorder(run)
        self._commands = Commands()
        self._tasks: set[asyncio.Task[None]] = set()
        newest = newest_complete(run)
        self._checkpoint = str(newest.path.relative_to(run.path)) if newest else None
        self._state: JobState = "starting"
        self._since = time.time()
        self._step = newest.step if newest else 0
        self._max_steps: int | None = None
        self._idle: tuple[float, float] | None = None  # (when it was said, idle seconds then)
        self._leaving: Leaving | None = None
        self._torchrun: int | None = None
        self._torchrun_code: int | None = None
        self._can_restart = False
        self._was_aborted = False
        self._is_impatient = False
        self._was_stopped_early = False
        self._is_ending = False
        self._rank_0_pid: int | None = None
        self._is_rank_0_ready = False
        self._deadline: float | None = None
        self._earlier_rank_folders: set[Path] = set()

    # ---- from start to outcome ------------------------------------------------------------------

    async def live(self, address: Path, command: TorchrunCommand) -> Outcome:
        """Start torchrun, serve until the last process of the job is gone, write why."""
        unlisted = self._announce(address)
        self._watch_signals()
        self._start_torchrun(command)
        if unlisted:
            self._record(
                WarningEvent(
                    time=time.time(),
                    attempt=self._attempt,
                    step=self._step,
                    message=f"the job is not in the registry: {unlisted}",
                    remedy=f"name it by its run folder, {self._run.path}",
                )
            )
        self._spawn(self._tick())
        killed = 0
        while True:
            happening: Happening = await self._inbox.get()
            if isinstance(happening, AllGone):
                killed = happening.killed
                break
            self._deal_with(happening)
        outcome = self._conclude(killed)
        await self._say_farewell()
        return outcome

    async def close(self) -> None:
        """End what still runs for the job in this process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._recorder.close()

    def _announce(self, address: Path) -> str:
        """Write job.json and the registry's entry; say why the entry is not there, else ""."""
        start_time = start_time_of(os.getpid())
        assert start_time is not None
        job_file = JobFile(
            job=self._job,
            attempt=self._attempt,
            host=this_host(),
            boot_id=this_boot(),
            socket=str(address),
            pid=os.getpid(),
            start_time=start_time,
        )
        write_job_file(self._run.job, job_file)
        # What the earlier attempt ended with is in events.jsonl; this file speaks of the last one.
        self._run.outcome.unlink(missing_ok=True)
        try:
            write_entry(entry_of(job_file, self._run))
        except (OSError, ConfigError) as error:
            logger.warning("the job is not in the registry: %s", error)
            return str(error)
        return ""

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._inbox.put_nowait, StopAsked())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _start_torchrun(self, command: TorchrunCommand) -> None:
        self._record(
            StateEvent(time=self._since, attempt=self._attempt, state="starting", step=self._step)
        )
        if self._run.ranks.is_dir():
            self._earlier_rank_folders = set(self._run.ranks.iterdir())
        self._can_restart = allows_restarts(command.arguments)
        environment = os.environ | command.environment | {JOB_VARIABLE: self._job}
        try:
            self._torchrun = processes.start(command.arguments, environment, self._run.log)
        except OSError as error:
            logger.error("cannot start %s: %s", command.arguments[0], error)
            self._inbox.put_nowait(TorchrunEnded(127))
            return
        logger.info("attempt %s: torchrun is process %s", self._attempt, self._torchrun)

    def _reap(self) -> None:
        ended = processes.reap()
        if self._torchrun is not None and self._torchrun in ended:
            self._torchrun_code = ended[self._torchrun]
            self._torchrun = None
            self._inbox.put_nowait(TorchrunEnded(self._torchrun_code))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._inbox.put_nowait(Tick())

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what happens ---------------------------------------------------------------------------

    def _deal_with(self, happening: Received | Closed | TorchrunEnded | StopAsked | Tick) -> None:
        match happening:
            case Received(peer=peer, message=message):
                if peer.role == "publisher":
                    self._hear_publisher(peer, message)  # type: ignore[arg-type]
                else:
                    self._hear_viewer(peer, message)  # type: ignore[arg-type]
            case Closed(peer=peer):
                if peer.role == "publisher":
                    self._lose_publisher()
            case TorchrunEnded(code=code):
                logger.info("torchrun ended with %s", code)
                self._torchrun_code = code
                self._end_processes(stacks=False, patience=LEAVING_SECONDS if code == 0 else 0.0)
            case StopAsked():
                logger.info("asked to end: stopping the job")
                self._take_command(Stop(id=0), None)
            case Tick():
                self._recorder.tell_log(self._server.viewers)
                self._look_at_limits()
            case _:
                assert_never(happening)

    def _hear_viewer(self, peer: Peer, message: ToSupervisor) -> None:
        match message:
            case StatusRequest(id=request):
                peer.send(self._status(request))
            case Subscribe(id=request, topics=topics):
                peer.topics = set(topics)
                # What is in the files at this moment is no news any more.
                self._recorder.tell_log(self._server.viewers - {peer})
                offsets = {topic: file_size(self._run, topic) for topic in topics}
                peer.send(Done(id=request, result=Subscribed(offsets=offsets)))
            case Save() | Evaluate() | Pause() | Resume() | Stop() | Abort():
                self._take_command(message, peer)
            case Hello():
                raise AssertionError("the server answers hello itself")
            case _:
                assert_never(message)

    def _hear_publisher(self, peer: Peer, message: FromPublisher) -> None:
        match message:
            case Hello(pid=pid):
                logger.info("rank 0 is process %s", pid)
                self._rank_0_pid, self._deadline, self._leaving = pid, None, None
                self._is_rank_0_ready = False
            case Progress():
                if not self._is_rank_0_ready:
                    # What was asked before there was somebody to tell, in the order it was asked.
                    self._is_rank_0_ready = True
                    for entry in self._commands.pending:
                        if (command := entry.for_publisher()) is not None:
                            peer.send(command)
                self._idle = (time.monotonic(), message.idle_seconds)
                self._step, self._max_steps = message.step, message.max_steps
                self._enter(message.state)
            case Metrics(record=record):
                # Progress comes every other second: a record may know of later steps.
                if isinstance(step := record.get("step"), int):
                    self._step = max(self._step, step)
                for viewer in self._server.viewers:
                    viewer.offer("metrics", message)
            case Event(record=record):
                self._record_of_rank_0(peer, record)
            case Done(id=number, result=result):
                self._finish_command(number, result)
            case Failed(id=number):
                if (failed := self._commands.take(number)) is not None:
                    self._fail(failed, message)
            case Leaving():
                self._leaving, self._step = message, message.step
                logger.info("rank 0 leaves: %s %s", message.state, message.message)
            case _:
                assert_never(message)

    def _record_of_rank_0(self, peer: Peer, record: dict[str, Any]) -> None:
        try:
            event = msgspec.convert(
                record, CheckpointEvent | EvaluationEvent | SampleEvent | WarningEvent
            )
        except msgspec.ValidationError as error:
            logger.error("rank 0 sent an event that is none: %s", error)
            peer.send(Failed(reason="protocol", message=str(error), remedy="the connection closes"))
            peer.close()
            return
        if isinstance(event, CheckpointEvent):
            self._checkpoint = event.path
        self._record(event)

    def _lose_publisher(self) -> None:
        if self._can_restart or self._torchrun is None:
            return
        if self._leaving is not None:
            in_peace = self._leaving.state != "failed"
            self._deadline = time.monotonic() + (LEAVING_SECONDS if in_peace else DEATH_SECONDS)

    def _look_at_limits(self) -> None:
        if self._is_ending or self._can_restart:
            return
        is_lost = self._server.publisher is None and self._rank_0_pid is not None
        # A rank that only lost its connection saves and ends by itself; a dead one does not, and
        # its mates may wait for it longer than a user wants to.
        if self._deadline is None and is_lost and start_time_of(self._rank_0_pid or 0) is None:
            self._deadline = time.monotonic() + DEATH_SECONDS
        if self._deadline is not None and time.monotonic() > self._deadline:
            logger.warning("rank 0 is gone, but other processes of the job stay: ending them")
            self._end_processes(stacks=True)

    # ---- commands -------------------------------------------------------------------------------

    def _take_command(self, command: Command, peer: Peer | None) -> None:
        """Admit a command, or refuse it; ``peer`` is None where a signal asked."""
        asker = peer if peer is not None else _Nobody()
        if (same := self._commands.joinable(command)) is not None:
            same.accept(asker, command.id, self._state)
            return
        refused = self._commands.refused(command, self._state, self._step)
        if refused is None and self._is_ending and not isinstance(command, Abort):
            refused = Failed(
                id=command.id,
                reason="ended",
                message="the job's processes are ending",
                remedy=REFUSAL_REMEDIES["ended"],
            )
        if refused is not None:
            asker.send(refused)
            return
        entry = self._commands.number(command)
        self._record_command(entry, "accepted")
        entry.accept(asker, command.id, self._state)
        logger.info("command %s: %s", entry.number, entry.name)
        if isinstance(command, Abort):
            # A run whose rank 0 has said that it finished or stopped cannot be undone.
            self._was_aborted = self._leaving is None or self._leaving.state == "failed"
            self._is_impatient = True
            self._enter("stopping")
            self._end_processes(stacks=True)
        elif isinstance(command, Stop) and self._state in BEFORE_FIRST_STEP:
            self._was_stopped_early = True
            self._enter("stopping")
            self._end_processes(stacks=False)
        elif self._is_rank_0_ready and (publisher := self._server.publisher) is not None:
            told = entry.for_publisher()
            assert told is not None, command
            publisher.send(told)

    def _finish_command(self, number: int, result: Any) -> None:  # noqa: ANN401 - AnyResult
        pending = {entry.number: entry for entry in self._commands.pending}
        # A stop is done when the last process is gone, which rank 0 cannot say.
        if number not in pending or pending[number].name in ("stop", "abort"):
            return
        self._commands.take(number)
        self._record_command(pending[number], "done")
        answer_done(pending[number], result)

    def _fail(self, entry: PendingCommand, failed: Failed) -> None:
        self._record_command(entry, "failed", failed)
        answer_failed(entry, failed)

    # ---- the end --------------------------------------------------------------------------------

    def _end_processes(self, *, stacks: bool, patience: float = 0.0) -> None:
        """See to it that every process ends; ``AllGone`` follows once, whoever asks how often."""
        if self._is_ending:
            return
        self._is_ending = True
        self._spawn(self._until_gone(stacks=stacks, patience=patience))

    async def _until_gone(self, *, stacks: bool, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not (gone := await processes.all_gone(self._job, 0.0)):
            if self._is_impatient or time.monotonic() >= deadline:
                break
            await asyncio.sleep(TICK_SECONDS)
        killed = 0 if gone else await processes.end(self._job, self._torchrun, stacks=stacks)
        self._inbox.put_nowait(AllGone(killed))

    def _conclude(self, killed: int) -> Outcome:
        """Write how the job ended, then answer everyone who waits."""
        # The last child may have gone without its signal having been dealt with yet.
        self._reap()
        self._recorder.tell_log(self._server.viewers)
        newest = newest_complete(self._run)
        checkpoint = str(newest.path.relative_to(self._run.path)) if newest else None
        state, failure, exit_codes = self._verdict()
        outcome = Outcome(
            attempt=self._attempt,
            state=state,
            step=self._step,
            time=time.time(),
            reason=failure.reason if failure else None,
            message=failure.message if failure else "",
            first_error=failure.first_error if failure else None,
            exit_codes=exit_codes,
            checkpoint=checkpoint,
            killed=killed,
            max_steps=self._max_steps,
        )
        self._checkpoint = checkpoint
        ended = Ended(state=state, step=self._step, checkpoint=checkpoint, killed=killed)
        answers = [
            (entry, self._last_answer(entry, ended, failure)) for entry in self._commands.pending
        ]
        for entry, answer in answers:
            self._commands.take(entry.number)
            self._record_command(entry, "done" if isinstance(answer, Ended) else "failed", answer)
        self._state, self._since = state, outcome.time
        self._record(
            ExitEvent(
                time=outcome.time,
                attempt=self._attempt,
                state=state,
                step=self._step,
                reason=outcome.reason,
                message=outcome.message,
            )
        )
        # Last of all files: whoever sees it has seen everything.
        try:
            write_outcome(self._run.outcome, outcome)
        except OSError as error:
            logger.error("cannot write %s: %s", self._run.outcome, error)
        for entry, answer in answers:
            if isinstance(answer, Ended):
                answer_done(entry, answer)
            else:
                answer_failed(entry, answer)
        logger.info("%s at step %s: %s", state, self._step, outcome.message)
        return outcome

    def _last_answer(
        self, entry: PendingCommand, ended: Ended, failure: Failure | None
    ) -> Ended | Failed:
        """Say what becomes of a command that the end of the job leaves pending."""
        if entry.name == "abort" or (entry.name == "stop" and failure is None):
            return ended
        if entry.name == "stop" and failure is not None:
            remedy = failure.first_error.remedy
            return Failed(reason=failure.reason, message=failure.message, remedy=remedy)
        message = f"the job ended before it could {entry.name}: {ended.state}"
        return Failed(reason="ended", message=message, remedy=REFUSAL_REMEDIES["ended"])

    def _verdict(self) -> tuple[EndState, Failure | None, dict[str, int]]:
        new_folders: set[Path] = set()
        if self._run.ranks.is_dir():
            new_folders = set(self._run.ranks.iterdir()) - self._earlier_rank_folders
        code = self._torchrun_code if self._torchrun_code is not None else -int(signal.SIGKILL)
        evidence = gather(sorted(new_folders), self._run.log, self._recorder.log_begin, code)
        if self._was_aborted:
            return "aborted", None, evidence.exit_codes
        if self._was_stopped_early:
            return "stopped", None, evidence.exit_codes
        left_in_peace = self._leaving is not None and self._leaving.state != "failed"
        if left_in_peace and not evidence.errors:
            # The work is saved; how the emptied processes were ended is no failure of the run.
            assert self._leaving is not None
            return self._leaving.state, None, evidence.exit_codes
        failed_in_words = self._leaving is not None and self._leaving.state == "failed"
        if code == 0 and not failed_in_words:
            stopping = self._commands.awaits("stop")
            return ("stopped" if stopping else "finished"), None, evidence.exit_codes
        return "failed", find_cause(evidence, self._leaving), evidence.exit_codes

    async def _say_farewell(self) -> None:
        """Serve viewers until they have gone, but not for long."""
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self._server.viewers and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                happening = await asyncio.wait_for(self._inbox.get(), left)
                if isinstance(happening, (Received, Tick)):
                    self._deal_with(happening)

    # ---- small things ---------------------------------------------------------------------------

    def _enter(self, state: JobState) -> None:
        # Once it is ending nothing a rank says makes the job run again.
        if state == self._state or (self._is_ending and self._state == "stopping"):
            return
        self._state, self._since = state, time.time()
        self._record(
            StateEvent(time=self._since, attempt=self._attempt, state=state, step=self._step)
        )

    def _status(self, request: int) -> Status:
        idle = None
        if self._idle is not None:
            said, idle_then = self._idle
            idle = round(time.monotonic() - said + idle_then, 3)
        return Status(
            id=request,
            state=self._state,
            since=self._since,
            step=self._step,
            max_steps=self._max_steps,
            attempt=self._attempt,
            idle_seconds=idle,
            pending=self._commands.summary(),
            checkpoint=self._checkpoint,
            offsets={topic: file_size(self._run, topic) for topic in TOPICS},
        )

    def _record(self, event: AnyEvent) -> None:
        self._recorder.record(event, self._server.viewers)

    def _record_command(
        self,
        entry: PendingCommand,
        phase: Literal["accepted", "done", "failed"],
        answer: Failed | Ended | None = None,
    ) -> None:
        failed = answer if isinstance(answer, Failed) else None
        self._record(
            CommandEvent(
                time=time.time(),
                attempt=self._attempt,
                command=entry.number,
                name=entry.name,
                phase=phase,
                reason=failed.reason if failed else None,
                message=failed.message if failed else "",
            )
        )


class _Nobody:
    """Asks by signal and hears no answer."""

    def send(self, message: object) -> None:
        """Let the answer fall; it is in events.jsonl."""
