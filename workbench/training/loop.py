"""The training loop: a page of plain statements around one call that takes one optimizer step.

Everything that happens besides, saving, evaluating, pausing, stopping, happens at a step boundary
and leaves the steps that follow unchanged. Knows no config.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from workbench.control.messages import (
    AnyResult,
    Done,
    Evaluated,
    Event,
    Failed,
    Held,
    JobFailure,
    Metrics,
    Refusal,
    Saved,
)
from workbench.control.states import RunningState
from workbench.data.loader import Loader
from workbench.errors import WorkbenchError
from workbench.runs import checkpoints as folders
from workbench.runs.events import (
    CheckpointEvent,
    EvaluationEvent,
    EventRecord,
    SampleEvent,
    WarningEvent,
)
from workbench.runs.job_file import seconds_since_launch
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint
from workbench.training.control_point import ControlPoint, Flag
from workbench.training.distributed import Ranks
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.evaluate import evaluate_batches, total
from workbench.training.publisher import Publisher
from workbench.training.report import Fault, Report
from workbench.training.samples import Reply, Sampler, board_text
from workbench.training.state import SavedState, TrainingState

logger = logging.getLogger(__name__)


class NonfiniteError(WorkbenchError):
    """A loss or gradient was not finite and the run is to end at that."""


@dataclass(frozen=True)
class Intervals:
    """When things happen, in steps.

    Attributes:
        log: steps of a metrics record.
        evaluate: steps between evaluations; None: only when asked.
        max_evaluation_batches: of one evaluation; None: all.
        save: steps between checkpoints; None: only when asked and where ``save_at_end`` says so.
        save_at_end: a run that ends by itself saves its last step.
        keep: newest checkpoints that pruning spares.
    """

    log: int
    evaluate: int | None
    max_evaluation_batches: int | None
    save: int | None
    save_at_end: bool
    keep: int


@dataclass(frozen=True)
class Ending:
    """How the loop ended when nothing failed."""

    state: Literal["finished", "stopped"]
    step: int


@dataclass
class Training:
    """The parts of a run, and the loop over them.

    Attributes:
        run: where results go.
        ranks: this rank among all.
        attempt: of this start, from 1.
        engine: takes steps and evaluates.
        rows: of training, by step.
        validation: rows of evaluation; None where there are none.
        rate: learning rate of a step.
        max_steps: of the whole run.
        intervals: when things happen.
        nonfinite: stop or skip, at a loss that is not finite.
        content: what a checkpoint holds.
        control: where commands arrive.
        publisher: rank 0's line to the supervisor; None without one.
        report: of metrics.
        state: counters; resumed ones where the run resumes.
        sampler: answers the prompts of the config; None where it has none.
    """

    run: RunFolder
    ranks: Ranks
    attempt: int
    engine: LayerMajorEngine
    rows: Loader
    validation: Loader | None
    rate: Callable[[int], float]
    max_steps: int
    intervals: Intervals
    nonfinite: Literal["stop", "skip"]
    content: checkpoint.Content
    control: ControlPoint
    publisher: Publisher | None
    report: Report
    state: TrainingState
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        self._resting: RunningState = "training"
        self._saved_step = self.state.step
        self._save_failure: checkpoint.SaveError | None = None
        self._num_unreported = 0
        self._has_stepped = False
        self._evaluated: tuple[int, float | None] = (-1, None)

    def train(self) -> Ending:
        """Take steps until the last one or until told to stop; save as the run ends.

        Raises:
            NonfiniteError: a loss was not finite and ``nonfinite`` is stop.
            SaveError: the last save failed.
        """
        self._at("compiling" if self.content.device.type == "cuda" else "training")
        # Before the first step only a stop is heeded; what else is asked waits for its end.
        self.control.agree()
        while self.state.step < self.max_steps and Flag.STOP not in self.control.pending:
            self._step()
            step = self.state.step
            if step % self.intervals.log == 0 or step == self.max_steps:
                self._log()
            if self.intervals.evaluate and step % self.intervals.evaluate == 0:
                self._evaluate([])
            if self.sampler and (step % self.sampler.every_steps == 0 or step == self.max_steps):
                self._sample(self.sampler)
            if self.intervals.save and step % self.intervals.save == 0:
                self._save([])
            self._obey()
        return self._finish()

    def _step(self) -> None:
        """Take one optimizer step."""
        begin = time.perf_counter()
        number = self.state.step + 1
        rows = self.rows.step(number - 1)
        result = self.engine.step(rows, number, self.rate(number))
        self.state.step = number
        self.state.tokens += rows.num_tokens
        self.state.target_tokens += rows.num_targets
        self.state.epoch = rows.epoch
        self.report.add(number, result, time.perf_counter() - begin, rows)
        self._num_unreported += 1
        self._at(self._resting)
        faults = self.report.faults(wait=not self._has_stepped)
        if not self._has_stepped:
            self._has_stepped = True
            seconds = seconds_since_launch(self.run)
            self.report.first_step_ended(seconds)
            logger.info("the first step ended %.1f s after launch", seconds)
        self._judge(faults)

    def _judge(self, faults: list[Fault]) -> None:
        """Apply the rule for numbers that are not finite."""
        for fault in faults:
            what = f"{fault.what} of step {fault.step} is not finite"
            remedy = "lower optimizer.learning_rate, or look at the rows of this step"
            if self.nonfinite == "stop":
                # The record of the bad step tells what happened: it is written before leaving.
                self.report.faults(wait=True)
                self._write_record()
                raise NonfiniteError(what, where=f"step {fault.step}", remedy=remedy)
            self._warn(f"{what}; {fault.skipped}", remedy, step=fault.step)

    def _log(self) -> None:
        """End the window of metrics, if a step is in it."""
        self._await_steps()
        self._write_record()

    def _await_steps(self) -> None:
        """Wait for the steps that were launched: else what comes next waits, and hides their time.

        A device may be a step behind.
        """
        self._judge(self.report.faults(wait=True))

    def _write_record(self) -> None:
        if self._num_unreported == 0:
            return
        self._num_unreported = 0
        offset, record = self.report.window(self.state, self.rate(self.state.step))
        if self.publisher is not None:
            self.publisher.send(Metrics(offset=offset, record=msgspec.to_builtins(record)))
        logger.info(
            "step %d/%d loss %s lr %.3g gnorm %s %.0f tok/s%s",
            record.step,
            self.max_steps,
            "not finite" if record.loss is None else f"{record.loss:.4f}",
            record.learning_rate,
            "not finite" if record.gradient_norm is None else f"{record.gradient_norm:.3f}",
            record.tokens_per_second,
            "" if record.mfu is None else f" MFU {record.mfu:.1%}",
        )

    def _evaluate(self, numbers: list[int]) -> None:
        """Evaluate the validation rows; answer the commands that asked for it."""
        if self.validation is None:
            self._refuse(numbers, "data", "there are no validation rows", "set data.split_at")
            return
        self._await_steps()
        self._at("evaluating")
        begin = time.perf_counter()
        found = []
        for sums in evaluate_batches(
            self.engine, self.validation, self.intervals.max_evaluation_batches
        ):
            found.append(sums)
            self._at("evaluating")
            if Flag.STOP in self.control.agree():
                self._refuse(numbers, "stopping", "the job is stopping", "evaluate it later")
                return
        evaluation = total(found)
        seconds = time.perf_counter() - begin
        step = self.state.step
        best = self._note_evaluation(step, evaluation.loss)
        self.report.evaluation(step, evaluation)
        self._tell(
            EvaluationEvent(
                time=time.time(),
                attempt=self.attempt,
                step=step,
                loss=evaluation.loss,
                perplexity=evaluation.perplexity,
                accuracy=evaluation.accuracy,
                target_tokens=evaluation.target_tokens,
                seconds=seconds,
                best=best,
            )
        )
        self._answer(
            numbers,
            Evaluated(
                step=step, loss=evaluation.loss, tokens=evaluation.target_tokens, seconds=seconds
            ),
        )
        logger.info(
            "step %d evaluated: loss %s, accuracy %s, %d target tokens, %.1f s",
            step,
            "not finite" if evaluation.loss is None else f"{evaluation.loss:.4f}",
            "none" if evaluation.accuracy is None else f"{evaluation.accuracy:.3f}",
            evaluation.target_tokens,
            seconds,
        )
        self._at(self._resting)

    def _sample(self, sampler: Sampler) -> None:
        """Let the model answer the prompts, and tell what it said; a stop ends it unsaid."""
        self._await_steps()
        begin = time.perf_counter()
        replies: list[Reply] = []
        # Sampling looks for commands between tokens as evaluation does between batches.
        self._at("evaluating")
        for so_far in sampler.answer(self.state.step):
            replies = so_far
            self._at("evaluating")
            if Flag.STOP in self.control.agree():
                return
        step, seconds = self.state.step, time.perf_counter() - begin
        for reply in replies:
            self._tell(
                SampleEvent(
                    time=time.time(),
                    attempt=self.attempt,
                    step=step,
                    prompt=reply.prompt,
                    reply=reply.text,
                    tokens=len(reply.ids),
                    cut=reply.is_cut,
                )
            )
            logger.info("step %d %r: %r", step, reply.prompt, reply.text)
        self.report.text("samples", board_text(replies), step)
        prompts = "1 prompt" if len(replies) == 1 else f"{len(replies)} prompts"
        logger.info("step %d %s answered, %.1f s", step, prompts, seconds)
        self._at(self._resting)

    def _note_evaluation(self, step: int, loss: float | None) -> bool:
        """Remember the loss of this very step, for a save that may follow; say whether it leads."""
        self._evaluated = (step, loss)
        if loss is None:
            return False
        is_best = False
        if self.ranks.rank == 0:
            best = folders.read_best(self.run)
            is_best = best is None or loss < best.loss
            checkpoint.note_evaluation(self.run, step, loss)
        return is_best

    def _save(self, numbers: list[int]) -> None:
        """Write a checkpoint; answer the commands that asked for it. A failure is told, not fatal.

        Training goes on with its older checkpoints.
        """
        self._await_steps()
        self._at("stopping" if self._resting == "stopping" else "saving")
        try:
            self.engine.store.settle()
            saved = checkpoint.save(self.run, self.content, self._saved_state(), self.ranks)
        except checkpoint.SaveError as error:
            self._save_failure = error
            self._warn(str(error), error.remedy, step=self.state.step)
            self._refuse(numbers, error.reason, error.what, error.remedy)
            self._at(self._resting)
            return
        self._save_failure = None
        step = self._saved_step = self.state.step
        path = saved.path.relative_to(self.run.path).as_posix()
        is_best = self._note_best(step)
        self._tell(
            CheckpointEvent(
                time=time.time(),
                attempt=self.attempt,
                step=step,
                path=path,
                bytes=saved.bytes,
                seconds=saved.seconds,
                best=is_best,
                pruned=self._prunable(),
            )
        )
        self._answer(numbers, Saved(step=step, path=path, bytes=saved.bytes, seconds=saved.seconds))
        logger.info("step %d saved: %s, %d bytes, %.1f s", step, path, saved.bytes, saved.seconds)
        self._prune(step)
        self._at(self._resting)

    def _note_best(self, step: int) -> bool:
        """Note whether a step that was just saved is the best; give the answer."""
        if self.ranks.rank != 0:
            return False
        evaluated_step, loss = self._evaluated
        if evaluated_step == step and loss is not None:
            checkpoint.note_evaluation(self.run, step, loss)
        best = folders.read_best(self.run)
        return best is not None and best.step == step

    def _prunable(self) -> list[str]:
        """Name the checkpoints that go once the new one is announced."""
        if self.ranks.rank != 0:
            return []
        try:
            steps = folders.prunable_in(self.run, self.intervals.keep)
        except WorkbenchError:
            return []  # none goes; pruning tells why
        return [self.run.checkpoint(step).name for step in steps]

    def _prune(self, step: int) -> None:
        if self.ranks.rank != 0:
            return
        try:
            folders.prune(self.run, self.intervals.keep)
        except (OSError, WorkbenchError) as error:
            self._warn(f"old checkpoints stay: {error}", "remove them by hand", step=step)

    def _saved_state(self) -> SavedState:
        return self.state.to_saved(
            steps_per_epoch=self.rows.steps_per_epoch, previous_norm=self.engine.previous_norm
        )

    def _obey(self) -> None:
        """Act on the commands that arrived by this step boundary."""
        self.control.agree()
        self._serve()
        if Flag.PAUSE in self.control.pending:
            self._hold()
        if Flag.RESUME in self.control.pending:
            numbers = self.control.take(Flag.RESUME)
            self._refuse(numbers, "not_paused", "the job is not paused", "nothing is to be done")

    def _serve(self) -> None:
        # Evaluation first: a save of the same step then knows whether it is the best.
        if Flag.EVALUATE in self.control.pending:
            self._evaluate(self.control.take(Flag.EVALUATE))
        if Flag.SAVE in self.control.pending:
            self._save(self.control.take(Flag.SAVE))

    def _hold(self) -> None:
        """Stay at this step boundary until resume or stop; still save and evaluate."""
        self._resting = "paused"
        logger.info("paused at step %d", self.state.step)
        while not self.control.pending & (Flag.RESUME | Flag.STOP):
            self._at("paused")
            if Flag.PAUSE in self.control.pending:
                numbers = self.control.take(Flag.PAUSE)
                self._answer(numbers, Held(step=self.state.step, paused=True))
            self.control.wait(1.0)
            self._serve()
        self._resting = "training"
        if Flag.STOP in self.control.pending:
            return
        self._at("training")
        self._answer(self.control.take(Flag.RESUME), Held(step=self.state.step, paused=False))
        logger.info("resumed at step %d", self.state.step)

    def _finish(self) -> Ending:
        """Write what is not written yet, and say how the run ended."""
        pending = self.control.pending
        is_stopped = Flag.STOP in pending and self.state.step < self.max_steps
        self._resting = "stopping" if Flag.STOP in pending else "training"
        self._at(self._resting)
        self._log()
        wants_save = self.intervals.save_at_end
        if Flag.STOP in pending:
            wants_save = Flag.STOP_WITHOUT_SAVE not in pending
        # At the step where this attempt began nothing is new: step 0, or a checkpoint that exists.
        if wants_save and self.state.step != self._saved_step:
            self._save([])
        if self._save_failure is not None:
            raise self._save_failure
        return Ending("stopped" if is_stopped else "finished", self.state.step)

    def _at(self, state: RunningState) -> None:
        if self.publisher is not None:
            self.publisher.at(state, self.state.step, self.max_steps)

    def _tell(self, record: EventRecord) -> None:
        if self.publisher is not None:
            self.publisher.send(Event(offset=0, record=msgspec.to_builtins(record)))

    def _warn(self, message: str, remedy: str, *, step: int) -> None:
        logger.warning("%s", message)
        self._tell(
            WarningEvent(
                time=time.time(), attempt=self.attempt, step=step, message=message, remedy=remedy
            )
        )

    def _answer(self, numbers: list[int], result: AnyResult) -> None:
        if self.publisher is not None:
            for number in numbers:
                self.publisher.send(Done(id=number, result=result))

    def _refuse(
        self, numbers: list[int], reason: JobFailure | Refusal, message: str, remedy: str
    ) -> None:
        if self.publisher is not None:
            for number in numbers:
                self.publisher.send(
                    Failed(id=number, reason=reason, message=message, remedy=remedy)
                )
