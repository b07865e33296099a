"""How a step is cut into microbatches, how gradients are summed, and the bytes that takes.

The arithmetic is ``config/memory_parts``, the very functions that forecasts use; the worker brings
what it measured: the row length of its data and the free bytes of its GPU. This plan knows the
resident form only: every block stays on the device and block inputs stay where they were made.
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
    StepForm,
    choose_microbatches,
    needed_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.errors import RefusedError
from workbench.model.families import Dimensions
from workbench.runs.atomic import write_atomically


@dataclass(frozen=True)
class Plan:
    """What the budget allows.

    Attributes:
        microbatches: parts of a step.
        sum_dtype: of gradient sums, bfloat16 or float32.
        budget_bytes: that the process may take of the GPU; None on the CPU.
        predicted: bytes per part.
    """

    microbatches: int
    sum_dtype: Literal["bfloat16", "float32"]
    budget_bytes: int | None
    predicted: DeviceBytes


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

    Raises:
        RefusedError: not even the smallest microbatch fits the budget.
    """
    form = StepForm(
        rows=rows,
        row_length=row_length,
        microbatches=1,
        weight_bytes=dtype.itemsize,
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
        choice.form.microbatches,
        "bfloat16" if choice.form.sum_bytes == 2 else "float32",
        budget_bytes,
        choice.device,
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
        "resident_fraction": 1.0,
        "block_inputs": "gpu",
        "recompute": "full",
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
