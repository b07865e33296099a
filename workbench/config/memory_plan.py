"""Will it fit: a config, a model and a machine → bytes, verdict, time, levers, a config that fits.

Turns keys of a config into a form and hands it to the arithmetic of ``memory_parts``,
``pipeline_parts`` and ``time_plan``. Levers are configs that were estimated too, so no number is
guessed. Knows no torch and asks no machine: what it has is an argument.

Invariant: a proposed config has been estimated and fits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from workbench.config.checks import check_model, not_in_this_version
from workbench.config.memory_parts import (
    CONTEXT_BYTES,
    GIB,
    MIB,
    Choice,
    DeviceBytes,
    HostBytes,
    Recompute,
    StepForm,
    checkpoint_bytes,
    choose_microbatches,
    host_bytes,
    microbatch_counts,
    needed_bytes,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.pipeline_parts import PipelineForm, RankBytes, place_sums, worst_rank
from workbench.config.schedule_facts import ASSUMED, efficiency, stages_per_rank
from workbench.config.schema.config import Config
from workbench.config.time_plan import Rates, rates_of, stage_seconds, step_seconds

Verdict = Literal["fits", "tight", "will_not_fit", "unknown"]

VERDICT_WORDS: dict[Verdict, str] = {
    "fits": "FITS",
    "tight": "TIGHT",
    "will_not_fit": "WON'T FIT",
    "unknown": "UNKNOWN",
}

COMFORTABLE = 0.10
"""Share of the budget that must be left over for a fit that is not tight."""

_SHORTEST_ROW = 256


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a config is held against; None stands for what is not known.

    Attributes:
        gpu_name: of the GPU that is here.
        gpu_free_bytes: what is free on it.
        host_bytes: of host memory that can be had.
        budget_gib: stated beside the config; comes before ``memory.budget_gib``.
        tflops: achieved, stated.
        link_gbps: of one direction, stated.
    """

    gpu_name: str | None = None
    gpu_free_bytes: int | None = None
    host_bytes: int | None = None
    budget_gib: float | None = None
    tflops: float | None = None
    link_gbps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What prepared data comes to.

    Attributes:
        longest_row: tokens of the longest training row.
        steps_per_epoch: of the config's batch.
        mean_document: tokens of a document on average; None where not known.
    """

    longest_row: int
    steps_per_epoch: int
    mean_document: float | None = None


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


@dataclass(frozen=True)
class Part:
    """A part of the bytes, in words for people."""

    label: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class RankFit:
    """What one rank takes; of a layer-major run there is one.

    Attributes:
        rank: from 0.
        blocks: of the model that are here.
        alive: passes of a pipeline alive at once; None in the layer-major engine.
        parts: of the device, which add up to ``total``.
        total: bytes that a budget must hold.
        peak_phase: when that is.
        host: host memory, by part.
    """

    rank: int
    blocks: int
    alive: int | None
    parts: tuple[Part, ...]
    total: int
    peak_phase: str
    host: HostBytes


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A change that takes bytes off.

    Attributes:
        words: what it does.
        overrides: the keys it sets.
        saved_bytes: off the worst rank's total.
        time_ratio: seconds per token against now.
        changes_training: other losses come out.
        can_start: this version's engine runs it.
        verdict: of the config with it.
    """

    words: str
    overrides: Mapping[str, object]
    saved_bytes: int
    time_ratio: float
    changes_training: bool
    can_start: bool
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A config that fits, as overrides of the one that was asked about."""

    overrides: Mapping[str, object]
    total: int
    verdict: Verdict
    time_ratio: float
    changes_training: bool
    can_start: bool


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Bytes and time of one config.

    Attributes:
        form: every choice made.
        ranks: what each takes.
        is_gpu: a GPU trains.
        is_measured_form: the engine's measured form, not formula only.
        budget_bytes: what a rank may take: of the GPU, or of host memory where the CPU trains.
        budget_source: who says so.
        host_needed: bytes of host memory of all ranks together.
        seconds: of a step.
        step_tokens: tokens of a step.
        notes: what was assumed, and what had to move.
        host_decides: host memory that is lacking makes it not fit.
        host_available: bytes of host memory that can be had.
    """

    form: StepForm | PipelineForm
    ranks: tuple[RankFit, ...]
    is_gpu: bool
    is_measured_form: bool
    budget_bytes: int | None
    budget_source: str
    host_needed: int
    seconds: float
    step_tokens: int
    notes: tuple[str, ...]
    host_decides: bool
    host_available: int | None

    @property
    def worst(self) -> RankFit:
        """Give the rank that takes most: it decides."""
        return max(self.ranks, key=lambda each: each.total)

    @property
    def verdict(self) -> Verdict:
        """Say whether it fits."""
        return self.verdict_of(self.worst.total)

    def verdict_of(self, total: int) -> Verdict:
        """Say whether so many bytes on the worst rank would fit."""
        lacks_host = self.host_available is not None and self.host_needed > self.host_available
        if self.host_decides and lacks_host:
            return "will_not_fit"
        if self.budget_bytes is None:
            return "unknown"
        if total > self.budget_bytes:
            return "will_not_fit"
        comfortable = self.budget_bytes - total >= COMFORTABLE * self.budget_bytes
        return "fits" if comfortable else "tight"


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
        checkpoint_bytes: of one checkpoint.
        num_checkpoints: that lie there at once: those kept, the best, and the one being written.
        rates: what the seconds rest on.
        row_is_certain: no row can be shorter than was assumed.
        levers: ordered by cost; empty where it fits.
        proposals: configs that fit: without changing training, and one that this version can
            start; empty where it fits or none was found.
    """

    fit: Fit
    total: int
    verdict: Verdict
    measured: MeasuredRun | None
    seconds_per_step: float
    steps_per_epoch: int | None
    checkpoint_bytes: int
    num_checkpoints: int
    rates: Rates
    row_is_certain: bool
    levers: tuple[Lever, ...]
    proposals: tuple[Proposal, ...]

    @property
    def margin_bytes(self) -> int | None:
        """Give what the budget has left, below 0 where it is exceeded."""
        return None if self.fit.budget_bytes is None else self.fit.budget_bytes - self.total


def total_words(found: Estimate) -> str:
    """Say the total, the budget, the verdict, and what is left or lacking."""
    budget, margin = found.fit.budget_bytes, found.margin_bytes
    words, total = VERDICT_WORDS[found.verdict], f"{found.total / GIB:,.2f}"
    if budget is None or margin is None:
        return f"{total} GiB  {words}  no budget is known"
    left = f"margin {margin / GIB:,.2f} ({margin / budget:.0%})"
    if margin < 0:
        left = f"over by {-margin / GIB:,.2f} GiB"
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
        return "formula, within 5 % of peaks measured on an H200"
    return "formula only: no engine of this version was measured so"


def lever_words(lever: Lever) -> str:
    """Say what a lever does, saves and costs, and how it is pulled."""
    keys = " ".join(f"{key}={value}" for key, value in lever.overrides.items())
    saved = lever.saved_bytes
    amount = f"{saved / GIB:,.2f} GiB" if saved >= 0.1 * GIB else f"{saved / MIB:,.1f} MiB"
    return f"{lever.words} ({keys}) takes {amount} off"


def estimate(
    config: Config,
    facts: ModelFacts,
    *,
    machine: Machine | None = None,
    counts: Counts | None = None,
    measured: MeasuredRun | None = None,
) -> Estimate:
    """Estimate what a config takes, and find what makes it fit.

    Args:
        config: resolved; its model need not be named, ``facts`` are it.
        facts: of the model.
        machine: what it is held against.
        counts: of its prepared data.
        measured: a run of the same settings; left out where it was on another kind of device, or
            where another budget cuts the step otherwise.
    """
    machine = machine or Machine()
    found = fit(config, facts, machine, counts)
    if measured is not None and not _is_same_form(measured, found):
        measured = None
    total = found.worst.total
    if measured is not None:
        if measured.gpu_reserved_bytes is not None:
            total = measured.gpu_reserved_bytes + CONTEXT_BYTES
        elif measured.host_peak_bytes is not None:
            total = measured.host_peak_bytes
    verdict = found.verdict_of(total)
    seconds = found.seconds
    if measured is not None and measured.tokens_per_second:
        seconds = found.step_tokens / measured.tokens_per_second
    needs_help = verdict in ("tight", "will_not_fit")
    return Estimate(
        fit=found,
        total=total,
        verdict=verdict,
        measured=measured,
        seconds_per_step=seconds,
        steps_per_epoch=counts.steps_per_epoch if counts else None,
        checkpoint_bytes=checkpoint_bytes(
            facts,
            weight_bytes=_weight_bytes(config),
            optimizer=config.optimizer.name,
            exact=config.optimizer.rounding == "exact",
        ),
        num_checkpoints=0
        if config.checkpoints.save_strategy == "no"
        else config.checkpoints.keep + 2,
        rates=_rates(config, machine, is_gpu=found.is_gpu),
        row_is_certain=counts is not None or is_row_certain(config),
        levers=tuple(_levers(config, facts, machine, counts, found)) if needs_help else (),
        proposals=tuple(_proposals(config, facts, machine, counts, found))
        if verdict == "will_not_fit"
        else (),
    )


def _is_same_form(measured: MeasuredRun, found: Fit) -> bool:
    """Say whether a run was made as a config would run here."""
    has_same_device = (measured.gpu_reserved_bytes is not None) == found.is_gpu
    return has_same_device and measured.microbatches in (None, found.form.microbatches)


def is_row_certain(config: Config) -> bool:
    """Say whether every row is as long as ``data.max_length``, whatever the data holds."""
    return config.data.pad_to == "context" or config.data.packing != "none"


def trains_on_gpu(config: Config, machine: Machine) -> bool:
    """Say whether a GPU trains: as the config says, else as the machine or a budget suggests."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    states_budget = machine.budget_gib is not None or config.memory.budget_gib is not None
    return machine.gpu_name is not None or states_budget


