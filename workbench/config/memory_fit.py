"""What one config takes of one machine: every choice its engine would make, bytes, seconds.

Turns keys of a config into wishes and lets ``plan_search`` choose, as the worker does; a pipeline's
form goes to ``pipeline_parts``. Knows no torch and asks no machine: all it has are arguments.

Invariant: the parts of a rank add up to its total.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.config.checks import check_model, not_in_this_version
from workbench.config.memory_parts import (
    GIB,
    StepForm,
    documents_of,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.pipeline_parts import PipelineForm, place_sums, worst_rank
from workbench.config.plan_search import (
    Wishes,
    choose_plan_form,
    most_of_host,
    smallest_form,
)
from workbench.config.rank_fit import RankFit, layer_major_rank, pipeline_rank, recompute_words
from workbench.config.rates import MeasuredRates, Rates, card_of, rates_of
from workbench.config.schedule_facts import ASSUMED, efficiency, stages_per_rank
from workbench.config.schema.config import Config
from workbench.config.time_plan import StepSeconds, stage_seconds, step_seconds

Verdict = Literal["fits", "tight", "will_not_fit", "unknown"]

VERDICT_WORDS: dict[Verdict, str] = {
    "fits": "FITS",
    "tight": "TIGHT",
    "will_not_fit": "WON'T FIT",
    "unknown": "UNKNOWN",
}

COMFORTABLE = 0.10
"""Share of the budget that must be left over for a fit that is not tight."""

# Where nothing is known of the host: this much, or so many times what the smallest plan takes.
_ASSUMED_HOST_BYTES, _ASSUMED_HOST = 64 * GIB, 1.5

# Tokens of a document of a conversation or two, for what rows of many documents would take.
_SHORT_DOCUMENT = 512

SHARE_FREE = 0.95
"""Of a card that is asked about; the shipped configs' budgets, as 22.8 of 24 GiB, leave as much."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a config is held against; None stands for what is not known.

    Attributes:
        gpu_name: of the GPU that is here.
        gpu_free_bytes: what is free on it.
        host_bytes: of host memory that can be had.
        budget_gib: stated beside the config; comes before ``memory.budget_gib``.
        host_gib: of host memory, stated for the machine that is meant.
        meant_gpu: name of the card that is asked about, in place of the one that is here.
        tflops: of products, stated.
        link_gbps: of one direction, stated.
        rates: measured on the GPU that is here.
        cpu_rates: that the CPU reached in a run of a model as wide.
    """

    gpu_name: str | None = None
    gpu_free_bytes: int | None = None
    host_bytes: int | None = None
    budget_gib: float | None = None
    host_gib: float | None = None
    meant_gpu: str | None = None
    tflops: float | None = None
    link_gbps: float | None = None
    rates: MeasuredRates | None = None
    cpu_rates: MeasuredRates | None = None

    @property
    def is_meant(self) -> bool:
        """Say whether this machine trains, so that its host memory decides too."""
        return self.gpu_name is not None or self.host_gib is not None

    @property
    def host_limit(self) -> int | None:
        """Give the bytes of host memory that can be had, as stated or as found."""
        return self.host_bytes if self.host_gib is None else int(self.host_gib * GIB)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What prepared data comes to.

    Attributes:
        longest_row: tokens of the longest row, of training or validation.
        steps_per_epoch: of the config's batch.
        seen_tokens: of the document that a token stands in, on average over tokens; None where not
            known.
        most_documents: of the row that holds most; None where not known.
        validation_rows: that an evaluation passes over; None where not known.
    """

    longest_row: int
    steps_per_epoch: int
    seen_tokens: float | None = None
    most_documents: int | None = None
    validation_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Bytes and time of one config.

    Attributes:
        form: every choice made.
        ranks: what each takes.
        is_gpu: a GPU trains.
        is_measured_form: an engine runs this form and its peaks were measured; not formula only.
        budget_bytes: what a rank may take: of the GPU, or of host memory where the CPU trains.
        budget_source: who says so.
        host_needed: bytes of host memory of all ranks together.
        seconds: of a step.
        step_parts: those of a layer-major step, by part.
        least: the smallest budget that a GPU can train this with, whatever it costs; None where
            nothing is chosen by bytes.
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
    step_parts: StepSeconds | None
    least: int | None
    step_tokens: int
    notes: tuple[str, ...]
    host_decides: bool
    host_available: int | None

    @property
    def worst(self) -> RankFit:
        """Give the rank that takes most: it decides."""
        return max(self.ranks, key=lambda each: each.total)

    @property
    def host_room(self) -> int | None:
        """Give the bytes of host memory that a run may take; None where that is not known."""
        if self.host_available is None or not self.is_gpu:
            return self.host_available
        return most_of_host(self.host_available)

    @property
    def verdict(self) -> Verdict:
        """Say whether it fits."""
        return self.verdict_of(self.worst.total)

    def verdict_of(self, total: int) -> Verdict:
        """Say whether so many bytes on the worst rank would fit."""
        lacks_host = self.host_room is not None and self.host_needed > self.host_room
        if self.host_decides and lacks_host:
            return "will_not_fit"
        if self.budget_bytes is None:
            return "unknown"
        if total > self.budget_bytes:
            return "will_not_fit"
        # A plan takes what makes it fast: it is tight where it could not do with less.
        taken = total if self.least is None else min(total, self.least)
        comfortable = self.budget_bytes - taken >= COMFORTABLE * self.budget_bytes
        return "fits" if comfortable else "tight"


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What is known of the documents in rows.

    Attributes:
        seen_tokens: of the document that a token stands in, on average over tokens.
        in_a_row: documents of the row that holds most.
        is_assumed: rows are packed and nothing is known of their documents: each is taken to hold
            one.
    """

    seen_tokens: float
    in_a_row: int
    is_assumed: bool = False

    @classmethod
    def of(cls, config: Config, counts: Counts | None, row_length: int) -> "Documents":
        """Take them from prepared data; without, a row is one document."""
        is_packed = config.data.packing != "none"
        if counts is None or counts.seen_tokens is None:
            return cls(seen_tokens=float(row_length), in_a_row=1, is_assumed=is_packed)
        seen = min(float(row_length), counts.seen_tokens)
        if not is_packed:
            return cls(seen_tokens=seen, in_a_row=1)
        if counts.most_documents is None:
            return cls(seen_tokens=seen, in_a_row=documents_of(row_length, seen))
        return cls(seen_tokens=seen, in_a_row=counts.most_documents + 1)  # padding is one more


def _one_document_note(share: float) -> str:
    return (
        f"no prepared data: each packed row is taken to hold one document; of documents of "
        f"{_SHORT_DOCUMENT} tokens a step takes {share:.0%} less"
    )


def is_row_certain(config: Config) -> bool:
    """Say whether every row is as long as ``data.max_length``, whatever the data holds."""
    return config.data.pad_to == "context" or config.data.packing != "none"


def trains_on_gpu(config: Config, machine: Machine) -> bool:
    """Say whether a GPU trains: as the config says, else as the machine or a budget suggests."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    states_budget = machine.budget_gib is not None or config.memory.budget_gib is not None
    return (machine.meant_gpu or machine.gpu_name) is not None or states_budget


