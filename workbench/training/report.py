"""Device numbers of each step become one record per window: file first, then TensorBoard.

Each step's numbers are copied to the host without waiting; a window reads them at its end, and only
then the times of a step. What part of the card's peak that was is ``utilization``'s formula.
Invariant: a record is on disk before anyone is told of it, and no record holds NaN.
"""

import logging
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from workbench.data.loader import StepRows
from workbench.runs.json_lines import LineWriter, read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.training.distributed import Ranks
from workbench.training.engine.lanes import Sample
from workbench.training.engine.step import StepResult
from workbench.training.engine.step_times import StepTimes
from workbench.training.evaluate import Evaluation
from workbench.training.state import TrainingState
from workbench.training.utilization import Utilization, count_seen_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A step whose loss, or the gradient of whose parameter ``name``, was not finite."""

    step: int
    name: str | None

    @property
    def what(self) -> str:
        """The number that was not finite, in words."""
        return "the loss" if self.name is None else f"the gradient of {self.name}"

    @property
    def skipped(self) -> str:
        """What the step left as it was, in words: backward had moved the parameters above."""
        if self.name is None:
            return "the whole step was skipped"
        return "this tensor and those below it were not updated"


@dataclass(frozen=True)
class _Arriving:
    """Numbers of a step on their way to the host: [loss sum, ok, square norms …] fp32."""

    step: int
    result: StepResult
    seen_tokens: int
    numbers: Tensor
    event: torch.cuda.Event | None

    @property
    def is_here(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Step:
    step: int
    loss_sum: float
    num_targets: int
    num_tokens: int
    is_ok: bool
    seen_tokens: int
    gradient_norm: float | None  # None: the step ended without gradients
    times: Sample | None  # None: the step was not timed
    fault: Fault | None


class Report:
    """Collects steps; writes metrics.jsonl and TensorBoard (rank 0) at the end of each window.

    Args:
        run: where to write.
        ranks: whose memory is gathered into a record.
        attempt: of this start.
        device: of the engine.
        resumed_step: TensorBoard points beyond it, of an attempt that crashed, are taken back.
        name: of the run in TensorBoard; None takes the run folder's.
        utilization: of the model on this card; None reports no MFU.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        *,
        attempt: int,
        device: torch.device,
        resumed_step: int,
        name: str | None,
        utilization: Utilization | None = None,
    ) -> None:
        self._ranks, self._attempt, self._device = ranks, attempt, device
        self._arriving: list[_Arriving] = []
        self._steps: list[_Step] = []
        self._seconds = 0.0
        self._utilization = utilization
        self._first_step_seconds: float | None = None
        self._window_step_seconds: list[float] = []
        self._is_writing = ranks.rank == 0
        if self._is_writing:
            self._metrics = LineWriter(run.metrics)
            folder = run.tensorboard / name if name else run.tensorboard
            self._board = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def add(
        self, step: int, result: StepResult, seconds: float, rows: StepRows | None = None
    ) -> None:
        """Take in a step that was launched; does not wait for it.

        Args:
            step: its number.
            result: device tensors of the engine.
            seconds: since the step began.
            rows: of the step; without them attention's share of the FLOP is left out.
        """
        numbers = torch.cat(
            [torch.stack([result.loss_sum, result.ok.to(torch.float32)]), result.square_norms]
        )
        event: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            on_host = torch.empty(numbers.shape, dtype=torch.float32, pin_memory=True)
            on_host.copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            numbers = on_host
        seen_tokens = 0
        if self._utilization is not None and rows is not None:
            facts = self._utilization.facts
            seen_tokens = count_seen_tokens(
                rows.microbatches, facts.sliding_window, facts.sliding_fraction
            )
        self._arriving.append(_Arriving(step, result, seen_tokens, numbers, event))
        self._seconds += seconds

    def first_step_ended(self, seconds: float) -> None:
        """Take the seconds from launch to the end of the attempt's first step; told once."""
        self._first_step_seconds = seconds

    def faults(self, *, wait: bool = False) -> list[Fault]:
        """Give the faults of steps whose numbers have arrived since the last call.

        Args:
            wait: for the numbers of every step that was added.
        """
        found: list[Fault] = []
        begin = time.perf_counter()
        while self._arriving and (wait or self._arriving[0].is_here):
            arriving = self._arriving.pop(0)
            if arriving.event is not None:
                arriving.event.synchronize()
            step = _read(arriving)
            self._steps.append(step)
            if step.fault is not None:
                found.append(step.fault)
        self._seconds += time.perf_counter() - begin
        return found

    def window(self, state: TrainingState, learning_rate: float) -> tuple[int, MetricsRecord]:
        """End the window: write its record.

        ``faults(wait=True)`` comes first, or steps on their way count for the next window.

        Returns:
            The byte where the record begins in metrics.jsonl, and the record.
        """
        record = self._record(state, learning_rate)
        self._window_step_seconds.append(record.step_seconds)
        self._steps, self._seconds, self._first_step_seconds = [], 0.0, None
        if not self._is_writing:
            return 0, record
        offset = self._metrics.append(record)
        self._draw(record)
        return offset, record

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step, the median over all windows but the first; None without those."""
        windows = self._window_step_seconds[1:]  # the first holds the first step
        return statistics.median(windows) if windows else None

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Draw an evaluation in TensorBoard."""
        if not self._is_writing:
            return
        self._scalar("eval-loss", evaluation.loss, step)
        self._scalar("eval-perplexity", evaluation.perplexity, step)
        self._scalar("eval-accuracy", evaluation.accuracy, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Put a text into TensorBoard: experiment, training_info, train_results."""
        if self._is_writing:
            self._board.add_text(tag, text, step)

    def close(self) -> None:
        """Flush and close both files."""
        if self._is_writing:
            self._metrics.close()
            self._board.close()

    def _record(self, state: TrainingState, learning_rate: float) -> MetricsRecord:
        steps = self._steps
        num_targets = sum(step.num_targets for step in steps)
        num_tokens = sum(step.num_tokens for step in steps)
        norms = [step.gradient_norm for step in steps if step.gradient_norm is not None]
        loss = sum(step.loss_sum for step in steps) / num_targets if num_targets else None
        norm = math.sqrt(sum(norm * norm for norm in norms) / len(norms)) if norms else None
        largest = max(norms) if norms else None
        nonfinite = [
            name
            for name, number in (("loss", loss), ("gradient_norm", norm))
            if number is not None and not math.isfinite(number)
        ]
        seconds = max(self._seconds, 1e-9)
        # Only here: every step of the window has ended, so the events behind its times are past.
        shares = _shares([step.times.read() for step in steps if step.times is not None])
        mfu: float | None = None
        if self._utilization is not None:
            seen_tokens = sum(step.seen_tokens for step in steps)
            mfu = self._utilization.mfu(num_tokens, seen_tokens, seconds)
        return MetricsRecord(
            time=time.time(),
            attempt=self._attempt,
            step=state.step,
            epoch=round(state.epoch, 6),
            tokens=state.tokens,
            target_tokens=state.target_tokens,
            loss=_finite(loss),
            learning_rate=learning_rate,
            gradient_norm=_finite(norm),
            largest_gradient_norm=_finite(largest),
            tokens_per_second=num_tokens / seconds,
            step_seconds=seconds / max(len(steps), 1),
            peak_gpu_bytes=self._peaks(torch.cuda.max_memory_reserved),
            peak_gpu_allocated_bytes=self._peaks(torch.cuda.max_memory_allocated),
            peak_host_bytes=self._ranks.gather(peak_host_bytes()),
            skipped_steps=sum(not step.is_ok for step in steps),
            mfu=mfu,
            compute_share=shares.compute,
            transfer_share=shares.transfer,
            up_share=shares.up,
            down_share=shares.down,
            waiting_share=shares.waiting,
            optimizer_share=shares.optimizer,
            first_step_seconds=self._first_step_seconds,
            nonfinite=nonfinite,  # type: ignore[arg-type]
        )

    def _peaks(self, peak_of: Callable[[torch.device], int]) -> list[int]:
        if self._device.type != "cuda":
            return []
        return self._ranks.gather(peak_of(self._device))

    def _draw(self, record: MetricsRecord) -> None:
        self._scalar("train-loss", record.loss, record.step)
        self._scalar("learning-rate", record.learning_rate, record.step)
        self._scalar("grad-norm", record.gradient_norm, record.step)
        self._scalar("grad-norm[max]", record.largest_gradient_norm, record.step)
        self._scalar("tokens-per-second", record.tokens_per_second, record.step)
        self._scalar("mfu", record.mfu, record.step)
        self._scalar("compute-share", record.compute_share, record.step)
        self._scalar("copy-up-share", record.up_share, record.step)
        self._scalar("copy-down-share", record.down_share, record.step)
        self._scalar("waiting-share", record.waiting_share, record.step)
        self._scalar("optimizer-share", record.optimizer_share, record.step)
        self._scalar("first-step-seconds", record.first_step_seconds, record.step)
        for rank, peak in enumerate(record.peak_gpu_bytes or record.peak_host_bytes):
            self._scalar(f"peak_memory_rank{rank}", float(peak), record.step)
        for rank, peak in enumerate(record.peak_gpu_allocated_bytes):
            self._scalar(f"peak_allocated_rank{rank}", float(peak), record.step)

    def _scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None:
            self._board.add_scalar(tag, value, step)


def next_attempt(run: RunFolder) -> int:
    """Number a start that has no job file: one more than the last record's, or 1."""
    lines, _ = read_lines(run.metrics)
    if not lines:
        return 1
    return msgspec.json.decode(lines[-1].content, type=MetricsRecord).attempt + 1


def peak_host_bytes() -> int:
    """Give the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class _Shares:
    compute: float | None = None
    transfer: float | None = None
    up: float | None = None
    down: float | None = None
    waiting: float | None = None
    optimizer: float | None = None


def _shares(timed: Sequence[StepTimes]) -> _Shares:
    """Give the shares of the timed steps, each part over the seconds of the steps that know it."""

    def share(name: str) -> float | None:
        known = [
            (part, times.step)
            for times in timed
            if (part := getattr(times, name)) is not None and times.step
        ]
        return sum(part for part, _ in known) / sum(step for _, step in known) if known else None

    up, down, waiting, optimizer = (share(name) for name in ("up", "down", "waiting", "optimizer"))
    busy = [each for each in (waiting, optimizer) if each is not None]
    copies = [each for each in (up, down) if each is not None]
    return _Shares(
        compute=max(0.0, 1 - sum(busy)) if busy else None,
        transfer=max(copies, default=None),
        up=up,
        down=down,
        waiting=waiting,
        optimizer=optimizer,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _read(arriving: _Arriving) -> _Step:
    result = arriving.result
    loss_sum, is_ok, *squares = arriving.numbers.tolist()
    fault: Fault | None = None
    if not is_ok:
        fault = Fault(arriving.step, None)
    else:
        # Backward runs from the last parameter to the first: the last one named is the first hit.
        hit = [name for name, square in zip(result.names, squares, strict=True)
               if not math.isfinite(square)]  # fmt: skip
        fault = Fault(arriving.step, hit[-1]) if hit else None
    return _Step(
        step=arriving.step,
        loss_sum=loss_sum,
        num_targets=result.num_targets,
        num_tokens=result.num_tokens,
        is_ok=bool(is_ok),
        seen_tokens=arriving.seen_tokens,
        gradient_norm=math.sqrt(sum(squares)) if is_ok and squares else None,
        times=result.times,
        fault=fault,
    )