def _weight_bytes(config: Config) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _rates(config: Config, machine: Machine, *, is_gpu: bool) -> Rates:
    return rates_of(
        gpu_name=machine.gpu_name,
        tflops=machine.tflops,
        link_gbps=machine.link_gbps,
        is_gpu=is_gpu,
    )


# ---- one config ----------------------------------------------------------------------------------


def fit(config: Config, facts: ModelFacts, machine: Machine, counts: Counts | None = None) -> Fit:
    """Work out bytes and seconds of one config; levers and runs are left to ``estimate``."""
    is_gpu = trains_on_gpu(config, machine)
    budget, source = _budget(config, machine, is_gpu=is_gpu)
    row_length = config.data.max_length
    if counts is not None and config.data.pad_to == "longest":
        row_length = min(row_length, counts.longest_row)
    rates = _rates(config, machine, is_gpu=is_gpu)
    seen = float(row_length)
    if counts is not None and counts.mean_document is not None:
        seen = min(seen, counts.mean_document)
    how = _fit_pipeline if config.training.engine == "pipeline" else _fit_layer_major
    form, ranks, seconds, notes = how(config, facts, row_length, budget, is_gpu, rates, seen)
    needed = sum(rank.host.total for rank in ranks)
    if counts is None and not is_row_certain(config):
        notes = (*notes, f"rows taken to be data.max_length = {row_length:,} tokens long")
    return Fit(
        form=form,
        ranks=ranks,
        is_gpu=is_gpu,
        is_measured_form=isinstance(form, StepForm) and form.is_measured,
        budget_bytes=budget,
        budget_source=source,
        host_needed=needed,
        seconds=seconds,
        step_tokens=form.step_tokens,
        notes=(
            *notes,
            *_machine_notes(config, machine, needed, is_gpu=is_gpu),
            *_obstacles(config, facts),
        ),
        host_decides=not is_gpu or machine.gpu_name is not None,
        host_available=machine.host_bytes,
    )