def weight_bytes_of(config: Config) -> int:
    """Give the bytes of one element of weights and activations."""
    return 2 if config.model.dtype == "bfloat16" else 4


def keeps_low_bits(config: Config) -> bool:
    """Say whether the low halves of exact fp32 weights are kept beside bfloat16 ones."""
    return config.optimizer.rounding == "exact" and config.model.dtype == "bfloat16"


def rates_for(machine: Machine, *, is_gpu: bool) -> Rates:
    """Find how fast a machine is taken to be."""
    if not is_gpu:
        return rates_of(
            gpu_name=None, tflops=machine.tflops, is_gpu=False, measured=machine.cpu_rates
        )
    return rates_of(
        gpu_name=machine.meant_gpu or machine.gpu_name,
        tflops=machine.tflops,
        link_gbps=machine.link_gbps,
        measured=None if machine.meant_gpu else machine.rates,
    )


def fit(config: Config, facts: ModelFacts, machine: Machine, counts: Counts | None = None) -> Fit:
    """Work out bytes and seconds of one config; levers and runs are left to ``estimate``."""
    is_gpu = trains_on_gpu(config, machine)
    budget, source = _budget(config, machine, is_gpu=is_gpu)
    row_length = config.data.max_length
    if counts is not None and config.data.pad_to == "longest":
        row_length = min(row_length, counts.longest_row)
    rates = rates_for(machine, is_gpu=is_gpu)
    documents = Documents.of(config, counts, row_length)
    if config.training.engine == "pipeline":
        made = _fit_pipeline(config, facts, row_length, budget, is_gpu, rates, documents)
    else:
        made = _fit_layer_major(
            config, facts, machine, row_length, budget, is_gpu, rates, documents
        )
    ranks, notes = made.ranks, made.notes
    needed = sum(rank.host.total for rank in ranks)
    if counts is None and not is_row_certain(config):
        notes = (*notes, f"rows taken to be data.max_length = {row_length:,} tokens long")
    return Fit(
        form=made.form,
        ranks=ranks,
        is_gpu=is_gpu,
        is_measured_form=isinstance(made.form, StepForm),
        budget_bytes=budget,
        budget_source=source,
        host_needed=needed,
        seconds=made.seconds,
        step_parts=made.step_parts,
        least=made.least,
        step_tokens=made.form.step_tokens,
        notes=(
            *notes,
            *_machine_notes(config, machine, needed, is_gpu=is_gpu),
            *obstacles(config, facts),
        ),
        host_decides=not is_gpu or machine.is_meant,
        host_available=machine.host_limit,
    )


