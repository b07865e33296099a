"""Measure steps of the layer-major engine: one trial, in a process of its own.

    python benchmarks/our_step.py '{"shapes": "demo", "row": 256, "rows": 8}'

Prints one JSON line. ``throughput.py`` and ``memory.py`` start this for each trial, so that every
peak is its own. The fields of a trial are those of ``Trial``. A 7B trial takes about 15 s with its
start, 8 steps of 1.4 s included; 30B 60 s, 70B 2 minutes.
"""

import dataclasses
import itertools
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from machine import ceilings, choose_device, synchronize
from shapes import dimensions, draw_weights, layers_that_fit, random_rows

from workbench.config.memory_parts import GIB, documents_of
from workbench.config.rates import Rates
from workbench.data.loader import StepRows
from workbench.errors import RefusedError
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.runs.host_memory import available_host_memory
from workbench.training.engine.assemble import assemble
from workbench.training.engine.calibration import rates_here
from workbench.training.engine.plan import Plan, choose_plan, facts_of_dimensions, take_budget
from workbench.training.engine.step import LayerMajorEngine, StepResult
from workbench.training.optimizer.choice import new_optimizer
from workbench.training.utilization import Utilization, count_seen_tokens, peak_flops_of

# Left to everything else when the blocks are counted that host memory holds.
_SPARED_HOST_BYTES = 8 * GIB


@dataclass(frozen=True)
class Trial:
    """What to run.

    Attributes:
        shapes: a name of ``shapes.SHAPES``.
        row: tokens of a row.
        rows: of a step.
        budget_gib: of the GPU, its context included; None takes the whole card.
        microbatches: parts of a step, or ``auto``.
        layers: fewer blocks than the shapes have; 0 as many as host memory holds; None all.
        steps: that are timed, after ``warmup`` others.
        warmup: steps before the first one that counts.
        one_document: rows are one document each.
        dtype: of weights and activations.
        ceilings: measure the machine first.
        label: of the row in a table.
        plan: settings of ``choose_plan`` beside those.
    """

    shapes: str = "demo"
    row: int = 256
    rows: int = 8
    budget_gib: float | None = None
    microbatches: int | str = "auto"
    layers: int | None = None
    steps: int = 8
    warmup: int = 3
    one_document: bool = False
    dtype: str = "bfloat16"
    ceilings: bool = False
    label: str = ""
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.row * self.rows


def dimensions_of(trial: Trial) -> Dimensions:
    """Give the dimensions of a trial, with as many blocks as it asks for or the host holds."""
    dims = dimensions(trial.shapes, trial.layers or None)
    if trial.layers != 0:
        return dims
    memory = available_host_memory()
    if memory is None:
        return dims
    spare = memory.available_bytes - _SPARED_HOST_BYTES
    return dataclasses.replace(dims, num_layers=layers_that_fit(dims, trial.tokens, spare))


def plan_of(
    trial: Trial, dims: Dimensions, budget_bytes: int | None, rates: Rates | None = None
) -> Plan:
    """Choose the plan of a trial as a rank does; without rates by those that are known.

    Raises:
        RefusedError: the budget does not allow any.
    """
    memory = available_host_memory()
    return choose_plan(
        dims,
        dtype=getattr(torch, trial.dtype),
        sum_dtype="auto",
        microbatches=trial.microbatches,  # type: ignore[arg-type]
        rows=trial.rows,
        row_length=trial.row,
        budget_bytes=budget_bytes,
        host_bytes=None if memory is None else memory.available_bytes,
        rates=rates,
        seen_tokens=seen_tokens_of(trial),
        **trial.plan,
    )


def seen_tokens_of(trial: Trial) -> int:
    """Give the length of the document that a token of a trial stands in, on average."""
    # Documents of 100 to 1,300 tokens, weighted by their length.
    return trial.row if trial.one_document else min(trial.row, 871)


def plan_of_blocks(trial: Trial, budget_bytes: int | None, rates: Rates) -> tuple[Dimensions, Plan]:
    """Choose the plan of a trial, and where it asks for that, the most blocks that have one.

    Raises:
        RefusedError: the budget does not allow any.
    """
    dims = dimensions_of(trial)
    while True:
        try:
            return dims, plan_of(trial, dims, budget_bytes, rates)
        except RefusedError:
            if trial.layers != 0 or dims.num_layers == 1:
                raise
            dims = dataclasses.replace(dims, num_layers=dims.num_layers - 1)