def _machine_notes(
    config: Config, machine: Machine, host_needed: int, *, is_gpu: bool
) -> Iterator[str]:
    """Say what was taken for granted of the machine."""
    if is_gpu:
        available = machine.host_bytes
        if machine.gpu_name is None and available is not None and host_needed > available:
            yield "this host has less memory than that; it has no GPU and is not judged"
    elif machine.budget_gib is not None:
        yield "training.device is cpu, so that the budget of a GPU does not count"
    elif config.training.device == "auto":
        yield "no GPU here and no budget: the CPU is taken to train; --gpu-gib asks about a GPU"


def _obstacles(config: Config, facts: ModelFacts) -> Iterator[str]:
    """Say what keeps a config from being started with this model, apart from its bytes."""
    for problem in check_model(config, facts):
        yield f"{problem.key}: {problem.what}; {problem.remedy}"
    for problem in not_in_this_version(config):
        yield f"{problem.key}: {problem.what} yet"
    if not facts.is_trainable:
        yield f"this version cannot train {facts.family}{' with biases' * bool(facts.biased)} yet"


def _budget(config: Config, machine: Machine, *, is_gpu: bool) -> tuple[int | None, str]:
    if not is_gpu:
        return machine.host_bytes, "host memory"
    if machine.budget_gib is not None:
        return max(1, int(machine.budget_gib * GIB)), "--gpu-gib"
    if config.memory.budget_gib is not None:
        return max(1, int(config.memory.budget_gib * GIB)), "memory.budget_gib"
    return machine.gpu_free_bytes, "free on the GPU"


