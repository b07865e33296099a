"""How long a whole run takes: its steps, and what happens between them.

Evaluations and samples are forward passes, priced by the clock of a step; a save writes bytes to a
disk. None of it is in the seconds of a step, nor in tokens per second. Knows numbers, no machine.
Invariant: what cannot be known is None, and no total then claims to hold it.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.memory_fit import Counts, Fit
from workbench.config.memory_parts import StepForm
from workbench.config.model_facts import ModelFacts
from workbench.config.rates import Rates
from workbench.config.schema.config import Config
from workbench.config.time_plan import forward_flop_per_token, pass_seconds, training_flop_per_token

Kind = Literal["evaluation", "samples", "saving"]

# Bytes per second of a checkpoint that is written, hashed and synced: 1.5 to 1.7 GB/s from host
# memory and from a GPU (benchmarks/results/loading_h200_2026-11-23.md).
SAVE_RATE = 1.5e9
# Files and folders that are synced one by one.
_SAVE_SECONDS = 0.1
# Rows of samples grow by so many tokens, as in training/samples.
_LENGTH_STEP = 32
# What a template writes around a prompt, and how many characters make a token of English.
_TEMPLATE_TOKENS, _TOKEN_CHARACTERS = 16, 4


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """What happens every so many steps.

    Attributes:
        kind: what it is.
        every_steps: of the run; None: once an epoch, or only as the run ends.
        times: in what is left of the run; None where its steps are not known.
        seconds: of one time; None where that takes prepared data.
        is_most: no time takes longer, and some may be shorter.
        words: what one time does.
    """

    kind: Kind
    every_steps: int | None
    times: int | None
    seconds: float | None
    is_most: bool
    words: str

    @property
    def total(self) -> float | None:
        """Give the seconds of all times."""
        if self.times == 0:
            return 0.0
        return None if self.times is None or self.seconds is None else self.times * self.seconds


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """What a run takes from its first step to its end.

    Attributes:
        first_step: that it has behind it: 0, or that of the checkpoint it goes on from.
        last_step: that it ends with; None before the data is prepared, unless the config says.
        is_most: the data may have an end before ``last_step``.
        step_seconds: of a step.
        occasions: what happens between steps; what never happens is left out.
    """

    first_step: int
    last_step: int | None
    is_most: bool
    step_seconds: float
    occasions: tuple[Occasion, ...]

    @property
    def steps(self) -> int | None:
        """Count the steps that are left."""
        return None if self.last_step is None else max(0, self.last_step - self.first_step)

    @property
    def training(self) -> float | None:
        """Give the seconds of the steps."""
        return None if self.steps is None else self.steps * self.step_seconds

    @property
    def total(self) -> float | None:
        """Give the seconds of steps and of every occasion that is known."""
        if self.training is None:
            return None
        return self.training + sum(each.total or 0.0 for each in self.occasions)

    @property
    def unknown(self) -> tuple[Kind, ...]:
        """Name the occasions that ``total`` does not hold."""
        return tuple(each.kind for each in self.occasions if each.total is None)


def last_step(config: Config, counts: Counts | None) -> int | None:
    """Give the step that a run ends with, as the worker counts; None where only the data says it.

    1.5 epochs of 10 steps end with step 15, with ``training.max_steps: 12`` with step 12.
    """
    most = config.training.max_steps
    if counts is None:
        return most
    by_epochs = max(1, math.ceil(round(config.training.epochs * counts.steps_per_epoch, 6)))
    return min(by_epochs, most or by_epochs)


def run_time(
    config: Config,
    facts: ModelFacts,
    found: Fit,
    rates: Rates,
    *,
    step_seconds: float,
    checkpoint_bytes: int,
    counts: Counts | None = None,
    first_step: int = 0,
) -> RunTime:
    """Work out how long a run takes.

    Args:
        config: resolved.
        facts: of its model.
        found: its form and the seconds that arithmetic gives.
        rates: of the machine.
        step_seconds: of a step, measured or computed; passes are priced in the same ratio.
        checkpoint_bytes: of one checkpoint.
        counts: of the prepared data.
        first_step: of the checkpoint that it goes on from.
    """
    end = last_step(config, counts)
    passes = _Passes(facts, found, rates, step_seconds / found.seconds)
    occasions = [
        _evaluation(config, passes, counts, first_step, end),
        _samples(config, passes, first_step, end),
        _saving(config, checkpoint_bytes, counts, first_step, end),
    ]
    return RunTime(
        first_step=first_step,
        last_step=end,
        is_most=counts is None,
        step_seconds=step_seconds,
        occasions=tuple(each for each in occasions if each is not None),
    )


@dataclass(frozen=True)
class _Passes:
    """Prices a forward pass of some rows by the weights of a run.

    Attributes:
        facts: of the model.
        found: the form that the run trains with.
        rates: of the machine.
        ratio: seconds as they are over those that arithmetic gives.
    """

    facts: ModelFacts
    found: Fit
    rates: Rates
    ratio: float

    @property
    def rows_together(self) -> int:
        """Count the rows that pass together: no more than in training."""
        form = self.found.form
        return -(-form.rows // form.microbatches) * form.microbatches

    def seconds(self, rows: int, row_length: int, seen_tokens: float, *, head_rows: int) -> float:
        """Give the seconds of rows that pass the blocks, and of those that pass the head."""
        form = self.found.form
        total = 0.0
        for begin in range(0, rows, self.rows_together):
            part = min(rows - begin, self.rows_together)
            rows_of_head = -(-head_rows * part // rows)
            if isinstance(form, StepForm):
                microbatches = -(-part // form.rows_per_microbatch)
                passing = replace(form, rows=part, row_length=row_length, microbatches=microbatches)
                total += pass_seconds(
                    self.facts, passing, self.rates, seen_tokens, head_rows=rows_of_head
                )
            else:
                # Of a pipeline only the step is known: what a forward is of its FLOP.
                share = forward_flop_per_token(self.facts, seen_tokens) / training_flop_per_token(
                    self.facts, seen_tokens, form.recompute
                )
                per_token = self.found.seconds * share / self.found.step_tokens
                total += per_token * part * row_length
        return total * self.ratio


def _evaluation(
    config: Config, passes: _Passes, counts: Counts | None, begin: int, end: int | None
) -> Occasion | None:
    every, rows, most = (
        config.evaluation.every_steps, config.batch.evaluation, config.evaluation.max_batches,
    )  # fmt: skip
    if every == 0 or (counts is not None and counts.validation_rows == 0):
        return None
    batches = most
    if counts is not None and counts.validation_rows is not None:
        batches = -(-counts.validation_rows // rows)
        batches = min(batches, most or batches)
    seconds = None
    words = "validation rows"
    if batches is not None:
        length = passes.found.form.row_length
        seen = float(length)
        if counts is not None and counts.seen_tokens is not None:
            seen = min(seen, counts.seen_tokens)
        seconds = batches * passes.seconds(rows, length, seen, head_rows=rows * length)
        words = f"{batches * rows:,} validation rows"
    return Occasion(
        kind="evaluation",
        every_steps=every,
        times=_times(every, begin, end),
        seconds=seconds,
        is_most=counts is None,
        words=words,
    )


def _samples(config: Config, passes: _Passes, begin: int, end: int | None) -> Occasion | None:
    prompts, samples = config.samples.prompts, config.samples
    if not prompts:
        return None
    longest_row = passes.found.form.row_length
    lengths = [len(text) // _TOKEN_CHARACTERS + _TEMPLATE_TOKENS for text in prompts]
    seconds = 0.0
    # The longest prompt of those that pass together says how long their rows are.
    for first in range(0, len(prompts), passes.rows_together):
        together = lengths[first : first + passes.rows_together]
        prompt = max(together)
        tokens = max(1, min(samples.max_tokens, longest_row - prompt))
        # Of many tokens a few stand for all: rows grow in steps, and evenly.
        looks = min(tokens, 8)
        for look in range(looks):
            reached = prompt + 1 + (look * tokens + tokens // 2) // looks
            length = min(-(-reached // _LENGTH_STEP) * _LENGTH_STEP, longest_row)
            one = passes.seconds(len(together), length, float(length), head_rows=len(together))
            seconds += one * tokens / looks
    times = _times(samples.every_steps, begin, end)
    if end is not None and times is not None and end > begin and end % samples.every_steps:
        times += 1  # after the last step
    one_prompt = len(prompts) == 1
    return Occasion(
        kind="samples",
        every_steps=samples.every_steps,
        times=times,
        seconds=seconds,
        is_most=True,
        words=f"{len(prompts)} prompt{'' if one_prompt else 's'} of at most "
        f"{samples.max_tokens:,} tokens{'' if one_prompt else ' each'}",
    )


def _saving(
    config: Config, checkpoint_bytes: int, counts: Counts | None, begin: int, end: int | None
) -> Occasion | None:
    strategy = config.checkpoints.save_strategy
    if strategy == "no":
        return None
    every: int | None = config.checkpoints.every_steps
    if strategy == "epoch":
        every = None if counts is None else counts.steps_per_epoch
    times = None if every is None else _times(every, begin, end)
    if times is not None and every is not None and end is not None and end > begin and end % every:
        times += 1  # as the run ends
    return Occasion(
        kind="saving",
        every_steps=every,
        times=times,
        seconds=_SAVE_SECONDS + checkpoint_bytes / SAVE_RATE,
        is_most=False,
        words=f"at {SAVE_RATE / 1e9:g} GB/s",
    )


def _times(every: int, begin: int, end: int | None) -> int | None:
    """Count the steps behind ``begin``, up to ``end``, after which something falls due."""
    return None if end is None else max(0, end // every - begin // every)


# ---- in words ----------------------------------------------------------------------------------


def seconds_words(seconds: float) -> str:
    """Say a time span in one unit: 250 ms, 3.9 s, 14 min, 4.2 h, 3.1 days."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 72 * 60 else f"{minutes / 1440:.1f} days"


