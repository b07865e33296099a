"""Time the products of a block by the rows that pass it together: what a tile of the MLP costs.

    python benchmarks/products.py --shapes mistral-7b

A row per number of rows: microseconds and TFLOP/s of gate and up forward, of the gradient that goes
back through them, and of the gradient of their weights, added to a sum in bfloat16 and in fp32;
then the same of the down projection. Launches wait behind a pause on the device, so only time there
counts. ``config/time_plan.py`` takes its constants from here.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from machine import describe
from shapes import SHAPES, dimensions
from torch import Tensor

from workbench.training.gradient import add_product

DEVICE = torch.device("cuda")
ROWS = (128, 256, 512, 1024, 2048, 4096, 8192)
PAUSE_CYCLES, REPEATS, CALLS = 2_000_000, 5, 6


def median_seconds(call: Callable[[], object]) -> float:
    """Time one call, several in a row."""
    times = []
    for _ in range(REPEATS + 1):  # the first warms up
        begin: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda._sleep(PAUSE_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / CALLS)
    return float(statistics.median(times[1:]))


def normal(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="mistral-7b")
    options = parser.parse_args()
    dims = dimensions(options.shapes)
    hidden, inner = dims.hidden_size, dims.intermediate_size
    print(", ".join(f"{name} {value}" for name, value in describe(DEVICE).items()))
    for name, into, out in (("gate and up", hidden, 2 * inner), ("down", inner, hidden)):
        weight = normal(out, into)
        sums = [
            torch.zeros(out, into, dtype=dtype, device=DEVICE)
            for dtype in (torch.bfloat16, torch.float32)
        ]
        print(f"\n{name}, {out} x {into}: µs, TFLOP/s\n")
        print("| rows | forward | back | bf16 sum | fp32 sum |\n|---|---|---|---|---|")
        for rows in ROWS:
            x, gradient = normal(rows, into), normal(rows, out)
            calls: list[Callable[[], object]] = [
                partial(torch.mm, x, weight.t()),
                partial(torch.mm, gradient, weight),
                *(partial(add_product, onto, gradient, x) for onto in sums),
            ]
            flop = 2 * rows * into * out
            cells = []
            for call in calls:
                seconds = median_seconds(call)
                cells.append(f"{1e6 * seconds:.1f}, {flop / seconds / 1e12:.0f}")
            print(f"| {rows} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
