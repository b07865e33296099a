"""Measure the peak of a layer-major step over a grid of shapes and rows, beside its prediction.

    PYTORCH_ALLOC_CONF=expandable_segments:True python benchmarks/memory.py [--shapes mistral-7b …]

Needs a CUDA device. Prints one JSON line per setting, then a table. A prediction is written down
before its step runs. Weights, ids and masks are random, half of the tokens are targets, rows are
packed. ``tests/assets/measured_peaks.json`` holds such lines; the arithmetic is tested on them.
"""

import argparse
import gc
import json
import sys
import time

import torch
from throughput import SHAPES, dimensions, make_engine, random_rows

from workbench.config.memory_parts import GIB
from workbench.training.engine.plan import choose_plan
from workbench.training.engine.weight_store import ResidentStore

# tokens of a row, rows of a step, microbatches
GRID = {
    "qwen-0.5b": [(512, 8, 1), (4096, 4, 2)],
    "1b": [(4096, 4, 1), (4096, 4, 2), (4096, 4, 4), (512, 8, 1), (16384, 1, 1)],
    "qwen-1.5b": [(512, 8, 1), (2048, 8, 2), (4096, 4, 4), (4096, 4, 1)],
    "llama-2-7b": [(512, 8, 1), (4096, 4, 4), (4096, 4, 2)],
    "mistral-7b": [
        (512, 8, 1),
        (512, 1, 1),
        (1300, 8, 1),
        (1300, 8, 2),
        (1300, 8, 8),
        (4096, 4, 4),
        (4096, 4, 2),
        (4096, 4, 1),
        (2048, 8, 2),
        (8192, 2, 2),
        (16384, 1, 1),
    ],
    "llama-3.1-8b": [(512, 8, 1), (4096, 4, 4), (2048, 8, 2)],
    # Not among the lines the arithmetic was fitted to.
    "llama-2-13b": [(1024, 8, 2), (4096, 2, 1)],
    "qwen-7b": [(1024, 8, 1), (3000, 5, 5)],
}
_STEPS = 4


def measure(shape: str, device: torch.device) -> list[dict[str, object]]:
    """Run every setting of a shape over one set of weights; print and give what was seen."""
    dims = dimensions(shape)
    store = ResidentStore(dims, torch.bfloat16, device)
    for _, weight in store.named_tensors():
        if weight.dim() > 1:
            weight.normal_(0, 0.02)
        else:
            weight.fill_(1)
    records = []
    for row, rows, microbatches in GRID[shape]:
        plan = choose_plan(
            dims,
            dtype=torch.bfloat16,
            sum_dtype="auto",
            microbatches=microbatches,
            rows=rows,
            row_length=row,
            budget_bytes=1 << 40,  # whatever it takes: the point is to see how much
        )
        engine = make_engine(dims, store, plan, torch.bfloat16, device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for number in range(1, _STEPS + 1):
            step_rows = random_rows(dims, rows, row, microbatches, number)
            torch.cuda.synchronize(device)
            begin = time.perf_counter()
            engine.step(step_rows, number, 1e-6)
            torch.cuda.synchronize(device)
            seconds.append(round(time.perf_counter() - begin, 3))
        free, total = torch.cuda.mem_get_info(device)
        record: dict[str, object] = {
            "shape": shape,
            "row": row,
            "rows": rows,
            "microbatches": microbatches,
            "sum_dtype": plan.sum_dtype,
            "predicted": plan.predicted.reserved,
            "predicted_allocated": plan.predicted.peak,
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
            "outside_torch": total - free - torch.cuda.memory_reserved(device),
            "seconds": seconds,
            "tokens_per_second": round(row * rows / min(seconds)),
        }
        print(json.dumps(record), flush=True)
        records.append(record)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return records


def table(records: list[dict[str, object]]) -> str:
    """Give the records as a table; the last column is how far the prediction is off."""
    lines = [
        "| shapes | row × rows, parts | predicted GiB | reserved | allocated | off | tokens/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in records:
        predicted, reserved, allocated = (
            float(str(each[name])) / GIB for name in ("predicted", "reserved", "allocated")
        )
        lines.append(
            f"| {each['shape']} | {each['row']} × {each['rows']}, {each['microbatches']} "
            f"| {predicted:.2f} | {reserved:.2f} | {allocated:.2f} "
            f"| {predicted / reserved - 1:+.1%} | {each['tokens_per_second']:,} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=sorted(GRID), nargs="+", default=list(GRID))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    records = []
    for shape in options.shapes:
        assert shape in SHAPES
        records += measure(shape, device)
        gc.collect()
        torch.cuda.empty_cache()
    print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
