"""What one config takes of one machine: every choice its engine would make, bytes, seconds.

Turns keys of a config into a form and hands it to the arithmetic of ``memory_parts``,
``pipeline_parts`` and ``time_plan``. Knows no torch and asks no machine: all it has are arguments.

Invariant: the parts of a rank add up to its total.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.checks import check_model, not_in_this_version
from workbench.config.memory_parts import (
    GIB,
    Choice,
    DeviceBytes,
    HostBytes,
    Recompute,
    StepForm,
    choose_microbatches,
    host_bytes,
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


def is_row_certain(config: Config) -> bool:
    """Say whether every row is as long as ``data.max_length``, whatever the data holds."""
    return config.data.pad_to == "context" or config.data.packing != "none"


def trains_on_gpu(config: Config, machine: Machine) -> bool:
    """Say whether a GPU trains: as the config says, else as the machine or a budget suggests."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    states_budget = machine.budget_gib is not None or config.memory.budget_gib is not None
    return machine.gpu_name is not None or states_budget


def weight_bytes_of(config: Config) -> int:
    """Give the bytes of one element of weights and activations."""
    return 2 if config.model.dtype == "bfloat16" else 4


def keeps_low_bits(config: Config) -> bool:
    """Say whether the low halves of exact fp32 weights are kept beside bfloat16 ones."""
    return config.optimizer.rounding == "exact" and config.model.dtype == "bfloat16"


def rates_for(machine: Machine, *, is_gpu: bool) -> Rates:
    """Find how fast a machine is taken to be."""
    return rates_of(
        gpu_name=machine.gpu_name,
        tflops=machine.tflops,
        link_gbps=machine.link_gbps,
        is_gpu=is_gpu,
    )


def fit(config: Config, facts: ModelFacts, machine: Machine, counts: Counts | None = None) -> Fit:
    """Work out bytes and seconds of one config; levers and runs are left to ``estimate``."""
    is_gpu = trains_on_gpu(config, machine)
    budget, source = _budget(config, machine, is_gpu=is_gpu)
    row_length = config.data.max_length
    if counts is not None and config.data.pad_to == "longest":
        row_length = min(row_length, counts.longest_row)
    rates = rates_for(machine, is_gpu=is_gpu)
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
            *obstacles(config, facts),
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


def obstacles(config: Config, facts: ModelFacts) -> Iterator[str]:
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
        weight_bytes=weight_bytes_of(config),
        recompute=_recompute(config),
        optimizer=config.optimizer.name,
        exact=keeps_low_bits(config),
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
        weight_bytes=weight_bytes_of(config),
        sum_bytes=sum_bytes_of(sums, weight_bytes_of(config), microbatches),
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