def _machine_notes(
    config: Config, machine: Machine, host_needed: int, *, is_gpu: bool
) -> Iterator[str]:
    """Say what was taken for granted of the machine."""
    if is_gpu:
        available = machine.host_bytes
        if not machine.is_meant and available is not None and host_needed > available:
            yield (
                f"the host with that GPU needs {host_needed / GIB:,.1f} GiB of memory; this one, "
                f"which has no GPU, has {available / GIB:,.1f} and could not train it: --host-gib "
                f"says what the other has"
            )
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
        yield f"this version cannot train {facts.family} yet"


def free_bytes(machine: Machine) -> int | None:
    """Give what is free on the GPU: of a card that is meant what is left beside a screen."""
    if meant := card_of(machine.meant_gpu):
        return int(SHARE_FREE * meant[1].memory_gib * GIB)
    return machine.gpu_free_bytes


def _budget(config: Config, machine: Machine, *, is_gpu: bool) -> tuple[int | None, str]:
    if not is_gpu:
        return machine.host_bytes, "host memory"
    if machine.budget_gib is not None:
        return max(1, int(machine.budget_gib * GIB)), "--gpu-gib"
    free, stated = free_bytes(machine), config.memory.budget_gib
    source = "free on the GPU"
    if meant := card_of(machine.meant_gpu):
        name, card = meant
        source = f"{SHARE_FREE:.0%} of the {card.memory_gib} GiB that {name} has at most"
    if stated is None:
        return free, source
    budget = max(1, int(stated * GIB))
    if free is not None and free < budget:
        # As the worker does: what a screen or another job holds cannot be had.
        return free, f"{source}, less than memory.budget_gib ({stated:g})"
    return budget, "memory.budget_gib"


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What an engine's arithmetic gives; the fields are those of ``Fit``."""

    form: StepForm | PipelineForm
    ranks: tuple[RankFit, ...]
    seconds: float
    notes: tuple[str, ...]
    step_parts: StepSeconds | None = None
    least: int | None = None


