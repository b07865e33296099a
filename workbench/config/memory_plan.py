"""Will it fit: a config, a model and a machine → bytes, verdict, time, levers, a config that fits.

Puts together ``memory_fit``, ``memory_levers`` and, where there is one, an earlier run of the same
settings, and says it in words. Knows no torch and asks no machine: what it has is an argument.

Invariant: what was measured comes before what was computed.
"""

from dataclasses import dataclass

from workbench.config.host_parts import HostBytes, checkpoint_bytes
from workbench.config.memory_fit import (
    VERDICT_WORDS,
    Counts,
    Fit,
    Machine,
    Verdict,
    fit,
    is_row_certain,
    keeps_low_bits,
    rates_for,
    weight_bytes_of,
)
from workbench.config.memory_levers import Lever, levers
from workbench.config.memory_parts import (
    GIB,
    MARGIN,
    outside_bytes,
)
from workbench.config.memory_ways import (
    Combination,
    Hardware,
    Refused,
    firm_combination,
    fitting_hardware,
    gentle_combination,
    single_ways,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.rates import Rates
from workbench.config.run_time import RunTime, run_time
from workbench.config.schema.config import Config

# Predictions of one plan differ by no more, whatever the rows of the data came to.
_SAME_PLAN = 0.02


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What an earlier run of the same settings took.

    Attributes:
        name: of its run folder.
        gpu_reserved_bytes: its peak; None on the CPU.
        predicted_bytes: what its plan had predicted of that.
        host_peak_bytes: its peak.
        tokens_per_second: of its last metrics; None without any.
        microbatches: parts of its steps; None where not known.
    """

    name: str
    gpu_reserved_bytes: int | None
    predicted_bytes: int | None
    host_peak_bytes: int | None
    tokens_per_second: float | None
    microbatches: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a config takes on a machine, and what to do where that is too much.

    Attributes:
        fit: bytes and time by arithmetic.
        total: bytes of the worst rank: measured where a run of the same settings was, else
            predicted.
        verdict: of that total.
        measured: the run whose peaks count; None without one.
        seconds_per_step: by that run's speed, else by ``rates``.
        steps_per_epoch: None before the data is prepared.
        run_time: of the whole run, with what happens between steps.
        checkpoint_bytes: of one checkpoint.
        num_checkpoints: that lie there at once: those kept, the best, and the one being written.
        rates: what the seconds rest on.
        row_is_certain: no row can be shorter than was assumed.
        levers: ordered by cost: where it is tight what takes bytes off, where it does not fit
            what is enough by itself; empty where it fits.
        proposals: the fewest changes that fit together: without changing training, and, where that
            is not enough or cannot be started, with; empty where it fits or none was found.
        hardware: what would hold it as it is; None where it fits, or a change that leaves training
            as it is makes it fit.
    """

    fit: Fit
    total: int
    verdict: Verdict
    measured: MeasuredRun | None
    seconds_per_step: float
    steps_per_epoch: int | None
    run_time: RunTime
    checkpoint_bytes: int
    num_checkpoints: int
    rates: Rates
    row_is_certain: bool
    levers: tuple[Lever, ...]
    proposals: tuple[Combination, ...]
    hardware: Hardware | None

    @property
    def margin_bytes(self) -> int | None:
        """Give what the budget has left, below 0 where it is exceeded."""
        return None if self.fit.budget_bytes is None else self.fit.budget_bytes - self.total


def host_words(host: HostBytes) -> str:
    """Say what of a rank lies in host memory, part by part; "" where nothing does."""
    parts = [
        (host.weights, "streamed weights"),
        (host.block_inputs, "block inputs"),
        (host.gradient_sums, "gradient sums"),
        (host.low_bits, "low bits"),
        (host.optimizer_state, "optimizer state"),
        (host.training, "the training itself"),
    ]
    return ", ".join(f"{num_bytes / GIB:,.2f} {words}" for num_bytes, words in parts if num_bytes)


def lacks_host_memory(found: Estimate) -> bool:
    """Say whether host memory alone keeps a run on a GPU from fitting."""
    margin = found.margin_bytes
    return found.fit.is_gpu and found.verdict == "will_not_fit" and (margin is None or margin >= 0)


def gib_enough(num_bytes: int) -> str:
    """Say GiB, rounded up, so that a budget of what is said is enough."""
    return f"{-(-num_bytes * 100 // GIB) / 100:,.2f}"


def needed_budget(found: Estimate) -> int | None:
    """Give the smallest budget that works, where the one there is does not; else None."""
    fit = found.fit
    if fit.budget_bytes is None or fit.least is None or fit.least <= fit.budget_bytes:
        return None
    return fit.least


def total_words(found: Estimate) -> str:
    """Say the total, the budget, the verdict, and what is left or lacking."""
    budget, margin = found.fit.budget_bytes, found.margin_bytes
    words, total = VERDICT_WORDS[found.verdict], f"{found.total / GIB:,.2f}"
    if budget is None or margin is None:
        return f"{total} GiB  {words}  no budget is known"
    left = f"margin {margin / GIB:,.2f} ({margin / budget:.0%})"
    if margin < 0:
        left = f"over by {gib_enough(-margin)} GiB"
    elif found.verdict == "will_not_fit":
        left = "host memory does not hold it"
    return f"{total} of {budget / GIB:,.2f} GiB  {words}  {left}"


def basis_words(found: Estimate) -> str:
    """Say what an estimate rests on."""
    if found.measured is not None:
        run = found.measured
        measured = run.gpu_reserved_bytes if found.fit.is_gpu else run.host_peak_bytes
        predicted = run.predicted_bytes if found.fit.is_gpu else found.fit.worst.total
        if measured is None or predicted is None:
            return f"measured run {run.name}"
        return (
            f"measured run {run.name}: {measured / GIB:,.2f} GiB, "
            f"predicted {predicted / GIB:,.2f} ({measured / predicted - 1:+.1%})"
        )
    if not found.fit.is_gpu:
        return "formula, on a CPU"
    if found.fit.is_measured_form:
        return "the engine's own buffers, counted; within 5 % of peaks measured on an H200"
    return "formula only: no engine of this version was measured so"


def estimate(
    config: Config,
    facts: ModelFacts,
    *,
    machine: Machine | None = None,
    counts: Counts | None = None,
    measured: MeasuredRun | None = None,
    first_step: int = 0,
) -> Estimate:
    """Estimate what a config takes, and find what makes it fit.

    Args:
        config: resolved; its model need not be named, ``facts`` are it.
        facts: of the model.
        machine: what it is held against.
        counts: of its prepared data.
        measured: a run of the same settings; left out where it was on another kind of device, or
            where another budget cuts the step otherwise.
        first_step: of the checkpoint that a run goes on from.
    """
    machine = machine or Machine()
    found = fit(config, facts, machine, counts)
    if measured is not None and not _is_same_form(measured, found):
        measured = None
    total = found.worst.total
    if measured is not None:
        if measured.gpu_reserved_bytes is not None:
            total = measured.gpu_reserved_bytes + outside_bytes(found.worst.host.pinned)
        elif measured.host_peak_bytes is not None:
            total = measured.host_peak_bytes
    verdict = found.verdict_of(total)
    seconds = found.seconds
    if measured is not None and measured.tokens_per_second:
        seconds = found.step_tokens / measured.tokens_per_second
    rates = rates_for(machine, is_gpu=found.is_gpu)
    one_checkpoint = bytes_of_a_checkpoint(config, facts)
    ways = _ways(Refused(config, facts, machine, counts, found), verdict)
    return Estimate(
        fit=found,
        total=total,
        verdict=verdict,
        measured=measured,
        seconds_per_step=seconds,
        steps_per_epoch=counts.steps_per_epoch if counts else None,
        run_time=run_time(
            config,
            facts,
            found,
            rates,
            step_seconds=seconds,
            checkpoint_bytes=one_checkpoint,
            counts=counts,
            first_step=first_step,
        ),
        checkpoint_bytes=one_checkpoint,
        num_checkpoints=checkpoints_at_once(config),
        rates=rates,
        row_is_certain=counts is not None or is_row_certain(config),
        levers=ways.levers,
        proposals=ways.proposals,
        hardware=ways.hardware,
    )


@dataclass(frozen=True, kw_only=True)
class _Ways:
    levers: tuple[Lever, ...] = ()
    proposals: tuple[Combination, ...] = ()
    hardware: Hardware | None = None


def _ways(refused: Refused, verdict: Verdict) -> _Ways:
    """Look for what helps, as far as that is asked for."""
    if verdict == "tight":
        now = refused.now
        return _Ways(
            levers=tuple(
                levers(refused.config, refused.facts, refused.machine, refused.counts, now)
            )
        )
    if verdict != "will_not_fit":
        return _Ways()
    found = []
    gentle = gentle_combination(refused)
    if gentle is not None:
        found.append(gentle)
    if gentle is None or not gentle.can_start:
        firm = firm_combination(refused)
        if firm is not None and (gentle is None or firm.can_start):
            found.append(firm)
    return _Ways(
        levers=tuple(single_ways(refused)),
        proposals=tuple(found),
        hardware=fitting_hardware(refused) if gentle is None else None,
    )


def bytes_of_a_checkpoint(config: Config, facts: ModelFacts) -> int:
    """Estimate the bytes of one checkpoint on disk."""
    return checkpoint_bytes(
        facts,
        weight_bytes=weight_bytes_of(config),
        optimizer=config.optimizer.name,
        exact=keeps_low_bits(config),
    )


def checkpoints_at_once(config: Config) -> int:
    """Count those that lie there at once: what pruning spares, and the one being written."""
    if config.checkpoints.save_strategy == "no":
        return 0
    return config.checkpoints.keep + 2


def _is_same_form(measured: MeasuredRun, found: Fit) -> bool:
    """Say whether a run was made as a config would run here.

    What a plan takes shows what it chose: one for another card, or a host of another size, differs.
    """
    has_same_device = (measured.gpu_reserved_bytes is not None) == found.is_gpu
    has_same_parts = measured.microbatches in (None, found.form.microbatches)
    if measured.predicted_bytes is None or not found.is_gpu:
        return has_same_device and has_same_parts
    outside = outside_bytes(found.worst.host.pinned)
    planned = measured.predicted_bytes * (1 + MARGIN) + outside
    is_same_plan = abs(planned / found.worst.total - 1) <= _SAME_PLAN
    return has_same_device and has_same_parts and is_same_plan
