"""What a run was started in: versions, GPUs and driver, git commit and what it does not hold.

Asks the installed packages' metadata and two programs, each with a limit; imports none of them.
What cannot be found is null. Invariant: no environment variable is recorded but those that steer
torch, so that no secret comes into a run folder.
"""

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from workbench.runs.job_file import this_host

PACKAGES = ("workbench", "torch", "transformers", "tokenizers", "safetensors", "numpy", "msgspec")
RECORDED_PREFIXES = ("NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "OMP_", "MKL_")

LARGEST_DIFF_BYTES = 16 << 20
_SECONDS = 10.0


@dataclass(frozen=True)
class Surroundings:
    """Content of environment.json, and what the working tree holds beyond its commit."""

    environment: dict[str, object]
    git_diff: bytes
    num_dirty_files: int = 0


def look_around(folder: Path) -> Surroundings:
    """Collect what a run is started in; ``folder`` is where git is asked."""
    commit = _ask(folder, "git", "rev-parse", "HEAD")
    dirty: list[str] = []
    diff = b""
    if commit is not None:
        status = _ask(folder, "git", "status", "--porcelain", "--untracked-files=normal") or b""
        dirty = status.decode("utf-8", errors="replace").splitlines()
        if dirty:
            diff = _ask(folder, "git", "diff", "--binary", "HEAD") or b""
    if len(diff) > LARGEST_DIFF_BYTES:
        diff = diff[:LARGEST_DIFF_BYTES] + b"\n# cut here: the difference is larger\n"
    environment: dict[str, object] = {
        "time": time.time(),
        "host": this_host(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in PACKAGES},
        "gpus": list_gpus(),
        "git": None if commit is None else {"commit": commit.decode().strip(), "dirty": dirty},
        "folder": str(folder),
        "command_line": sys.argv,
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(RECORDED_PREFIXES)
        },
    }
    return Surroundings(environment, diff, len(dirty))


def list_gpus() -> list[dict[str, object]]:
    """Name the GPUs that nvidia-smi knows, with memory and driver; [] without any.

    Each has index, name, memory_bytes, free_bytes (None where it is not told) and driver.
    """
    answer = _ask(
        Path("/"),
        "nvidia-smi",
        "--query-gpu=index,name,memory.total,memory.free,driver_version",
        "--format=csv,noheader,nounits",
    )
    gpus: list[dict[str, object]] = []
    for line in (answer or b"").decode("utf-8", errors="replace").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[0].isdigit():
            total, free = (int(each) << 20 if each.isdigit() else None for each in fields[2:4])
            gpus.append(
                {
                    "index": int(fields[0]),
                    "name": fields[1],
                    "memory_bytes": total,
                    "free_bytes": free,
                    "driver": fields[4],
                }
            )
    return gpus


def _ask(folder: Path, *command: str) -> bytes | None:
    """Give what a program says, None where it is missing, fails, or takes too long."""
    try:
        answer = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