def _recompute(config: Config) -> Recompute:
    wanted = config.memory.recompute
    return "full" if wanted == "auto" else wanted


def _fit_layer_major(
    config: Config,
    facts: ModelFacts,
    row_length: int,
    budget: int | None,
    is_gpu: bool,
    rates: Rates,
    seen: float,
) -> tuple[StepForm, tuple[RankFit, ...], float, tuple[str, ...]]:
    form = StepForm(
        rows=config.batch.train,
        row_length=row_length,
        microbatches=1,
        weight_bytes=_weight_bytes(config),
        recompute=_recompute(config),
        optimizer=config.optimizer.name,
        exact=config.optimizer.rounding == "exact" and config.model.dtype == "bfloat16",
        is_gpu=is_gpu,
    )
    choice = _choose(config, facts, form, budget)
    form, device = choice.form, choice.device
    host = host_bytes(facts, form)
    blocks = form.resident_blocks(facts.num_layers)
    labels = _Labels(
        weights=f"weights, {blocks}/{facts.num_layers} blocks resident",
        inputs="block inputs → pinned RAM" if form.pinned_inputs else "block inputs",
        sums="gradient sums: one block, the head",
        state=_state_words(form.optimizer),
    )
    ranks = (_rank_fit(0, facts.num_layers, None, device, host, labels, is_gpu=is_gpu),)
    notes = []
    if config.batch.microbatches == "auto" and config.batch.train > 1:
        parts = "microbatch" if form.microbatches == 1 else "microbatches"
        notes.append(f"batch.microbatches: auto gives {form.microbatches} {parts}")
    if not form.is_measured and config.memory.resident_fraction == "auto":
        notes.append(f"memory.resident_fraction: auto gives {blocks} of {facts.num_layers} blocks")
    if not form.is_measured and config.memory.block_inputs == "auto":
        place = "pinned RAM" if form.pinned_inputs else "the GPU"
        notes.append(f"memory.block_inputs: auto gives {place}")
    return form, ranks, step_seconds(facts, form, rates, seen), tuple(notes)


