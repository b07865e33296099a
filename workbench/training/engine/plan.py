"""The plan of a run: how a step is cut, what lies where, what is repeated, and what that takes.

The arithmetic and the search are ``config/plan_search``, the very functions that forecasts use; the
worker brings what it measured: the row length of its data, the free bytes of its GPU and of its
host, and how fast they are.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch

from workbench.config.host_parts import HostBytes
from workbench.config.memory_parts import (
    CONTEXT_BYTES,
    GIB,
    KERNEL_BYTES,
    MARGIN,
    MIB,
    DeviceBytes,
    OptimizerName,
    Recompute,
    StepForm,
    SumDtype,
    documents_of,
    head_rows_of,
)
from workbench.config.memory_plan import gib_enough
from workbench.config.model_facts import ModelFacts
from workbench.config.plan_search import (
    Choice,
    Wishes,
    choose_plan_form,
    most_of_host,
    smallest_form,
)
from workbench.config.rates import Rates, rates_of
from workbench.config.time_plan import StepSeconds
from workbench.errors import RefusedError
from workbench.model.families import Dimensions
from workbench.runs.atomic import write_atomically
from workbench.runs.rates_file import read_rates

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the engine does with what it may take.

    Attributes:
        microbatches: parts of a step.
        sum_dtype: of gradient sums, bfloat16 or float32.
        budget_bytes: that the process may take of the GPU; None on the CPU.
        resident_blocks: blocks whose weights stay on the device; which, says ``spread``.
        vocabulary_resident: embedding and head stay there too; else they pass through one slot.
        slots: that streamed blocks pass through.
        pinned_records: what is kept for backward waits in pinned host memory.
        recompute: per block, first block first.
        tile_rows: rows of the MLP that exist at once.
        head_rows: rows that pass the head together.
        companions_resident: low bits and moments stay on the device.
        predicted: bytes per part.
        predicted_seconds: of a step; None on a CPU whose speed no run has shown yet.
        host: bytes of host memory, per part; None where nobody worked them out.
        seconds: what arithmetic gives for a step, per part.
        basis: what they rest on, in words.
        rates: the same as numbers.
    """

    microbatches: int
    sum_dtype: Literal["bfloat16", "float32"]
    budget_bytes: int | None
    resident_blocks: int
    vocabulary_resident: bool
    slots: int
    pinned_records: bool
    recompute: tuple[Recompute, ...]
    tile_rows: int
    head_rows: int
    companions_resident: bool
    predicted: DeviceBytes
    predicted_seconds: float | None
    host: HostBytes | None = None
    seconds: StepSeconds | None = None
    basis: str = ""
    rates: Rates | None = None


def spread(count: int, num_layers: int) -> frozenset[int]:
    """Choose blocks evenly, so that each copy has several blocks to hide behind.

    Args:
        count: blocks to be chosen.
        num_layers: blocks of the model.

    Returns:
        Their numbers: 2 of 8 are {3, 7}, 6 of 8 {1, 2, 3, 5, 6, 7}.
    """
    return frozenset(
        block
        for block in range(num_layers)
        if (block + 1) * count // num_layers > block * count // num_layers
    )


def spread_levels(selective: int, kept: int, num_layers: int) -> tuple[Recompute, ...]:
    """Say per block what is recomputed, each level spread evenly.

    Args:
        selective: blocks of that level.
        kept: blocks that recompute nothing.
        num_layers: blocks of the model; the others recompute everything.
    """
    nothing = spread(kept, num_layers)
    others = [block for block in range(num_layers) if block not in nothing]
    some = {others[index] for index in spread(selective, len(others))}
    return tuple(
        "none" if block in nothing else "selective" if block in some else "full"
        for block in range(num_layers)
    )


def facts_of_dimensions(dims: Dimensions) -> ModelFacts:
    """Give the shapes of a decoder as the arithmetic of memory takes them."""
    return ModelFacts(
        family=dims.family,
        num_layers=dims.num_layers,
        hidden_size=dims.hidden_size,
        intermediate_size=dims.intermediate_size,
        num_heads=dims.num_heads,
        num_key_value_heads=dims.num_key_value_heads,
        head_size=dims.head_dim,
        vocabulary_size=dims.vocabulary_size,
        max_positions=dims.max_positions,
        sliding_window=dims.sliding_window,
        tied=dims.tied,
        biased=dims.biased,
        query_key_norm=dims.query_key_norm,
        sliding_blocks=dims.sliding_blocks,
    )


