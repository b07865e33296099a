"""Measure peaks: the least a model trains in, the longest row, the head alone, and predictions.

    python benchmarks/memory.py --least --shapes mistral-7b --row 2048 --rows 16
    python benchmarks/memory.py --longest --shapes mistral-7b --budget-gib 22.8
    python benchmarks/memory.py --head --shapes mistral-7b
    python benchmarks/memory.py --grid

``--least`` asks the planner for the smallest budget that works and runs under that one.
``--longest`` doubles the row and then bisects: with ``--by-running`` each length takes steps in a
process of its own, else the planner alone is asked and the length it ends at takes steps, and
shorter ones if those fail. Rows hold many documents; with ``--one-document`` one, whose attention
takes far longer and the same memory. ``--head`` measures final norm, head and loss of ``--row``
rows, all of them targets and half of them. ``--grid`` is E11: twelve settings, each predicted
before it runs, written as a result file; ``--points 0:6`` takes a part of them.

On an H200: --least 40 s, --longest 90 s (--by-running 6 minutes), --head 15 s, --grid 20 s a point.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import choose_device, describe_apart, synchronize
from our_step import Trial, dimensions_of, measure, plan_of, seen_tokens_of
from result_file import write_result
from settings import SETTINGS, Verdict
from shapes import SHAPES, dimensions
from throughput import run_trial, tell

from workbench.config.memory_parts import GIB, chunk_rows
from workbench.errors import RefusedError
from workbench.model.kernel_choice import choose_kernels
from workbench.training.engine.head import HeadPass, HeadSums
from workbench.training.engine.plan import smallest_plan

_UNIT_BYTES = 16 << 20
_LARGEST_BUDGET_BYTES = 1 << 38

_7B = Trial(shapes="mistral-7b", warmup=1, steps=3)
GRID = tuple(
    dataclasses.replace(
        _7B,
        row=row,
        rows=16384 // row,
        microbatches=microbatches,
        budget_gib=budget,
        label=f"budget {budget} GiB, {microbatches} microbatches",
    )
    for budget in (22.8, 15.2, 7.2)
    for row in (1024, 4096)
    for microbatches in (2, 4)
)


# ---- searches ----------------------------------------------------------------------------------


def longest_number(fits: Callable[[int], bool], begin: int, unit: int) -> int | None:
    """Give the largest multiple of ``unit`` that fits: doubling from ``begin``, then bisection."""
    length = begin
    while fits(length):
        length *= 2
    if length == begin:
        return None
    low, high = length // 2 // unit, length // unit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit


def is_planned(trial: Trial, budget_bytes: int) -> bool:
    """Say whether the planner accepts a budget for a trial."""
    try:
        plan_of(trial, dimensions_of(trial), budget_bytes)
    except RefusedError:
        return False
    return True


# ---- what is measured --------------------------------------------------------------------------


def measure_least(trial: Trial) -> dict[str, Any]:
    """Find the smallest budget of a trial and run it in that."""
    smallest = smallest_plan(
        dimensions_of(trial),
        dtype=getattr(torch, trial.dtype),
        rows=trial.rows,
        row_length=trial.row,
        seen_tokens=seen_tokens_of(trial),
    )
    assert smallest.budget_bytes is not None
    gib = -(-smallest.budget_bytes // _UNIT_BYTES) * _UNIT_BYTES / GIB
    record = measure(dataclasses.replace(trial, budget_gib=gib))
    return record | {"least_budget_gib": gib}


def measure_longest(trial: Trial, *, by_running: bool) -> dict[str, Any]:
    """Find the longest row of a trial's budget; give the record of the steps at that length."""
    budget = int((trial.budget_gib or _LARGEST_BUDGET_BYTES / GIB) * GIB)
    unit = min(1024, max(64, trial.row // 8))
    begin = max(unit, trial.row // 16)
    records: dict[int, dict[str, Any]] = {}

    def runs(row: int) -> bool:
        records[row] = run_trial("our_step.py", dataclasses.replace(trial, row=row))
        tell(records[row])
        return "failed" not in records[row]

    def is_accepted(row: int) -> bool:
        return row <= 1 << 20 and is_planned(dataclasses.replace(trial, row=row), budget)

    row = longest_number(runs if by_running else is_accepted, begin, unit)
    if row is None:
        return {"trial": dataclasses.asdict(trial), "failed": f"not even {begin} tokens"}
    while row not in records and row >= unit and not runs(row):
        row = row * 7 // 8 // unit * unit
    tried = [[length, "failed" not in each] for length, each in sorted(records.items())]
    return records.get(row, {"failed": "no length runs"}) | {"row": row, "tried": tried}


def measure_head(shapes: str, rows: int, target_share: float) -> dict[str, Any]:
    """Run final norm, head and loss alone, gradients included, beside products nobody can spare.

    Args:
        shapes: whose vocabulary and width.
        rows: of hidden states.
        target_share: of the rows that predict a target.

    Returns:
        Seconds of both, and bytes above weight and hidden states: buffers, the head's gradient sum.
    """
    device = choose_device()
    dims = dimensions(shapes, 1)
    dtype = torch.bfloat16
    passes = HeadPass(
        dims,
        chunk_rows=min(chunk_rows(dims.vocabulary_size), rows),
        dtype=dtype,
        device=device,
        kernels=choose_kernels(device),
    )
    size, width = dims.vocabulary_size, dims.hidden_size
    head = torch.empty(size, width, dtype=dtype, device=device).normal_(0, 0.02)
    norm = torch.ones(width, dtype=dtype, device=device)
    hidden = torch.randn(rows, width, device=device).to(dtype)
    positions = torch.randperm(rows, device=device)[: int(rows * target_share)].sort().values
    labels = torch.randint(0, size, (len(positions),), device=device)
    spare, gradient = torch.empty_like(hidden), torch.empty_like(head)
    norm_gradient = torch.zeros(width, device=device)

    def ours() -> None:
        sums = HeadSums(gradient, norm_gradient)
        passes.train(
            hidden, positions, labels, norm, head, scale=1 / rows, sums=sums, spare_TD=spare
        )

    def products() -> None:
        picked = hidden[: len(positions)]
        logits = picked @ head.t()
        torch.mm(logits, head)
        torch.mm(logits.t(), picked, out=gradient)

    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _mean_seconds(ours, device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    held = passes.device_bytes() + gradient.numel() * gradient.element_size()
    return {
        "shapes": shapes,
        "rows": rows,
        "targets": len(positions),
        "seconds": seconds,
        "product_seconds": _mean_seconds(products, device),
        "bytes_above": held + max(0, peak - before),
    }


def _mean_seconds(do: Callable[[], None], device: torch.device) -> float:
    for _ in range(2):
        do()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(5):
        do()
    synchronize(device)
    return (time.perf_counter() - begin) / 5


def judge_grid(records: Sequence[dict[str, Any]]) -> tuple[Verdict, list[str]]:
    """Hold predictions against what was measured: the verdict, and a line for each setting."""
    lines, misses = [], 0
    for each in records:
        name = f"{each['trial']['row']} × {each['trial']['rows']}, {each['trial']['label']}"
        if "failed" in each:
            misses += 1
            lines.append(f"{name}: {each['failed']}: {each.get('message', '')[:200]}")
            continue
        parts, is_hit = [], True
        if each["reserved"]:
            off = each["predicted_reserved"] / each["reserved"] - 1
            is_hit = -0.02 <= off <= 0.05
            parts.append(f"peak {100 * off:+.1f} %")
        if each["predicted_seconds"]:
            off = each["predicted_seconds"] / statistics.median(each["seconds"]) - 1
            is_hit = is_hit and abs(off) <= 0.10
            parts.append(f"time {100 * off:+.1f} %")
        is_hit = is_hit and bool(parts)
        misses += not is_hit
        lines.append(f"{name}: predicted {', '.join(parts) or 'nothing'}, {_word(is_hit)}")
    total = len(records)
    return Verdict(misses == 0, [f"{total - misses} of {total} settings within"]), lines


def _word(is_hit: bool) -> str:
    return "hit" if is_hit else "missed"


# ---- the command -------------------------------------------------------------------------------


def _child(trial: Trial, options: argparse.Namespace) -> int:
    try:
        if options.longest:
            record = measure_longest(trial, by_running=options.by_running)
        else:
            record = measure_least(trial)
    except (RefusedError, torch.OutOfMemoryError) as error:
        record = {
            "trial": dataclasses.asdict(trial),
            "failed": type(error).__name__,
            "message": str(error)[:500],
        }
    print(json.dumps(record), flush=True)
    return int("failed" in record)


def _grid(options: argparse.Namespace, command: str) -> int:
    first, _, last = options.points.partition(":")
    chosen = GRID[int(first or 0) : int(last or len(GRID))]
    if options.shapes == "demo":
        chosen = tuple(
            dataclasses.replace(each, shapes="demo", row=64, rows=4, warmup=1) for each in chosen
        )
    records = []
    for trial in chosen:
        records.append(run_trial("our_step.py", trial))
        tell(records[-1])
    verdict, lines = judge_grid(records)
    machine = describe_apart()
    if options.commit:
        machine["commit"] = options.commit
    path = write_result(
        options.results,
        SETTINGS["E11"],
        command=command,
        machine=machine,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        records=records,
        verdict=verdict,
        measured=verdict.words[0],
        notes=lines,
    )
    print(f"E11 {verdict}; {path}", file=sys.stderr)
    return int(not verdict.is_hit)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trial", nargs="?", help="a trial as JSON, for --child")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--least", action="store_true", help="the smallest budget")
    what.add_argument("--longest", action="store_true", help="the longest row of a budget")
    what.add_argument("--head", action="store_true", help="head and loss alone")
    what.add_argument("--grid", action="store_true", help="E11")
    parser.add_argument("--child", action="store_true", help="print one JSON line, write no file")
    parser.add_argument("--by-running", action="store_true", help="try each length by two steps")
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="mistral-7b")
    parser.add_argument("--row", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--budget-gib", type=float, default=22.8)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one other")
    parser.add_argument("--one-document", action="store_true")
    parser.add_argument("--points", default=":", help="of the grid: 0:6")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit", help="of the code, where it is no checkout")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "benchmarks/memory.py", *(arguments or sys.argv[1:])])
    if options.grid:
        return _grid(options, command)
    trial = Trial(
        shapes=options.shapes,
        row=options.row,
        rows=1 if options.longest or options.head else options.rows,
        budget_gib=options.budget_gib if options.longest else None,
        layers=options.layers,
        steps=options.steps,
        warmup=1,
        one_document=options.one_document,
        label="longest" if options.longest else "least",
    )
    if options.head:
        for share in (1.0, 0.5):
            print(json.dumps(measure_head(options.shapes, options.row, share)))
        return 0
    if options.child:
        return _child(Trial(**json.loads(options.trial)), options)
    kind = "--longest" if options.longest else "--least"
    more = ["--by-running"] if options.by_running else []
    record = run_trial("memory.py", trial, kind, "--child", *more)
    if "seconds" in record:
        tell(record)
    else:
        print(json.dumps(record))
    return int("failed" in record)


if __name__ == "__main__":
    sys.exit(main())