def _choose(config: Config, facts: ModelFacts, form: StepForm, budget: int | None) -> Choice:
    """Choose what the config leaves open.

    The engine of this version keeps everything on the GPU. A config that asks for another form
    means one that plans: it keeps as many blocks resident as fit, and moves block inputs to pinned
    memory before it streams a block, for they cost less.
    """
    memory = config.memory
    residents = [memory.resident_fraction] if memory.resident_fraction != "auto" else [1.0]
    pinned = [memory.block_inputs == "pinned"]
    choices = []
    is_another = residents[0] != 1.0 or pinned[0] or not form.is_measured
    if is_another and form.is_gpu and budget is not None:
        if memory.resident_fraction == "auto":
            num_layers = facts.num_layers
            residents = [blocks / num_layers for blocks in range(num_layers, -1, -1)]
        if memory.block_inputs == "auto":
            pinned = [False, True]
    for resident in residents:
        for pinned_inputs in pinned:
            choices.append(
                choose_microbatches(
                    facts,
                    replace(form, resident_fraction=resident, pinned_inputs=pinned_inputs),
                    microbatches=config.batch.microbatches,
                    sum_dtype=memory.sum_dtype,
                    budget_bytes=budget if form.is_gpu else None,
                )
            )
            if choices[-1].fits:
                return choices[-1]
    return choices[-1]