def choose_plan(
    dims: Dimensions,
    *,
    dtype: torch.dtype,
    sum_dtype: SumDtype,
    microbatches: Literal["auto"] | int,
    rows: int,
    row_length: int,
    budget_bytes: int | None,
    resident_fraction: Literal["auto"] | float = "auto",
    block_inputs: Literal["auto", "gpu", "pinned"] = "auto",
    recompute: Literal["auto"] | Recompute = "auto",
    optimizer: OptimizerName = "adafactor",
    exact: bool = False,
    host_bytes: int | None = None,
    rates: Rates | None = None,
    seen_tokens: float | None = None,
    row_documents: int | None = None,
) -> Plan:
    """Choose the fastest plan that fits, and of those about as fast one that takes little.

    Args:
        dims: of the model.
        dtype: of weights and activations.
        sum_dtype: ``memory.sum_dtype``; auto sums in bfloat16 up to four microbatches of bfloat16.
        microbatches: ``batch.microbatches``.
        rows: of a step.
        row_length: tokens of the longest row.
        budget_bytes: of the GPU; None on the CPU.
        resident_fraction: ``memory.resident_fraction``.
        block_inputs: ``memory.block_inputs``, the place of all that is kept for backward.
        recompute: ``memory.recompute``.
        optimizer: ``optimizer.name``.
        exact: the low halves of fp32 weights are kept beside bfloat16 ones.
        host_bytes: of host memory that can be had; None where that is not known.
        rates: how fast the machine is; None takes what is known of this GPU.
        seen_tokens: length of the document that a token stands in, on average; None takes the
            row's.
        row_documents: that a row holds at most; None takes half more than ``seen_tokens`` says.

    Raises:
        RefusedError: nothing fits the budget, or the host memory; the message names the smallest
            budget that works, and its plan.
    """
    form = StepForm(
        rows=rows,
        row_length=row_length,
        microbatches=1,
        row_documents=row_documents or documents_of(row_length, seen_tokens),
        weight_bytes=dtype.itemsize,
        optimizer=optimizer,
        exact=exact and dtype != torch.float32,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        is_gpu=budget_bytes is not None,
    )
    wishes = Wishes(
        microbatches=microbatches,
        sum_dtype=sum_dtype,
        resident_fraction=resident_fraction,
        block_inputs=block_inputs,
        recompute=recompute,
    )
    facts = facts_of_dimensions(dims)
    rates = rates or known_rates(is_gpu=budget_bytes is not None)
    choice = choose_plan_form(
        facts,
        form,
        wishes,
        rates,
        seen_tokens=row_length if seen_tokens is None else seen_tokens,
        budget_bytes=budget_bytes,
        host_limit=host_bytes,
    )
    plan = _plan_of(choice, facts, rates, budget_bytes)
    if not choice.fits:
        assert budget_bytes is not None
        raise _refusal(choice, plan, budget_bytes, host_bytes)
    return plan


def smallest_plan(
    dims: Dimensions,
    *,
    dtype: torch.dtype,
    rows: int,
    row_length: int,
    sum_dtype: SumDtype = "auto",
    microbatches: Literal["auto"] | int = "auto",
    optimizer: OptimizerName = "adafactor",
    exact: bool = False,
    rates: Rates | None = None,
    seen_tokens: float | None = None,
) -> Plan:
    """Give the plan that takes least of a GPU, whatever it costs in time.

    Its budget is what it needs. Arguments as ``choose_plan``.
    """
    form = StepForm(
        rows=rows,
        row_length=row_length,
        microbatches=1,
        row_documents=documents_of(row_length, seen_tokens),
        weight_bytes=dtype.itemsize,
        optimizer=optimizer,
        exact=exact and dtype != torch.float32,
    )
    facts = facts_of_dimensions(dims)
    rates = rates or known_rates(is_gpu=True)
    choice = smallest_form(
        facts,
        form,
        Wishes(microbatches=microbatches, sum_dtype=sum_dtype),
        rates,
        seen_tokens=row_length if seen_tokens is None else seen_tokens,
    )
    return _plan_of(choice, facts, rates, choice.needed)


def known_rates(*, is_gpu: bool) -> Rates:
    """Give what is known of this GPU without measuring: what was measured before, or its table."""
    if not is_gpu or not torch.cuda.is_available():
        return rates_of(gpu_name=None, is_gpu=is_gpu)
    name = torch.cuda.get_device_name()
    return rates_of(gpu_name=name, measured=read_rates(name, str(torch.__version__)))


