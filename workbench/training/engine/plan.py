"""How a step is cut into microbatches, how gradients are summed, and the bytes that takes.

Arithmetic first; the worker adds what it measured. This plan knows the resident form only: every
block stays on the device and block inputs stay where they were made. Formulas: one live gradient
block, the head's chunk, and the activations of one recomputed block (per part below).
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch

from workbench.errors import RefusedError
from workbench.model.decoder import block_parameters, parameter_shapes
from workbench.model.families import Dimensions
from workbench.runs.atomic import write_atomically
from workbench.training.loss import chunk_rows
from workbench.training.optimizer.rounding import GPU_CHUNK

logger = logging.getLogger(__name__)

GIB = 1 << 30
# What the driver takes for a context, outside of torch's count, and what fragments.
_CONTEXT_BYTES = GIB // 2
_MARGIN = 0.02
# On the CPU: few enough that a microbatch's activations of one block stay small beside the model.
_CPU_MICROBATCH_TOKENS = 8192


@dataclass(frozen=True)
class PredictedBytes:
    """Bytes of each part at its largest; ``peak`` is the larger of block and head phase."""

    weights: int
    optimizer_statistics: int
    gradient_sums: int
    block_inputs: int
    block_phase: int
    head_phase: int

    @property
    def peak(self) -> int:
        """Bytes of everything that lives at the worst moment of a step."""
        lasting = self.weights + self.optimizer_statistics + self.gradient_sums
        return lasting + self.block_inputs + max(self.block_phase, self.head_phase)


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
    predicted: PredictedBytes


def _elements(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def predict(
    dims: Dimensions,
    *,
    weight_bytes: int,
    sum_bytes: int,
    rows: int,
    row_length: int,
    microbatches: int,
) -> PredictedBytes:
    """Predict the bytes of a resident step.

    Args:
        dims: of the model.
        weight_bytes: per weight and activation element, 2 or 4.
        sum_bytes: per element of a gradient sum, 2 or 4.
        rows: of a step, all microbatches together.
        row_length: tokens of a row.
        microbatches: parts of the step.
    """
    width, inner = dims.hidden_size, dims.intermediate_size
    keys = dims.num_key_value_heads * dims.head_dim
    vocabulary = dims.vocabulary_size * width
    step_tokens = rows * row_length
    tokens = -(-rows // microbatches) * row_length
    block_elements = _elements(block_parameters(dims))
    shapes = parameter_shapes(dims)
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    statistics = 4 * sum(sum(shape) for shape in matrices)
    # Hidden states of the whole step, or their gradients; then one block of one microbatch:
    # attention's tensors and the MLP's, each with its gradient.
    common = step_tokens * width * weight_bytes
    # Counts of width and inner fitted to peaks of 1.2 B and 7 B shapes on one H200, torch 2.11.
    activations = tokens * (14 * width + 4 * keys + 6 * inner) * weight_bytes
    update = 8 * largest + 24 * min(largest, GPU_CHUNK)  # fp32 gradient and square, random bits
    chunk = min(chunk_rows(dims.vocabulary_size), tokens)
    # fp32 work and the temporary of its log-sum-exp; bfloat16 logits lie beside them.
    logits = chunk * dims.vocabulary_size * (8 + (weight_bytes if weight_bytes < 4 else 0))
    embedding = step_tokens * width * (4 + 2 * weight_bytes)
    return PredictedBytes(
        weights=_elements(shapes) * weight_bytes,
        optimizer_statistics=statistics,
        gradient_sums=(block_elements + vocabulary + width) * sum_bytes,
        block_inputs=dims.num_layers * step_tokens * width * weight_bytes,
        block_phase=common + max(activations, update),
        head_phase=common + max(logits + 3 * tokens * width * weight_bytes, update, embedding),
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
    counts = (
        [count for count in range(1, rows + 1) if rows % count == 0]
        if microbatches == "auto"
        else [microbatches]
    )
    plan: Plan | None = None
    for count in counts:
        chosen = _sum_dtype(sum_dtype, dtype, count)
        predicted = predict(
            dims,
            weight_bytes=dtype.itemsize,
            sum_bytes=2 if chosen == "bfloat16" else 4,
            rows=rows,
            row_length=row_length,
            microbatches=count,
        )
        plan = Plan(count, chosen, budget_bytes, predicted)
        if budget_bytes is None:
            if microbatches != "auto" or rows // count * row_length <= _CPU_MICROBATCH_TOKENS:
                return plan
        elif predicted.peak * (1 + _MARGIN) + _CONTEXT_BYTES <= budget_bytes:
            return plan
    assert plan is not None
    if budget_bytes is None:
        return plan
    raise RefusedError(
        f"a step needs {plan.predicted.peak / GIB:.1f} GiB and a context, "
        f"the budget is {budget_bytes / GIB:.1f} GiB",
        where="memory.budget_gib",
        remedy="lower data.max_length or batch.train, or raise batch.microbatches to batch.train",
    )


def _sum_dtype(
    wanted: Literal["auto", "bfloat16", "float32"], dtype: torch.dtype, microbatches: int
) -> Literal["bfloat16", "float32"]:
    if dtype == torch.float32:
        return "float32"
    if wanted != "auto":
        return wanted
    return "bfloat16" if microbatches <= 4 else "float32"


def take_budget(device: torch.device, budget_gib: float | None) -> int | None:
    """Give the bytes of the GPU this process may take, and hold torch's allocator to them.

    None on the CPU. Without a budget: what is free now, so that a card shared with a screen is
    not promised twice.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    # The context exists by now: what is free leaves it out, what a budget names includes it.
    allowed = free if budget_gib is None else int(budget_gib * GIB) - _CONTEXT_BYTES
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, allowed / total)), device)
    return allowed + _CONTEXT_BYTES


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
        "predicted": {**asdict(plan.predicted), "peak": plan.predicted.peak},
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