def _fit_pipeline(
    config: Config,
    facts: ModelFacts,
    row_length: int,
    budget: int | None,
    is_gpu: bool,
    rates: Rates,
    seen: float,
) -> tuple[PipelineForm, tuple[RankFit, ...], float, tuple[str, ...]]:
    pipeline = config.pipeline
    rows = -(-config.batch.train // pipeline.replicas)
    stated = config.batch.microbatches
    microbatches = rows if stated == "auto" else min(stated, rows)
    wanted_sums = config.memory.sum_dtype
    # Whole-stage sums are rounded stochastically beyond eight microbatches, so auto keeps 16 bits.
    sums = "bfloat16" if wanted_sums == "auto" else wanted_sums
    form = PipelineForm(
        ranks=pipeline.ranks,
        stages=stages_per_rank(pipeline.schedule, pipeline.stages_per_rank),
        schedule=pipeline.schedule,
        rows=rows,
        row_length=row_length,
        microbatches=microbatches,
        weight_bytes=_weight_bytes(config),
        sum_bytes=sum_bytes_of(sums, _weight_bytes(config), microbatches),
        recompute=_recompute(config),
        pinned_inputs=config.memory.block_inputs == "pinned",
        is_gpu=is_gpu,
    )
    form, ranks = place_sums(facts, form, budget)
    fits = tuple(_pipeline_rank(each, form, is_gpu=is_gpu) for each in ranks)
    recompute = form.recompute == "full"
    busy = max(
        stage_seconds(facts, each.share, form.step_tokens, rates, seen, recompute) for each in ranks
    )
    used = efficiency(
        form.schedule,
        ranks=form.ranks,
        stages=form.stages,
        microbatches=form.microbatches,
        recompute=recompute,
    )
    notes = [f"{1 - used:.0%} of the time is bubble, on links that cost nothing"]
    if form.schedule == "auto":
        notes.append(f"pipeline.schedule: auto taken as {ASSUMED}, as no link was measured")
    if form.pinned_sums:
        worst = worst_rank(ranks)
        weights, moved = worst.device.weights, worst.host.gradient_sums
        notes.append(
            f"{weights / GIB:.1f} GiB of weights and {moved / GIB:.1f} GiB of gradient sums per "
            f"rank do not fit together: the sums must go to pinned RAM"
        )
    return form, fits, busy / used, tuple(notes)


@dataclass(frozen=True)
class _Labels:
    weights: str
    inputs: str
    sums: str
    state: str


def _state_words(optimizer: str) -> str:
    return (
        "factored optimizer state" if optimizer == "adafactor" else f"optimizer state: {optimizer}"
    )


def _pipeline_rank(rank: RankBytes, form: PipelineForm, *, is_gpu: bool) -> RankFit:
    outside = [
        word for word, here in (("embedding", rank.has_embedding), ("head", rank.has_head)) if here
    ]
    labels = _Labels(
        weights=", ".join([f"weights: {rank.blocks} blocks", *outside]),
        inputs="block inputs → pinned RAM"
        if form.pinned_inputs
        else f"activations of {rank.alive} passes",
        sums="gradient sums → pinned RAM" if form.pinned_sums else "gradient sums of all stages",
        state=_state_words("adafactor"),
    )
    return _rank_fit(
        rank.rank, rank.blocks, rank.alive, rank.device, rank.host, labels, is_gpu=is_gpu
    )


def _rank_fit(
    rank: int,
    blocks: int,
    alive: int | None,
    device: DeviceBytes,
    host: HostBytes,
    labels: _Labels,
    *,
    is_gpu: bool,
) -> RankFit:
    phase = device.peak_phase
    total = needed_bytes(device) if is_gpu else host.total
    parts = [
        Part(labels.weights, device.weights),
        Part("slots that blocks pass through", device.slots),
        Part(labels.inputs, device.block_inputs if phase.with_inputs else 0),
        Part("buffers to and from elsewhere", device.staging),
        Part("hidden states of the step", device.hidden_states),
        Part(labels.sums, device.gradient_sums),
        Part(labels.state, device.optimizer_state),
        Part(f"workspace: {phase.name}", phase.workspace),
        Part("libraries, unused by the allocator", device.libraries + device.unused),
    ]
    keep = (0, 2, 4, 5, 6, 7)
    parts = [part for index, part in enumerate(parts) if index in keep or part.num_bytes]
    rest = total - sum(part.num_bytes for part in parts)
    parts.append(Part("CUDA context, 2 % margin" if is_gpu else "Python, torch, loader", rest))
    return RankFit(
        rank=rank,
        blocks=blocks,
        alive=alive,
        parts=tuple(parts),
        total=total,
        peak_phase=phase.name,
        host=host,
    )


# ---- levers and proposals ------------------------------------------------------------------------


def with_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """Give a config with keys of its sections replaced."""
    for key, value in overrides.items():
        section, name = key.split(".")
        changed = msgspec.structs.replace(getattr(config, section), **{name: value})
        config = msgspec.structs.replace(config, **{section: changed})
    return config


def _can_start(config: Config, facts: ModelFacts) -> bool:
    """Say whether this version trains a model so; keys left open do not matter."""
    return next(_obstacles(config, facts), None) is None


_CHANGE_TRAINING = (
    "data.max_length",
    "batch.train",
    "memory.sum_dtype",
    "model.dtype",
    "optimizer.name",
    "optimizer.rounding",
)


def _levers(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
) -> list[Lever]:
    """Try every lever by itself, cheapest first."""
    levers = []
    # As many microbatches as now, so that a lever's bytes are its own and not the planner's answer.
    as_now = with_overrides(config, {"batch.microbatches": now.form.microbatches})
    for words, overrides in _single_levers(config, facts, now):
        base = config if "batch.train" in overrides else as_now
        found = fit(with_overrides(base, overrides), facts, machine, counts)
        changed = with_overrides(config, overrides)
        saved = now.worst.total - found.worst.total
        if saved <= 0:
            continue
        levers.append(
            Lever(
                words=words + _planned_beside(found, now, overrides, facts),
                overrides=overrides,
                saved_bytes=saved,
                time_ratio=_time_ratio(found, now),
                changes_training=any(key in _CHANGE_TRAINING for key in overrides),
                can_start=_can_start(changed, facts),
                verdict=found.verdict,
            )
        )
    return sorted(levers, key=lambda lever: (lever.changes_training, round(lever.time_ratio, 2)))


def _planned_beside(
    found: Fit, now: Fit, overrides: Mapping[str, object], facts: ModelFacts
) -> str:
    """Say what the planner moved of its own accord, as its bytes are counted too."""
    if not isinstance(found.form, StepForm) or not isinstance(now.form, StepForm):
        return ""
    words = ""
    streamed = facts.num_layers - found.form.resident_blocks(facts.num_layers)
    streams_more = found.form.resident_fraction < now.form.resident_fraction
    if streams_more and "memory.resident_fraction" not in overrides:
        words += f", {streamed} of {facts.num_layers} blocks streamed"
    pins_more = found.form.pinned_inputs and not now.form.pinned_inputs
    if pins_more and "memory.block_inputs" not in overrides:
        words += ", inputs pinned"
    return words


def _time_ratio(found: Fit, now: Fit) -> float:
    return (found.seconds / found.step_tokens) / (now.seconds / now.step_tokens)


def _single_levers(
    config: Config, facts: ModelFacts, now: Fit
) -> Iterator[tuple[str, dict[str, object]]]:
    """Give what can be tried, in words and as overrides."""
    memory, form = config.memory, now.form
    is_layer_major = isinstance(form, StepForm)
    if memory.block_inputs != "pinned" and now.is_gpu:
        yield "keep block inputs in pinned RAM", {"memory.block_inputs": "pinned"}
    if isinstance(form, StepForm) and now.is_gpu:
        resident = form.resident_blocks(facts.num_layers)
        for share in (0.75, 0.5, 0.25, 0.0):
            blocks = round(share * facts.num_layers)
            if blocks < resident:
                words = f"stream {facts.num_layers - blocks} of {facts.num_layers} blocks"
                yield words, {"memory.resident_fraction": share}
    rows = config.batch.train
    more = [count for count in microbatch_counts(rows) if count > form.microbatches]
    if more and is_layer_major:
        for count in dict.fromkeys((more[0], more[-1])):
            yield f"{count} microbatches of {rows // count}", {"batch.microbatches": count}
    if memory.recompute in ("none", "selective"):
        yield "recompute blocks in backward", {"memory.recompute": "auto"}
    if config.optimizer.rounding == "exact":
        yield "round weights stochastically", {"optimizer.rounding": "stochastic"}
    if config.optimizer.name != "adafactor":
        yield "keep factored statistics alone", {"optimizer.name": "adafactor"}
    if config.model.dtype == "float32":
        yield "weights of 16 bits", {"model.dtype": "bfloat16"}
    if form.sum_bytes == 4 and form.weight_bytes == 2:
        yield "gradient sums of 16 bits", {"memory.sum_dtype": "bfloat16"}
    length = config.data.max_length
    if length // 2 >= _SHORTEST_ROW:
        words = f"rows of {length // 2:,} tokens in place of {length:,}"
        yield words, {"data.max_length": length // 2}
    if rows >= 2 and is_layer_major:
        halved: dict[str, object] = {"batch.train": rows // 2}
        stated = config.batch.microbatches
        if stated != "auto" and stated > rows // 2:
            halved["batch.microbatches"] = rows // 2
        yield f"{rows // 2} rows per step in place of {rows}", halved


def _proposals(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
) -> Iterator[Proposal]:
    """Find what fits: without changing training, and, where that cannot start yet, what can.

    Where neither is found, anything.
    """
    gentle = _first_that_fits(
        config, facts, machine, counts, now, _gentle_candidates(config, facts, now)
    )
    if gentle is not None:
        yield gentle
        if gentle.can_start:
            return
    firm = _first_that_fits(config, facts, machine, counts, now, _firm_candidates(config))
    if firm is not None and firm.can_start:
        yield firm
    elif gentle is None:
        least = _least_candidates(config, now)
        last = _first_that_fits(config, facts, machine, counts, now, least)
        if last is not None:
            yield last


def _first_that_fits(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
    candidates: Iterator[dict[str, object]],
) -> Proposal | None:
    """Give the first candidate that fits; where nothing was measured, with room to spare if any."""
    tight: Proposal | None = None
    for overrides in candidates:
        changed = with_overrides(config, overrides)
        found = fit(changed, facts, machine, counts)
        if found.verdict not in ("fits", "tight"):
            continue
        proposal = Proposal(
            overrides=overrides,
            total=found.worst.total,
            verdict=found.verdict,
            time_ratio=_time_ratio(found, now),
            changes_training=any(key in _CHANGE_TRAINING for key in overrides),
            can_start=_can_start(changed, facts),
        )
        if found.verdict == "fits" or proposal.can_start:
            return proposal
        tight = tight or proposal
    return tight


def _gentle_candidates(config: Config, facts: ModelFacts, now: Fit) -> Iterator[dict[str, object]]:
    """Give combinations that change no loss, cheapest first."""
    base: dict[str, object] = {}
    if config.memory.recompute in ("none", "selective"):
        base["memory.recompute"] = "auto"
        yield dict(base)
    if isinstance(now.form, StepForm):
        more = [
            count
            for count in microbatch_counts(config.batch.train)
            if count > now.form.microbatches
        ]
        for count in more:
            yield base | {"batch.microbatches": count}
        finest: Sequence[dict[str, object]] = [{"batch.microbatches": count} for count in more[-1:]]
        if not now.is_gpu:
            return
        pinned = base | {"memory.block_inputs": "pinned"}
        yield dict(pinned)
        # Eighths of the blocks: a finer choice would promise more than a formula can say.
        for eighths in range(7, -1, -1):
            yield pinned | {"memory.resident_fraction": eighths / 8}
        for cut in finest:
            yield pinned | cut | {"memory.resident_fraction": 0.0}
    elif config.memory.block_inputs != "pinned":
        yield base | {"memory.block_inputs": "pinned"}


def _firm_candidates(config: Config) -> Iterator[dict[str, object]]:
    """Give combinations that this version can start, though they change training."""
    base: dict[str, object] = {}
    if config.memory.recompute not in ("auto", "full"):
        base["memory.recompute"] = "auto"
    if config.memory.block_inputs == "pinned":
        base["memory.block_inputs"] = "auto"
    if config.memory.resident_fraction not in ("auto", 1.0):
        base["memory.resident_fraction"] = "auto"
    if config.optimizer.rounding == "exact":
        base["optimizer.rounding"] = "stochastic"
    if config.optimizer.name != "adafactor":
        base["optimizer.name"] = "adafactor"
    if base:
        yield dict(base)
    if config.model.dtype == "float32":
        base["model.dtype"] = "bfloat16"
        yield dict(base)
    rows, length = config.batch.train, config.data.max_length
    yield base | {"batch.microbatches": rows}
    yield base | {"batch.microbatches": rows, "memory.sum_dtype": "bfloat16"}
    while length // 2 >= _SHORTEST_ROW:
        length //= 2
        yield base | {"batch.microbatches": rows, "data.max_length": length}
    while rows > 1:
        rows //= 2
        yield base | {
            "batch.train": rows,
            "batch.microbatches": rows,
            "data.max_length": length,
        }


def _least_candidates(config: Config, now: Fit) -> Iterator[dict[str, object]]:
    """Give combinations for what only fits with everything moved away and less trained at once."""
    base: dict[str, object] = {"memory.sum_dtype": "bfloat16"}
    if config.memory.recompute not in ("auto", "full"):
        base["memory.recompute"] = "auto"
    if now.is_gpu:
        base["memory.block_inputs"] = "pinned"
    if isinstance(now.form, StepForm):
        base["batch.microbatches"] = config.batch.train
        if now.is_gpu:
            base["memory.resident_fraction"] = 0.0
    if config.optimizer.name != "adafactor":
        base["optimizer.name"] = "adafactor"
    if config.optimizer.rounding == "exact":
        base["optimizer.rounding"] = "stochastic"
    if config.model.dtype == "float32":
        base["model.dtype"] = "bfloat16"
    yield dict(base)
    length = config.data.max_length
    while length // 2 >= _SHORTEST_ROW:
        length //= 2
        yield base | {"data.max_length": length}