def _plan_of(choice: Choice, facts: ModelFacts, rates: Rates, budget_bytes: int | None) -> Plan:
    form = choice.form
    is_known = form.is_gpu or not rates.is_assumed
    return Plan(
        microbatches=form.microbatches,
        sum_dtype="bfloat16" if form.sum_bytes == 2 else "float32",
        budget_bytes=budget_bytes,
        resident_blocks=form.resident_blocks(facts.num_layers),
        vocabulary_resident=form.vocabulary_resident,
        slots=form.slots,
        pinned_records=form.pinned_records,
        recompute=spread_levels(form.selective_blocks, form.kept_blocks, facts.num_layers),
        tile_rows=form.tile_rows,
        head_rows=head_rows_of(facts, form),
        companions_resident=form.companions_resident,
        predicted=choice.device,
        predicted_seconds=choice.seconds.total if is_known else None,
        host=choice.host,
        seconds=choice.seconds,
        basis=rates.basis,
        rates=rates,
    )


def _refusal(choice: Choice, plan: Plan, budget_bytes: int, host_bytes: int | None) -> RefusedError:
    """Say what is missing, and the smallest plan."""
    how = "; ".join(plan_words(plan))
    host = "" if host_bytes is None else f" and {host_bytes / GIB:.1f} GiB of host memory"
    if choice.needed > budget_bytes:
        return RefusedError(
            f"a step needs a budget of {gib_enough(choice.needed)} GiB at least, with the context "
            f"and a margin of {MARGIN:.0%}; there are {budget_bytes / GIB:.2f} GiB{host} (that "
            f"plan: {how})",
            where="memory.budget_gib",
            remedy=f"set memory.budget_gib to {gib_enough(choice.needed)} or more, with as much "
            "free on the GPU, leave memory.resident_fraction, block_inputs, recompute and "
            "batch.microbatches at auto, or lower data.max_length or batch.train",
        )
    assert host_bytes is not None
    return RefusedError(
        f"the smallest plan needs {choice.host.total / GIB:.1f} GiB of host memory, "
        f"it may take {most_of_host(host_bytes) / GIB:.1f} of the {host_bytes / GIB:.1f} GiB that "
        f"can be had (that plan: {how})",
        where="host memory",
        remedy="raise memory.budget_gib, lower batch.train or data.max_length, or close other "
        "programs",
    )


def plan_words(plan: Plan) -> Iterator[str]:
    """Say what a plan does, in a few phrases."""
    num_layers = len(plan.recompute)
    parts = "1 microbatch" if plan.microbatches == 1 else f"{plan.microbatches} microbatches"
    yield f"{parts}, sums in {plan.sum_dtype}"
    streamed = num_layers - plan.resident_blocks
    where = f"{streamed} of {num_layers} blocks streamed through {plan.slots} slots"
    vocabulary = "resident" if plan.vocabulary_resident else "streamed"
    yield (where if streamed else "every block resident") + f", vocabulary {vocabulary}"
    counts = [(plan.recompute.count(level), level) for level in ("none", "selective", "full")]
    told = ", ".join(f"{level} in {count}" for count, level in counts if count)
    place = "in pinned memory" if plan.pinned_records else "where they are made"
    yield f"recompute {told} of {num_layers} blocks, records {place}"
    yield f"{plan.tile_rows:,} rows of the MLP and {plan.head_rows:,} of the head at once"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Say a plan and what it is predicted to take, in the lines of a log."""
    yield "plan: " + "; ".join(plan_words(plan))
    device = plan.predicted
    parts = {
        "weights": device.weights,
        "slots": device.slots,
        "companions": device.companions,
        "records": device.block_inputs,
        "staging": device.staging,
        "hidden states": device.hidden_states,
        "sums": device.gradient_sums,
        "arenas": device.block_buffers + device.head_buffers,
    }
    # A small model has parts that are nothing in GiB.
    unit, word = (GIB, "GiB") if device.reserved >= GIB else (MIB, "MiB")
    told = ", ".join(f"{name} {size / unit:.2f}" for name, size in parts.items() if size)
    budget = "" if plan.budget_bytes is None else f" of {plan.budget_bytes / unit:.2f}"
    yield f"predicted: {device.reserved / unit:.2f} {word} reserved{budget} ({told})"
    if plan.host is not None and plan.host.pinned:
        host = plan.host
        yield (
            f"predicted: {host.pinned / GIB:.2f} GiB pinned of host memory "
            f"(weights {host.weights / GIB:.2f}, records {host.block_inputs / GIB:.2f}, "
            f"low bits and moments {(host.low_bits + host.optimizer_state) / GIB:.2f})"
        )
    if plan.predicted_seconds is not None:
        yield f"predicted: {plan.predicted_seconds:.3f} s per step of full rows ({plan.basis})"


def take_budget(device: torch.device, budget_gib: float | None) -> int | None:
    """Give the bytes of the GPU this process may take, and hold torch's allocator to them.

    None on the CPU. What is free now bounds a budget that is stated, too, so that a card shared
    with a screen is not promised twice.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    budget = budget_within(budget_gib, free)
    allowed = budget - CONTEXT_BYTES - KERNEL_BYTES
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, allowed / total)), device)
    return budget


