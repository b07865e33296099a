"""A supervisor that does what a test says: real files, real socket, real protocol code."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workbench.control.address import new_address
from workbench.control.framing import encode
from workbench.control.messages import (
    Abort,
    Accepted,
    AnyResult,
    Command,
    CommandName,
    Done,
    Evaluate,
    Event,
    Failed,
    Hello,
    Log,
    Metrics,
    Pause,
    Pending,
    Resume,
    Save,
    Status,
    StatusRequest,
    Stop,
    Subscribe,
    Subscribed,
    ToSupervisor,
)
from workbench.control.states import JobState, refusal, when_acted_on
from workbench.runs.events import EventRecord, StateEvent
from workbench.runs.job_file import JobFile, start_time_of, this_boot, this_host, write_job_file
from workbench.runs.json_lines import LineWriter
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.runs.outcome import Outcome, write_outcome
from workbench.runs.registry import JobEntry, write_entry

NOW = 1_764_000_000.0
_NAMES: dict[type, CommandName] = {
    Save: "save",
    Evaluate: "evaluate",
    Pause: "pause",
    Resume: "resume",
    Stop: "stop",
    Abort: "abort",
}


def metrics_record(step: int, loss: float | None, *, attempt: int = 1) -> MetricsRecord:
    """A record as the demo's would be."""
    return MetricsRecord(
        time=NOW - 600 + step,
        attempt=attempt,
        step=step,
        epoch=step / 40,
        tokens=step * 2000,
        target_tokens=step * 900,
        loss=loss,
        learning_rate=1e-3,
        gradient_norm=0.81,
        largest_gradient_norm=0.9,
        tokens_per_second=1900.0,
        step_seconds=1.0,
        peak_gpu_bytes=[],
        peak_host_bytes=[400 * 2**20 + step * 2**18],
        mfu=0.52,
        compute_share=0.96,
        transfer_share=0.31,
        up_share=0.31,
        down_share=0.16,
        waiting_share=0.02,
        optimizer_share=0.02,
        nonfinite=[] if loss is not None else ["loss"],
    )