def run_words(found: RunTime) -> str | None:
    """Say how long a run takes and what of it goes where; None where its steps are not known."""
    if found.total is None or found.training is None or found.steps is None:
        return None
    parts = [f"training {seconds_words(found.training)}"]
    for each in found.occasions:
        if each.total:
            parts.append(f"{each.kind} {seconds_words(each.total)}")
    left = ("more " if found.first_step else "") + ("step" if found.steps == 1 else "steps")
    most_steps = "at most " if found.is_most else ""
    most = "at most " if any(each.is_most and each.times for each in found.occasions) else ""
    words = f"{most_steps}{found.steps:,} {left}, {most}{seconds_words(found.total)}"
    told = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    missing = f"; without {' and '.join(found.unknown)}, not known yet" if found.unknown else ""
    return words + told + missing


def occasion_words(each: Occasion) -> str:
    """Say when something happens, what it is, and how long it takes."""
    every = "as the run ends" if each.every_steps is None else f"every {each.every_steps:,} steps"
    if each.seconds is None:
        return f"{every}; how long is known once the data is prepared"
    most = "at most " if each.is_most else ""
    words = f"{every}, {most}{seconds_words(each.seconds)} each: {each.words}"
    if each.times is not None and each.total is not None:
        times = "once" if each.times == 1 else f"{each.times:,} times"
        words += f"; {times}, {seconds_words(each.total)}" if each.times else "; never in this run"
    return words