def budget_within(budget_gib: float | None, free_bytes: int) -> int:
    """Give a budget, of which no more is taken than is free.

    Args:
        budget_gib: ``memory.budget_gib``, the context included; None: all that is free.
        free_bytes: of the GPU, beside the context of this process, which exists by now.
    """
    most = free_bytes + CONTEXT_BYTES
    if budget_gib is None:
        return most
    budget = int(budget_gib * GIB)
    if most < budget:
        logger.warning(
            "memory.budget_gib is %.2f, but the GPU has %.2f GiB free: that is planned with",
            budget_gib, most / GIB,
        )  # fmt: skip
    return min(budget, most)


def write_plan(
    path: Path,
    plan: Plan,
    measured: dict[str, int] | None = None,
    measured_seconds: float | None = None,
) -> None:
    """Write plan.json: the plan, what was predicted per part, and beside it what was measured.

    Args:
        path: of the file.
        plan: of the run.
        measured: peaks, as ``measured_peaks`` gives them; None before the end.
        measured_seconds: of a step; None where no step was timed.
    """
    predicted = plan.predicted
    content = {
        "engine": "layer_major",
        "microbatches": plan.microbatches,
        "sum_dtype": plan.sum_dtype,
        "budget_bytes": plan.budget_bytes,
        "resident_blocks": plan.resident_blocks,
        "vocabulary_resident": plan.vocabulary_resident,
        "slots": plan.slots,
        "pinned_records": plan.pinned_records,
        "recompute": plan.recompute,
        "tile_rows": plan.tile_rows,
        "head_rows": plan.head_rows,
        "companions_resident": plan.companions_resident,
        "predicted": {
            **asdict(predicted),
            "peak_phase": predicted.peak_phase.name,
            "peak": predicted.peak,
            "reserved": predicted.reserved,
        },
        "predicted_host": None
        if plan.host is None
        else {**asdict(plan.host), "pinned": plan.host.pinned, "total": plan.host.total},
        **_predicted_seconds(plan),
        "basis": plan.basis,
        "measured": measured,
        "measured_seconds": measured_seconds,
        "difference_percent": {
            "reserved": _percent(
                (measured or {}).get("peak_gpu_reserved_bytes"), predicted.reserved
            ),
            "allocated": _percent((measured or {}).get("peak_gpu_allocated_bytes"), predicted.peak),
            "seconds": _percent(measured_seconds, plan.predicted_seconds),
        },
    }
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _predicted_seconds(plan: Plan) -> dict[str, object]:
    """Give the seconds of a step; where nobody knows them, why, in place of numbers."""
    if plan.predicted_seconds is None or plan.seconds is None:
        return {"why_no_predicted_seconds": plan.basis}
    return {
        "predicted_seconds": plan.predicted_seconds,
        "predicted_seconds_by_part": asdict(plan.seconds),
    }


def _percent(measured: float | None, predicted: float | None) -> float | None:
    """Say by how much a prediction is over what was measured, below 0 where it is under."""
    if not measured or predicted is None:
        return None
    return round(100 * (predicted / measured - 1), 2)


def measured_peaks(device: torch.device, host_bytes: int) -> dict[str, int]:
    """Give the largest bytes this process took so far, by what counted them."""
    if device.type != "cuda":
        return {"peak_host_bytes": host_bytes}
    return {
        "peak_gpu_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_gpu_reserved_bytes": torch.cuda.max_memory_reserved(device),
        "peak_host_bytes": host_bytes,
    }