def make_engine(
    trial: Trial, dims: Dimensions, plan: Plan, device: torch.device
) -> LayerMajorEngine:
    """Make the engine of a run with shipped settings, over random weights."""
    dtype = getattr(torch, trial.dtype)
    optimizer = new_optimizer(
        "adafactor",
        parameter_shapes(dims),
        dtype=dtype,
        device=device,
        seed=0,
        weight_decay=1e-3,
        rounding="stochastic" if dtype == torch.bfloat16 else "nearest",
    )
    engine = assemble(
        plan,
        dims,
        optimizer,
        microbatch_tokens=-(-trial.rows // plan.microbatches) * trial.row,
        dtype=dtype,
        device=device,
    )
    engine.store.settle()
    draw_weights(engine.store.named_tensors(), device)
    synchronize(device)
    if device.type == "cuda":
        # Drawing weights is no part of training; loading them takes less than that.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return engine


def measure(trial: Trial) -> dict[str, Any]:
    """Run a trial; give what was predicted, what was seen, and raw values.

    Raises:
        RefusedError: the budget or the host memory is too small for it.
    """
    begin = time.perf_counter()
    device = choose_device()
    torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, trial.dtype)
    record: dict[str, Any] = {"system": "workbench", "trial": dataclasses.asdict(trial)}
    if trial.ceilings:
        dims = dimensions(trial.shapes)
        record["ceilings"] = ceilings(
            device,
            tokens=min(trial.tokens, 4096),
            hidden=dims.hidden_size,
            intermediate=dims.intermediate_size,
            dtype=dtype,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    budget_bytes = take_budget(device, trial.budget_gib)
    rates = rates_here(device)
    dims, plan = plan_of_blocks(trial, budget_bytes, rates)
    record |= {
        "layers": dims.num_layers,
        "plan": described(plan),
        "predicted_reserved": plan.predicted.reserved,
        "predicted_allocated": plan.predicted.peak,
        "predicted_seconds": plan.predicted_seconds,
        "predicted_host": None if plan.host is None else plan.host.total,
        "basis": plan.basis,
        "row_documents": trial.plan.get(
            "row_documents", documents_of(trial.row, seen_tokens_of(trial))
        ),
    }
    engine = make_engine(trial, dims, plan, device)
    rows = [
        random_rows(
            dims, trial.rows, trial.row, plan.microbatches, seed, one_document=trial.one_document
        )
        for seed in range(1, trial.warmup + trial.steps + 1)
    ]
    record["loading_seconds"] = round(time.perf_counter() - begin, 2)
    record |= run_steps(engine, rows, trial.warmup, device)
    record |= utilization(dims, rows[trial.warmup :], record["seconds"], device)
    return record


def run_steps(
    engine: LayerMajorEngine, rows: list[StepRows], warmup: int, device: torch.device
) -> dict[str, Any]:
    """Take a step per element of ``rows``; time those after the warm-up, each by device events."""
    seconds = []
    samples: list[StepResult] = []
    # The engine times every tenth step: the last one of these shall be such a step.
    first_number = 1 + -len(rows) % 10
    for number, step_rows in enumerate(rows[:warmup], start=first_number):
        begin = time.perf_counter()
        engine.step(step_rows, number, 1e-6)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
        if number == first_number:
            first = _peaks(device)
    if warmup == 0:
        first = _peaks(device)
    before = _peaks(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    marks = [_mark(device)]
    begin = time.perf_counter()
    for number, step_rows in enumerate(rows[warmup:], start=first_number + warmup):
        samples.append(engine.step(step_rows, number, 1e-6))
        marks.append(_mark(device))
    engine.store.settle()
    synchronize(device)
    clock = time.perf_counter() - begin
    after = _peaks(device)
    timed = [_between(one, other) for one, other in itertools.pairwise(marks)]
    tokens = [step_rows.num_tokens for step_rows in rows[warmup:]]
    last = samples[-1]
    return {
        "seconds": [round(each, 4) for each in timed],
        "warmup_seconds": [round(each, 3) for each in seconds],
        "clock_seconds": round(clock, 3),
        "tokens_per_second": round(tokens[0] / statistics.median(timed), 1),
        "target_share": round(sum(each.num_targets for each in rows[warmup:]) / sum(tokens), 3),
        "allocated": max(before["allocated"], after["allocated"]),
        "reserved": max(before["reserved"], after["reserved"]),
        "first_step_reserved": first["reserved"],
        "on_card": after["on_card"],
        "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "loss": float(last.loss_sum) / max(last.num_targets, 1),
        "times": _times(samples),
    }


def utilization(
    dims: Dimensions, rows: list[StepRows], seconds: list[float], device: torch.device
) -> dict[str, Any]:
    """Give the MFU of steps, and the mean length of the documents their tokens stand in."""
    tokens = sum(each.num_tokens for each in rows)
    seen = sum(count_seen_tokens(each.microbatches) for each in rows)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    peak = peak_flops_of(name)
    mfu = Utilization(facts_of_dimensions(dims), peak).mfu(tokens, seen, sum(seconds))
    return {"mfu": mfu, "seen_tokens": round(seen / tokens, 1)}


def described(plan: Plan) -> dict[str, Any]:
    """Give a plan as a result file states it."""
    kept = {name: plan.recompute.count(name) for name in ("full", "selective", "none")}
    return {
        "microbatches": plan.microbatches,
        "sum_dtype": plan.sum_dtype,
        "resident_blocks": plan.resident_blocks,
        "vocabulary_resident": plan.vocabulary_resident,
        "slots": plan.slots,
        "pinned_records": plan.pinned_records,
        "recompute": {name: count for name, count in kept.items() if count},
        "tile_rows": plan.tile_rows,
        "head_rows": plan.head_rows,
    }


def _times(samples: list[StepResult]) -> dict[str, float] | None:
    """Give the mean seconds of the steps that the engine timed."""
    read = [each.times.read() for each in samples if each.times is not None]
    if not read:
        return None
    return {
        name: round(statistics.mean(known), 4)
        for name in ("step", "up", "down", "waiting", "optimizer")
        if (known := [value for each in read if (value := getattr(each, name)) is not None])
    }


def _mark(device: torch.device) -> Any:  # noqa: ANN401 - an event, or seconds of the CPU
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:  # noqa: ANN401 - two marks
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def _peaks(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {"allocated": 0, "reserved": 0, "on_card": 0}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
        "on_card": total - free,
    }


def main() -> int:
    trial = Trial(**json.loads(sys.argv[1]))
    try:
        print(json.dumps(measure(trial)), flush=True)
    except (RefusedError, torch.OutOfMemoryError) as error:
        failed = {
            "system": "workbench",
            "trial": dataclasses.asdict(trial),
            "failed": type(error).__name__,
            "message": str(error)[:500],
        }
        print(json.dumps(failed), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    # As ranks have it: the allocator reads this at its first allocation.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
