"""Two hundred steps of random packed batches under a budget: no OOM, and nothing grows.

    python benchmarks/stress.py --shapes mistral-7b --budgets 22.8 15.2 7.2

Rows hold documents of 8 tokens to all of the row, from one to hundreds a row; rows are full, half
full or nearly empty, and now and then a whole row has no target. The plan is made once, for full
rows of the shortest documents; the first step has such rows, the second one document per row. After
step 10 torch must never reserve more than it did: one byte of growth is a failure, exit status 1.
Each budget is a process of its own. On an H200 with the defaults, one row of 2,048: 0.2 s a step
resident and 0.45 s streamed, so one to two minutes a budget; ``--steps`` takes fewer.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from machine import choose_device, synchronize
from our_step import Trial, _peaks, described, dimensions_of, make_engine, plan_of
from shapes import SHAPES, step_of
from throughput import run_trial

from workbench.config.memory_parts import GIB
from workbench.data.loader import StepRows
from workbench.data.packing import Row
from workbench.errors import RefusedError
from workbench.model.families import Dimensions
from workbench.training.engine.calibration import rates_here
from workbench.training.engine.plan import take_budget

SETTLED_STEPS = 10  # by then the allocator has seen every kind of row
_SHORTEST = 8  # tokens of a document: one word in each turn, and the template's own
BUDGETS = (22.8, 15.2, 7.2)


def stress_trial(shapes: str, row: int, rows: int, steps: int, budget_gib: float) -> Trial:
    """Give the trial of a budget; its plan knows of as many documents as a row can hold."""
    return Trial(
        shapes=shapes,
        row=row,
        rows=rows,
        budget_gib=budget_gib,
        steps=steps,
        label=f"budget {budget_gib} GiB",
        plan={"row_documents": row // _SHORTEST + 1},
    )


def varied_rows(
    dims: Dimensions,
    number: int,
    rows: int,
    length: int,
    microbatches: int,
    generator: np.random.Generator,
) -> StepRows:
    """Draw rows of a step: documents of any length, rows of any filling, some without a target."""
    made = []
    for _ in range(rows):
        size = int(generator.choice([length, length, length // 2 + 1, max(2, length // 16)]))
        # Log-uniform: as many rows of few long documents as of many short ones.
        longest = round(np.exp(generator.uniform(np.log(_SHORTEST), np.log(length))))
        if number <= 2:
            size, longest = length, _SHORTEST if number == 1 else 2 * length
        starts = [0]
        while (start := starts[-1] + int(generator.integers(_SHORTEST, longest + 1))) < size:
            starts.append(start)
        share = 0.9 if number == 1 else generator.choice([0.0, 0.1, 0.5, 0.9])
        targets = generator.random(size) < share
        targets[starts] = False
        ids = generator.integers(0, dims.vocabulary_size, size).astype(np.int32)
        made.append(Row(ids=ids, targets=targets, document_starts=np.array(starts, np.int32)))
    return step_of(made, length, microbatches)


def measure(trial: Trial) -> dict[str, Any]:
    """Run the steps of a trial; give what was reserved, when it grew, and the losses.

    What grew after it should have settled, or a loss that is not finite, is ``failed``.

    Raises:
        RefusedError: the budget or the host memory is too small for it.
    """
    device = choose_device()
    torch.set_float32_matmul_precision("high")
    dims = dimensions_of(trial)
    budget_bytes = take_budget(device, trial.budget_gib)
    plan = plan_of(trial, dims, budget_bytes, rates_here(device))
    engine = make_engine(trial, dims, plan, device)
    generator = np.random.default_rng(7)
    reserved, losses, documents = [], [], []
    for number in range(1, trial.steps + 1):
        rows = varied_rows(dims, number, trial.rows, trial.row, plan.microbatches, generator)
        documents.append(
            sum(int((each.document_starts < each.row_length).sum()) for each in rows.microbatches)
        )
        result = engine.step(rows, number, 1e-6)
        if rows.num_targets:
            losses.append(float(result.loss_sum) / rows.num_targets)
        synchronize(device)
        reserved.append(_peaks(device)["reserved"])
    record = {
        "system": "workbench",
        "trial": dataclasses.asdict(trial),
        "layers": dims.num_layers,
        "row_documents": trial.plan.get("row_documents", 1),
        "plan": described(plan),
        "predicted_reserved": plan.predicted.reserved,
        "reserved": reserved[-1],
        "reserved_settled": reserved[min(SETTLED_STEPS, len(reserved)) - 1],
        "grew": [
            [number, after]
            for number, (before, after) in enumerate(itertools.pairwise([0, *reserved]), start=1)
            if after > before
        ],
        "documents": [min(documents), max(documents)],
        "losses": [min(losses), max(losses)],
        "steps": len(reserved),
    }
    if not all(np.isfinite(losses)):
        return record | {"failed": "a loss that is not finite", "message": str(record["losses"])}
    if record["reserved"] != record["reserved_settled"]:
        return record | {"failed": "memory grew", "message": f"step and bytes: {record['grew']}"}
    return record


def _child(trial: Trial) -> int:
    try:
        record = measure(trial)
        print(json.dumps(record), flush=True)
    except (RefusedError, torch.OutOfMemoryError) as error:
        failed = {
            "system": "workbench",
            "trial": dataclasses.asdict(trial),
            "failed": type(error).__name__,
            "message": str(error)[:800],
        }
        print(json.dumps(failed), flush=True)
        return 1
    return int("failed" in record)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trial", nargs="?", help="a trial as JSON, for --child")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="mistral-7b")
    parser.add_argument("--row", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if options.child:
        return _child(Trial(**json.loads(options.trial)))
    failures = 0
    for budget in options.budgets:
        trial = stress_trial(options.shapes, options.row, options.rows, options.steps, budget)
        trial = dataclasses.replace(trial, layers=options.layers)
        record = run_trial("stress.py", trial, "--child")
        print(json.dumps(record), flush=True)
        if "failed" in record:
            failures += 1
            print(f"{trial.label}: {record['failed']}: {record['message']}", file=sys.stderr)
        else:
            print(
                f"{trial.label}: {record['steps']} steps, {record['documents'][0]} to "
                f"{record['documents'][1]} documents a step, reserved "
                f"{record['reserved'] / GIB:.2f} GiB from step {SETTLED_STEPS} on",
                file=sys.stderr,
            )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
