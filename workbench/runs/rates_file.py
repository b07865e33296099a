"""What a GPU reached when it was measured, kept per GPU and torch under the user's cache.

Written by a worker, read by whoever forecasts, without torch. Invariant: a file that cannot be
read, or that cannot be true, is as good as none, and none is no reason to end anything.
"""

import math
import os
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
