"""What a measurement was taken on: machine, versions, and what the machine can do at best."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).parents[1]
_COPIED_BYTES = 256 << 20


def choose_device() -> torch.device:
    """Give the first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, str]:
    """Say which hardware, driver and versions these are, and which commit of this repository."""
    found = {
        "commit": _commit(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "driver": _driver() if device.type == "cuda" else "none",
        "cpu": _cpu(),
        "host memory": f"{_meminfo('MemTotal') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
    }
    for package in ("triton", "transformers", "liger_kernel"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def describe_apart() -> dict[str, str]:
    """Describe the first GPU's machine from a process of its own.

    Who looks at a GPU keeps memory of it, half a GiB, which others would count as taken.
    """
    said = subprocess.run(
        [sys.executable, __file__], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return dict(json.loads(said.splitlines()[-1]))


def gpu_slug(name: str) -> str:
    """Give the short name of a GPU for a file name: ``NVIDIA H200`` is h200, none is cpu."""
    if name == "none":
        return "cpu"
    words = name.lower().replace("nvidia", "").replace("geforce", "").split()
    return "-".join(words)


def ceilings(
    device: torch.device, *, tokens: int, hidden: int, intermediate: int, dtype: torch.dtype
) -> dict[str, float]:
    """Measure what nothing can exceed: products, copies, memory.

    Returns:
        FLOP/s of a square product and of the model's widest one, bytes/s of copies up, down and of
        each while both run, bytes/s of device memory, read and written. Copies only on a GPU.
    """
    square = 8192 if device.type == "cuda" else 512
    found = {
        "product_flops": _product(device, dtype, square, square, square),
        "model_product_flops": _product(device, dtype, tokens, hidden, 2 * intermediate),
    }
    size = _COPIED_BYTES if device.type == "cuda" else 1 << 24
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _timed(device, lambda: target.copy_(source))
    found["memory_bytes_per_second"] = 2 * size / seconds
    if device.type == "cuda":
        found |= _copies(source, target)
    return found


def _copies(source: Tensor, target: Tensor) -> dict[str, float]:
    device, size = source.device, source.numel()
    first, second = (torch.ones(size, dtype=torch.uint8, pin_memory=True) for _ in range(2))
    streams = [torch.cuda.Stream(device) for _ in range(2)]

    def up() -> None:
        with torch.cuda.stream(streams[0]):
            source.copy_(first, non_blocking=True)

    def down() -> None:
        with torch.cuda.stream(streams[1]):
            second.copy_(target, non_blocking=True)

    def both() -> None:
        up()
        down()

    names = ("up_bytes_per_second", "down_bytes_per_second", "both_bytes_per_second")
    return {
        name: size / _timed(device, do) for name, do in zip(names, (up, down, both), strict=False)
    }


def _product(device: torch.device, dtype: torch.dtype, rows: int, inner: int, wide: int) -> float:
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(wide, inner, device=device).to(dtype)
    return 2 * rows * inner * wide / _timed(device, lambda: left @ right.t())


def _timed(device: torch.device, do: object, repeats: int = 10) -> float:
    """Give the seconds of one call, the mean over some, after a few to warm up."""
    for _ in range(3):
        do()  # type: ignore[operator]
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        do()  # type: ignore[operator]
    synchronize(device)
    return (time.perf_counter() - begin) / repeats


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "workbench", "benchmarks"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
    return f"{commit}, {'with uncommitted changes' if changed else 'clean'}"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split("\n")[0].strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} usable"
    return platform.machine()


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    print(json.dumps(describe(choose_device())))
