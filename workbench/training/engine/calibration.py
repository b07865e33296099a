"""How fast this GPU is, measured once: products, device memory, and the link to the host.

A second or two in the first run on a GPU under a version of torch; the result is kept under the
user's cache, so that forecasts rest on it too. Invariant: nothing that fails here ends a run, and
no random number that training draws is taken.
"""

import itertools
import logging
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from workbench.config.rates import MeasuredRates, Rates, rates_of
from workbench.errors import WorkbenchError
from workbench.runs.rates_file import read_cpu_rates, read_rates, write_cpu_rates, write_rates
from workbench.training.engine.host_memory import pinned_bytes
from workbench.training.engine.plan import Plan

logger = logging.getLogger(__name__)

# A 7 B's MLP: narrower models are priced by what their width reaches of it.
_ROWS, _HIDDEN, _INNER = 4096, 4096, 14336
# Larger than any cache, and large enough that a copy's start does not count.
_MOVED_BYTES, _COPIED_BYTES = 256 << 20, 64 << 20
_REPEATS, _WARM_UP = 12, 4
# An idle card runs at low clocks, and its link too: so long it works before anything counts.
_WAKING_SECONDS = 0.5


def rates_here(
    device: torch.device, *, width: int | None = None, dtype: torch.dtype = torch.float32
) -> Rates:
    """Give the rates of this machine: kept ones, else measured now, else those of a table.

    Args:
        device: that trains; a CPU's are those of an earlier run here.
        width: of the model; None asks for no CPU's.
        dtype: of its weights.
    """
    if device.type != "cuda":
        measured = None if width is None else read_cpu_rates(width, dtype.itemsize)
        return rates_of(gpu_name=None, is_gpu=False, measured=measured)
    name, version = torch.cuda.get_device_name(device), str(torch.__version__)
    measured = read_rates(name, version)
    if measured is None:
        measured = _try_to_measure(device, name, version)
    return rates_of(gpu_name=name, measured=measured)


def keep_cpu_rates(plan: Plan, step_seconds: float, *, width: int, dtype: torch.dtype) -> None:
    """Keep what this CPU reached in a run, for forecasts of the next ones.

    Args:
        plan: of the run.
        step_seconds: that its steps took.
        width: of its model.
        dtype: of its weights.
    """
    if plan.seconds is None or plan.rates is None:
        return
    ratio = plan.seconds.total / step_seconds
    memory = ratio * plan.rates.memory
    reached = MeasuredRates(
        products=ratio * plan.rates.products, memory=memory, up=memory, down=memory, both=memory
    )
    try:
        write_cpu_rates(width, dtype.itemsize, str(torch.__version__), reached)
    except (OSError, RuntimeError) as error:
        logger.info("the speed of this CPU cannot be kept: %s", error)


def _try_to_measure(device: torch.device, name: str, version: str) -> MeasuredRates | None:
    try:
        measured = measure_rates(device)
    except (RuntimeError, WorkbenchError) as error:  # no room, or another process holds the GPU
        logger.info("%s was not measured: %s; rates of a table are taken", name, error)
        return None
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    logger.info(
        "%s measured: products %.0f TFLOP/s, memory %.2f TB/s, link %.0f GB/s up, %.0f down, "
        "%.0f each way at once",
        name,
        measured.products / 1e12,
        measured.memory / 1e12,
        measured.up / 1e9,
        measured.down / 1e9,
        measured.both / 1e9,
    )
    try:
        write_rates(name, version, measured)
    except (OSError, RuntimeError) as error:
        logger.info("what was measured cannot be kept: %s", error)
    return measured


def measure_rates(device: torch.device) -> MeasuredRates:
    """Time products of a 7 B's widths, a pass over device memory, and copies either way.

    Takes up to 640 MiB of the GPU for it, and gives them back to torch's allocator.

    Raises:
        RuntimeError: no room on the GPU.
        WorkbenchError: no room in host memory.
    """
    products = _product_rate(device)
    here, there = (torch.zeros(_MOVED_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    memory = 2 * _MOVED_BYTES / _seconds(lambda: there.copy_(here), device)
    up, down, both = _link_rates(here[:_COPIED_BYTES], there[:_COPIED_BYTES], device)
    return MeasuredRates(products=products, memory=memory, up=up, down=down, both=both)


def _product_rate(device: torch.device) -> float:
    """Give the FLOP/s of the three products that one matrix takes part in."""
    generator = torch.Generator(device).manual_seed(0)
    # Zeros would multiply faster than anything real.
    rows_TD, weight_FD, wide_TF = (
        torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=generator)
        for shape in ((_ROWS, _HIDDEN), (_INNER, _HIDDEN), (_ROWS, _INNER))
    )
    out_TD, out_FD, out_TF = (torch.empty_like(each) for each in (rows_TD, weight_FD, wide_TF))

    def products() -> None:
        torch.mm(rows_TD, weight_FD.t(), out=out_TF)
        torch.mm(wide_TF, weight_FD, out=out_TD)
        torch.mm(wide_TF.t(), rows_TD, out=out_FD)

    awake = time.monotonic() + _WAKING_SECONDS
    while time.monotonic() < awake:
        products()
        torch.cuda.synchronize(device)
    return 3 * 2 * _ROWS * _HIDDEN * _INNER / _seconds(products, device)


def _link_rates(here: Tensor, there: Tensor, device: torch.device) -> tuple[float, float, float]:
    """Give the bytes per second up, down, and of each way while both run.

    Args:
        here: (bytes,) uint8 on the device; overwritten.
        there: (bytes,) uint8 on the device; read.
        device: of both.
    """
    host_up, host_down = (
        pinned_bytes(len(here), purpose="buffers that measure the link", device=device)
        for _ in range(2)
    )
    other: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    first = torch.cuda.current_stream(device)

    def up() -> None:
        here.copy_(host_up, non_blocking=True)

    def down() -> None:
        host_down.copy_(there, non_blocking=True)

    def both() -> None:
        other.wait_stream(first)
        with torch.cuda.stream(other):
            down()
        up()
        first.wait_stream(other)

    rates = tuple(len(here) / _seconds(work, device) for work in (up, down, both))
    return rates[0], rates[1], rates[2]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Give the median time of some work on the device, warmed up."""
    for _ in range(_WARM_UP):
        work()
    marks: list[torch.cuda.Event] = []
    for _ in range(_REPEATS + 1):
        mark: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        marks.append(mark)
    stream = torch.cuda.current_stream(device)
    stream.record_event(marks[0])
    for mark in marks[1:]:
        work()
        stream.record_event(mark)
    torch.cuda.synchronize(device)
    times = [float(one.elapsed_time(other)) for one, other in itertools.pairwise(marks)]
    return statistics.median(times) / 1000
