"""How much host memory a process can take, by what the kernel says of it.

A forecast on the user side and a rank that is about to pin memory ask the same question and must
get the same answer. Invariant: nothing is guessed; where the kernel tells nothing, neither do we.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class HostMemory:
    """How much host memory a process can take, and what says so.

    Attributes:
        available_bytes: without swapping and without being killed.
        bound: what sets it, in words for an error message.
    """

    available_bytes: int
    bound: str


def available_host_memory(root: Path = Path("/")) -> HostMemory | None:
    """Give what the machine and every control group above this process still allow.

    Pages of files count as available, as they do in the kernel's own estimate.

    Args:
        root: where ``proc`` lies; the paths of control groups are taken below it too.

    Returns:
        The tightest bound; None where the kernel tells nothing.
    """
    bounds = list(_group_bounds(root))
    if (machine := _machine_bytes(root)) is not None:
        bounds.append(HostMemory(machine, "MemAvailable"))
    return min(bounds, key=lambda bound: bound.available_bytes, default=None)


def _machine_bytes(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return None


def _group_bounds(root: Path) -> Iterator[HostMemory]:
    """Give what each limited control group leaves, from the process's own up to the highest."""
    groups = _own_groups(root)
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")[:3]  # what is mounted may have no name at all
        shown, mounted = before.split()[3:5]
        if kind == "cgroup2":
            group, limit, usage, inactive = (
                groups.get(""),
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif kind == "cgroup" and "memory" in options.split(","):
            group, limit, usage, inactive = (
                groups.get("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        if group is None:
            continue
        top = root / mounted.lstrip("/")
        # A container may see only its own part of the hierarchy, mounted as if it were the root.
        is_inside = PurePosixPath(group).is_relative_to(shown)
        folder = top / PurePosixPath(group).relative_to(shown) if is_inside else top
        for at in (folder, *folder.parents):
            bound = _group_bound(at, limit, usage, inactive)
            if bound is not None:
                yield bound
            if at == top:
                break


def _own_groups(root: Path) -> dict[str, str]:
    """Give the control group of this process per controller; "" is the unified hierarchy."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _group_bound(folder: Path, limit: str, usage: str, inactive: str) -> HostMemory | None:
    try:
        allowed = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
    except (OSError, ValueError):  # no such file at the highest group, or the word "max"
        return None
    reclaimable = sum(
        int(line.split()[1])
        for line in _lines(folder / "memory.stat")
        if line.startswith(f"{inactive} ")
    )
    return HostMemory(max(0, allowed - used + reclaimable), f"limit of control group {folder}")


def _lines(path: Path) -> list[str]:
    try:
        # Names of mounts are bytes, of which only the newline ends a line.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return [line for line in lines if line]