def wishes_of(config: Config) -> Wishes:
    """Say what a config leaves to the plan, and what it fixes."""
    return Wishes(
        microbatches=config.batch.microbatches,
        sum_dtype=config.memory.sum_dtype,
        resident_fraction=config.memory.resident_fraction,
        block_inputs=config.memory.block_inputs,
        recompute=config.memory.recompute,
    )


def _fit_layer_major(
    config: Config,
    facts: ModelFacts,
    machine: Machine,
    row_length: int,
    budget: int | None,
    is_gpu: bool,
    rates: Rates,
    documents: Documents,
) -> _Made:
    seen = documents.seen_tokens
    form = StepForm(
        rows=config.batch.train,
        row_length=row_length,
        microbatches=1,
        row_documents=documents.in_a_row,
        weight_bytes=weight_bytes_of(config),
        optimizer=config.optimizer.name,
        exact=keeps_low_bits(config),
        deterministic=config.training.deterministic,
        is_gpu=is_gpu,
    )
    wishes = wishes_of(config)
    host_limit = machine.host_limit if machine.is_meant else None
    notes = []
    least = None
    if is_gpu:
        smallest = smallest_form(
            facts, form, wishes, rates, seen_tokens=seen, host_limit=host_limit
        )
        least = smallest.needed
        if host_limit is None:
            host_limit = max(_ASSUMED_HOST_BYTES, int(_ASSUMED_HOST * smallest.host.total))
            notes.append(f"host memory taken to be {host_limit / GIB:,.0f} GiB; --host-gib says it")
    choice = choose_plan_form(
        facts,
        form,
        wishes,
        rates,
        seen_tokens=seen,
        budget_bytes=budget if is_gpu else None,
        host_limit=host_limit,
    )
    if not choice.host.pinned:
        notes.clear()
    if documents.is_assumed and row_length > _SHORT_DOCUMENT:
        shorter = step_seconds(facts, choice.form, rates, _SHORT_DOCUMENT)
        notes.append(_one_document_note(1 - shorter / choice.seconds.total))
    ranks = (layer_major_rank(choice, facts, is_gpu=is_gpu),)
    return _Made(
        form=choice.form,
        ranks=ranks,
        seconds=choice.seconds.total,
        notes=(*_plan_notes(config, choice.form, facts), *notes),
        step_parts=choice.seconds,
        least=least,
    )


def _plan_notes(config: Config, form: StepForm, facts: ModelFacts) -> Iterator[str]:
    """Say what the plan chose where the config leaves it open."""
    if config.batch.microbatches == "auto" and config.batch.train > 1:
        parts = "microbatch" if form.microbatches == 1 else "microbatches"
        yield f"batch.microbatches: auto gives {form.microbatches} {parts}"
    if not form.is_gpu:
        return
    if config.memory.resident_fraction == "auto" and form.streamed_blocks:
        blocks = form.resident_blocks(facts.num_layers)
        yield f"memory.resident_fraction: auto gives {blocks} of {facts.num_layers} blocks"
    if config.memory.block_inputs == "auto" and form.pinned_records:
        yield "memory.block_inputs: auto gives pinned RAM"
    if config.memory.recompute == "auto":
        yield f"memory.recompute: auto gives {recompute_words(form, facts.num_layers)}"


def _fit_pipeline(
    config: Config,
    facts: ModelFacts,
    row_length: int,
    budget: int | None,
    is_gpu: bool,
    rates: Rates,
    documents: Documents,
) -> _Made:
    seen = documents.seen_tokens
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
        recompute="full" if config.memory.recompute == "auto" else config.memory.recompute,
        pinned_inputs=config.memory.block_inputs == "pinned",
        is_gpu=is_gpu,
    )
    form, ranks = place_sums(facts, form, budget)
    fits = tuple(pipeline_rank(each, form, is_gpu=is_gpu) for each in ranks)
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
    return _Made(form=form, ranks=fits, seconds=busy / used, notes=tuple(notes))
