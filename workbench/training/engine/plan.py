"""The plan of a run: how a step is cut, what lies where, what is repeated, and what that takes.

The arithmetic is ``config/memory_parts``, the very functions that forecasts use; the worker brings
what it measured: the row length of its data and the free bytes of its GPU.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch

from workbench.config.memory_parts import (
    CONTEXT_BYTES,
    GIB,
    DeviceBytes,
    OptimizerName,
    Recompute,
    StepForm,
    choose_microbatches,
    chunk_rows,
    needed_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.time_plan import Rates
from workbench.errors import RefusedError
from workbench.model.families import Dimensions
from workbench.runs.atomic import write_atomically


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
        tile_rows: rows of the MLP that exist at once in a block's backward.
        head_rows: rows that pass the head together.
        companions_resident: low bits and moments stay on the device with resident weights.
        predicted: bytes per part.
        predicted_seconds: of a step; None where nothing is known of the machine.
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


def spread(resident: int, num_layers: int) -> frozenset[int]:
    """Choose which blocks stay: evenly, so that each copy has several blocks to hide behind.

    Args:
        resident: blocks that stay.
        num_layers: blocks of the model.

    Returns:
        Their numbers: 2 of 8 are {3, 7}, 6 of 8 {1, 2, 3, 5, 6, 7}.
    """
    return frozenset(
        block
        for block in range(num_layers)
        if (block + 1) * resident // num_layers > block * resident // num_layers
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
    )


def choose_plan(
    dims: Dimensions,
    *,
    dtype: torch.dtype,
    sum_dtype: Literal["auto", "bfloat16", "float32"],
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
) -> Plan:
    """Choose the fewest microbatches that fit.

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
        rates: how fast the machine is; None for nothing but bytes.
        seen_tokens: mean length of a document; None takes the row's.

    Raises:
        RefusedError: not even the smallest microbatch fits the budget.
    """
    form = StepForm(
        rows=rows,
        row_length=row_length,
        microbatches=1,
        weight_bytes=dtype.itemsize,
        resident_fraction=1.0 if resident_fraction == "auto" else resident_fraction,
        pinned_inputs=block_inputs == "pinned",
        recompute="full" if recompute == "auto" else recompute,
        optimizer=optimizer,
        exact=exact,
        is_gpu=budget_bytes is not None,
    )
    choice = choose_microbatches(
        facts_of_dimensions(dims),
        form,
        microbatches=microbatches,
        sum_dtype=sum_dtype,
        budget_bytes=budget_bytes,
    )
    if not choice.fits:
        assert budget_bytes is not None
        raise RefusedError(
            f"a step needs {needed_bytes(choice.device) / GIB:.1f} GiB with its context and a "
            f"margin, the budget is {budget_bytes / GIB:.1f} GiB",
            where="memory.budget_gib",
            remedy="lower data.max_length or batch.train, or raise batch.microbatches to "
            "batch.train",
        )
    return Plan(
        microbatches=choice.form.microbatches,
        sum_dtype="bfloat16" if choice.form.sum_bytes == 2 else "float32",
        budget_bytes=budget_bytes,
        resident_blocks=choice.form.resident_blocks(dims.num_layers),
        vocabulary_resident=True,
        slots=3,
        pinned_records=choice.form.pinned_inputs,
        recompute=(choice.form.recompute,) * dims.num_layers,
        tile_rows=2048,
        head_rows=chunk_rows(dims.vocabulary_size),
        companions_resident=True,
        predicted=choice.device,
        predicted_seconds=None,
    )


def take_budget(device: torch.device, budget_gib: float | None) -> int | None:
    """Give the bytes of the GPU this process may take, and hold torch's allocator to them.

    None on the CPU. Without a budget: what is free now, so that a card shared with a screen is
    not promised twice.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    # The context exists by now: what is free leaves it out, what a budget names includes it.
    allowed = free if budget_gib is None else int(budget_gib * GIB) - CONTEXT_BYTES
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, allowed / total)), device)
    return allowed + CONTEXT_BYTES


def write_plan(path: Path, plan: Plan, measured: dict[str, int] | None = None) -> None:
    """Write plan.json: the plan, predicted bytes per part, and measured peaks once known."""
    content = {
        "engine": "layer_major",
        "microbatches": plan.microbatches,
        "sum_dtype": plan.sum_dtype,
        "resident_blocks": plan.resident_blocks,
        "vocabulary_resident": plan.vocabulary_resident,
        "slots": plan.slots,
        "pinned_records": plan.pinned_records,
        "recompute": plan.recompute,
        "tile_rows": plan.tile_rows,
        "head_rows": plan.head_rows,
        "companions_resident": plan.companions_resident,
        "budget_bytes": plan.budget_bytes,
        "predicted": {
            **asdict(plan.predicted),
            "peak_phase": plan.predicted.peak_phase.name,
            "peak": plan.predicted.peak,
            "reserved": plan.predicted.reserved,
        },
        "measured": measured,
    }
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def measured_peaks(device: torch.device, host_bytes: int) -> dict[str, int]:
    """Give the largest bytes this process took so far, by what counted them."""
    if device.type != "cuda":
        return {"peak_host_bytes": host_bytes}
    return {
        "peak_gpu_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_gpu_reserved_bytes": torch.cuda.max_memory_reserved(device),
        "peak_host_bytes": host_bytes,
    }
