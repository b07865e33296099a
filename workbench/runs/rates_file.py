"""What a GPU reached when it was measured, and a CPU in a run: kept under the user's cache.

Written by a worker, read by whoever forecasts, without torch. Invariant: a file that cannot be
read, or that cannot be true, is as good as none, and none is no reason to end anything.
"""

import contextlib
import math
import os
import platform
import re
from pathlib import Path

import msgspec

from workbench.config.rates import MeasuredRates
from workbench.runs.atomic import write_atomically


class _RatesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file's content; rates are FLOP/s and bytes per second."""

    gpu: str
    torch: str
    products: float
    memory: float
    up: float
    down: float
    both: float


def rates_path(gpu_name: str, torch_version: str) -> Path:
    """Say where the rates of a GPU under a version of torch are kept.

    Raises:
        RuntimeError: neither XDG_CACHE_HOME nor a home folder is known.
    """
    return _folder() / f"rates-{_plain(gpu_name)}-{_plain(torch_version)}.json"


def write_rates(gpu_name: str, torch_version: str, rates: MeasuredRates) -> None:
    """Keep what was measured.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: neither XDG_CACHE_HOME nor a home folder is known.
    """
    record = _RatesRecord(
        gpu=gpu_name,
        torch=torch_version,
        products=rates.products,
        memory=rates.memory,
        up=rates.up,
        down=rates.down,
        both=rates.both,
    )
    path = rates_path(gpu_name, torch_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_rates(gpu_name: str | None, torch_version: str | None = None) -> MeasuredRates | None:
    """Give what a GPU reached; None where it was not measured.

    Args:
        gpu_name: as torch and nvidia-smi give it; None where there is none.
        torch_version: whose measurement counts; None takes the newest of any.
    """
    if gpu_name is None:
        return None
    try:
        if torch_version is not None:
            paths = [rates_path(gpu_name, torch_version)]
        else:
            named = _folder().glob(f"rates-{_plain(gpu_name)}-*.json")
            paths = sorted(named, key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return None
    for path in paths:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_RatesRecord)
        except (OSError, msgspec.DecodeError):
            continue
        found = _believable(record)
        if record.gpu == gpu_name and found is not None:
            return found
    return None


def write_cpu_rates(
    width: int, weight_bytes: int, torch_version: str, rates: MeasuredRates
) -> None:
    """Keep what this CPU reached in a run of a model so wide; ``up`` to ``both`` mean nothing.

    Args:
        width: ``hidden_size`` of the model: narrow products reach a fraction of what wide ones do.
        weight_bytes: of one element.
        torch_version: that ran.
        rates: as the run's own steps say.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: neither XDG_CACHE_HOME nor a home folder is known.
    """
    write_rates(f"{_cpu_name(weight_bytes)}{width}", torch_version, rates)


def read_cpu_rates(width: int, weight_bytes: int) -> MeasuredRates | None:
    """Give what this CPU reached in a run of a model as wide, or else about as wide.

    One up to twice as wide, or half as wide at least, counts; None where there is none.
    """
    begin = _cpu_name(weight_bytes)
    widths = set()
    try:
        for path in _folder().glob(f"rates-{_plain(begin)}-*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                name = msgspec.json.decode(path.read_bytes(), type=_RatesRecord).gpu
                if name.startswith(begin) and name.removeprefix(begin).isdigit():
                    widths.add(int(name.removeprefix(begin)))
    except (OSError, RuntimeError):
        return None
    near = [each for each in widths if width <= 2 * each and each <= 2 * width]
    # The nearest is the one that differs by the smallest factor.
    for each in sorted(near, key=lambda other: max(width / other, other / width)):
        if (found := read_rates(f"{begin}{each}")) is not None:
            return found
    return None


def _cpu_name(weight_bytes: int) -> str:
    """Name this CPU, as many cores as this process may use, and the width's place behind them."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {8 * weight_bytes} bits, width "


def _believable(record: _RatesRecord) -> MeasuredRates | None:
    rates = MeasuredRates(
        products=record.products,
        memory=record.memory,
        up=record.up,
        down=record.down,
        both=record.both,
    )
    values = (rates.products, rates.memory, rates.up, rates.down, rates.both)
    return rates if all(math.isfinite(value) and value > 1e6 for value in values) else None


def _folder() -> Path:
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (stated if stated.is_absolute() else Path.home() / ".cache") / "workbench"


def _plain(name: str) -> str:
    """Give a name as part of a file's: ``NVIDIA H200`` is ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