class ScriptedSupervisor:
    """One job; ``received`` are the commands that came in, as they were sent."""

    def __init__(self, run: RunFolder, *, attempt: int = 1, max_steps: int | None = 300) -> None:
        self.run = run
        self.state: JobState = "training"
        self.since = NOW - 660
        self.step = 0
        self.idle_seconds = 1.0
        self.max_steps = max_steps
        self.attempt = attempt
        self.received: list[Command] = []
        self._numbers: dict[int, tuple[int, asyncio.StreamWriter]] = {}
        self._pending: list[Pending] = []
        self._viewers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        run.path.mkdir(parents=True, exist_ok=True)
        run.config.write_text("description: scripted\n")
        run.origins.write_text("{}\n")
        self.address = new_address()
        job_file = JobFile(
            job=f"{run.name}-{attempt:06x}",
            attempt=attempt,
            host=this_host(),
            boot_id=this_boot(),
            socket=str(self.address),
            pid=os.getpid(),
            start_time=start_time_of(os.getpid()) or 0,
        )
        self.job = job_file.job
        write_job_file(run.job, job_file)
        os.utime(run.job, (NOW - 700, NOW - 700))
        write_entry(JobEntry(run=str(run.path), **msgspec.structs.asdict(job_file)))
        self._metrics = LineWriter(run.metrics)
        self._events = LineWriter(run.events)
        run.log.touch()
        self.say_state("training")

    # ---- the socket ----------------------------------------------------------------------

    async def answer(self) -> None:
        """Begin to answer on the socket."""
        self._server = await asyncio.start_unix_server(self._serve, self.address)

    async def vanish(self) -> None:
        """Close the socket and every connection, as a supervisor that was killed."""
        assert self._server is not None
        self._server.close()
        for viewer in list(self._viewers):
            viewer.close()
        self.address.unlink(missing_ok=True)
        self._server = None

    async def close_files(self) -> None:
        """Leave as a supervisor that has ended leaves."""
        self._metrics.close()
        self._events.close()

    async def close(self) -> None:
        """Clean up at the end of a test."""
        if self._server is not None:
            await self.vanish()
        await self.close_files()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._viewers.add(writer)
        try:
            while line := await reader.readline():
                message = msgspec.json.decode(line, type=ToSupervisor)
                for answer in self._understand(message, writer):
                    writer.write(encode(answer))
        except ConnectionError:
            pass
        finally:
            self._viewers.discard(writer)
            writer.close()

    def _understand(
        self, message: ToSupervisor, writer: asyncio.StreamWriter
    ) -> Iterator[msgspec.Struct]:
        match message:
            case Hello():
                yield Hello(
                    protocol=1,
                    role="supervisor",
                    program="scripted",
                    host=this_host(),
                    pid=os.getpid(),
                    job=self.job,
                )
            case StatusRequest(id=request):
                yield self._status(request)
            case Subscribe(id=request):
                offsets = self._status(0).offsets
                yield Done(id=request, result=Subscribed(offsets=offsets))
            case _:
                self.received.append(message)
                name = _NAMES[type(message)]
                refused = refusal(name, self.state)
                if refused:
                    yield Failed(
                        id=message.id, reason=refused[0], message=refused[1], remedy="wait"
                    )
                    return
                number = len(self.received)
                self._numbers[number] = (message.id, writer)
                self._pending.append(Pending(command=number, name=name, since=NOW - 4))
                when = when_acted_on(name, self.state)
                yield Accepted(id=message.id, command=number, when=when)

    def _status(self, request: int) -> Status:
        return Status(
            id=request,
            state=self.state,
            since=self.since,
            step=self.step,
            max_steps=self.max_steps,
            attempt=self.attempt,
            idle_seconds=self.idle_seconds,
            pending=list(self._pending),
            checkpoint=None,
            offsets={
                "events": self._events.offset,
                "metrics": self._metrics.offset,
                "log": self.run.log.stat().st_size,
            },
        )

    def _tell(self, message: msgspec.Struct) -> None:
        for viewer in self._viewers:
            viewer.write(encode(message))

    # ---- what happens to the job -----------------------------------------------------------

    def log_metrics(self, step: int, loss: float | None) -> None:
        """A logging window ends."""
        self.step = step
        record = metrics_record(step, loss, attempt=self.attempt)
        offset = self._metrics.append(record)
        self._tell(Metrics(offset=offset, record=msgspec.to_builtins(record)))

    def log_event(self, event: EventRecord) -> None:
        """Something happens."""
        offset = self._events.append(event)
        self._tell(Event(offset=offset, record=msgspec.to_builtins(event)))

    def say_state(self, state: JobState) -> None:
        """The job enters a state."""
        self.state = state
        self.log_event(
            StateEvent(time=self.since, attempt=self.attempt, state=state, step=self.step)
        )
        self._tell_status()

    def _tell_status(self) -> None:
        # Viewers ask every other second; an answer out of turn is as good.
        self._tell(self._status(0))

    def say_idle(self, seconds: float) -> None:
        """Rank 0 reports that nothing happens."""
        self.idle_seconds = seconds
        self._tell_status()

    def write_log(self, text: str) -> None:
        """A rank prints."""
        offset = self.run.log.stat().st_size
        with self.run.log.open("a") as file:
            file.write(text)
        self._tell(Log(offset=offset, text=text))

    def finish_command(self, result: AnyResult) -> None:
        """The oldest pending command is done."""
        pending = self._pending.pop(0)
        request, writer = self._numbers.pop(pending.command)
        writer.write(encode(Done(id=request, command=pending.command, result=result)))

    def end(self, outcome: Outcome) -> None:
        """The last process is gone."""
        self.state = outcome.state
        write_outcome(self.run.outcome, outcome)


def write_checkpoint(run: RunFolder, step: int, *, with_weights: bool = False) -> Path:
    """Make a complete checkpoint that holds one small file, or two: nobody reads the weights."""
    import hashlib

    from workbench.runs.manifest import WrittenFile, write_manifest

    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    content = b'{"model_type": "llama"}\n'
    files = {"config.json": content}
    if with_weights:
        files["model.safetensors"] = bytes(100)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    written = {
        name: WrittenFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    manifest = write_manifest(folder, written, step=step, num_ranks=1)
    assert manifest.step == step
    for path in folder.iterdir():
        os.utime(path, (NOW - 1000 + step, NOW - 1000 + step))
    return folder
