"""What to change when memory ran out in a run that was planned to fit: cheapest first.

Three things can be behind it: others took the memory that the plan had counted on, the plan was
short, or the allocator holds memory in pieces that are too small. What was measured when it
happened tells which. Knows no torch and asks no machine: all it has are arguments.

Invariant: a remedy that names a key names its value too, and was estimated with it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from workbench.config.memory_fit import Counts, Fit, Machine, fit
from workbench.config.memory_levers import Lever, levers, with_overrides
from workbench.config.memory_parts import CONTEXT_BYTES, GIB, MARGIN, MIB, outside_bytes
from workbench.config.model_facts import ModelFacts
from workbench.config.schema.config import Config
from workbench.config.yaml_reader import write_scalar

_FIRST_LEVERS, _LAST_LEVERS = 3, 2
# Others on a card count from here on: a screen takes less.
_OTHERS_BYTES = 512 * MIB
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB}


@dataclass(frozen=True, kw_only=True)
class GpuShortage:
    """What one process had of a GPU when an allocation failed; bytes.

    Attributes:
        requested: by the allocation; 0 where the error does not say.
        allocated: in use, as torch's allocator counts.
        reserved: held by it, in use or not.
        allowed: that it may hold; None without a bound.
        free: on the card.
        total: of the card.
        is_expandable: the allocator may join what it holds (``expandable_segments``).
    """

    requested: int
    allocated: int
    reserved: int
    allowed: int | None
    free: int
    total: int
    is_expandable: bool = True

    @property
    def attainable(self) -> int:
        """Give the bytes that the allocator could hold at most at that moment."""
        most = self.reserved + self.free
        return most if self.allowed is None else min(most, self.allowed)

    @property
    def missing(self) -> int:
        """Give the bytes that were too few; 0 where they were there, but not in one piece."""
        return max(0, self.reserved + self.requested - self.attainable)

    @property
    def others(self) -> int:
        """Give the bytes of other processes, and of the driver for them."""
        return max(0, self.total - self.free - self.reserved - CONTEXT_BYTES)

    @property
    def is_crowded(self) -> bool:
        """Say whether this process had a right to more, and others had taken it."""
        within = self.allowed is None or self.reserved + self.requested <= self.allowed
        return within and self.free < self.requested and self.others > _OTHERS_BYTES

    @property
    def is_fragmented(self) -> bool:
        """Say whether what the allocator held unused would have been enough in one piece."""
        unused = self.reserved - self.allocated
        return unused >= max(self.requested, _OTHERS_BYTES)


def requested_bytes(message: str) -> int:
    """Read from an error of torch how much was asked for; 0 where it does not say.

    "Tried to allocate 2.00 GiB" gives 2147483648.
    """
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ([KMG]iB|bytes)", message)
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def gpu_remedies(
    config: Config,
    facts: ModelFacts,
    shortage: GpuShortage,
    *,
    machine: Machine,
    counts: Counts | None = None,
) -> list[str]:
    """Give what may be done about a lack of GPU memory, cheapest first.

    Args:
        config: of the run.
        facts: of its model.
        shortage: what was measured.
        machine: what the run was planned against: ``gpu_free_bytes`` is what was free then.
        counts: of its prepared data.
    """
    now = fit(config, facts, machine, counts)
    return [
        *_about_others(shortage),
        *_about_pieces(shortage),
        *_about_the_budget(config, facts, shortage, machine, counts, now),
        *_lever_lines(levers(config, facts, machine, counts, now), shortage.missing),
    ]


def host_remedies(
    config: Config,
    facts: ModelFacts,
    *,
    machine: Machine,
    counts: Counts | None = None,
    requested: int = 0,
    limit: int | None = None,
) -> list[str]:
    """Give what may be done about a lack of host memory, cheapest first.

    Args:
        config: of the run.
        facts: of its model.
        machine: what the run was planned against.
        counts: of its prepared data.
        requested: bytes of the allocation that failed; 0 where not known.
        limit: of the process's address space; None without one.
    """
    now = fit(config, facts, machine, counts)
    found: list[Lever] = []
    if now.is_gpu:
        found = list(_host_levers(config, facts, machine, counts, now))
    else:
        found = levers(config, facts, machine, counts, now)
    lines = []
    if limit is not None:
        lines.append(f"raise the limit of {_gib(limit)} on the memory of a process: ulimit -v")
    needed = f"the run needs about {_gib(now.host_needed)}" if now.host_needed else "it needs more"
    lines.append(f"end what else takes host memory: {needed}")
    return [*lines, *_lever_lines(found, requested)]


def numbered(remedies: list[str]) -> str:
    """Write remedies below each other, in their order; one alone has no number."""
    if len(remedies) == 1:
        return remedies[0]
    return "\n".join(f"{number}. {remedy}" for number, remedy in enumerate(remedies, start=1))


# ---- what else could be wrong ------------------------------------------------------------------


def _about_others(shortage: GpuShortage) -> Iterator[str]:
    if shortage.is_crowded:
        yield (
            f"end what else runs on this GPU, or choose another with -d: other processes hold "
            f"{_gib(shortage.others)} of its {_gib(shortage.total)}"
        )


def _about_pieces(shortage: GpuShortage) -> Iterator[str]:
    if not shortage.is_fragmented:
        return
    unused = shortage.reserved - shortage.allocated
    words = f"torch holds {_gib(unused)} in pieces that it cannot join"
    if shortage.is_expandable:
        yield f"start again: {words}, and a new process begins without them"
    else:
        yield f"set PYTORCH_ALLOC_CONF=expandable_segments:True in the environment: {words}"


def _about_the_budget(
    config: Config,
    facts: ModelFacts,
    shortage: GpuShortage,
    machine: Machine,
    counts: Counts | None,
    now: Fit,
) -> Iterator[str]:
    """Give the budget under which the plan leaves room for what was not foreseen.

    That is what the process could have had, less what it took beyond its plan. Keys that state a
    form leave the planner no choice, and then there is no such budget.
    """
    planned = now.worst.total
    outside = outside_bytes(now.worst.host.pinned)
    beyond = max(0, shortage.reserved + shortage.requested + outside - planned)
    budget = (shortage.attainable + outside - beyond) * (1 - MARGIN)
    gib = math.floor(10 * budget / GIB) / 10
    if gib <= 0 or gib * GIB >= planned:
        return
    changed = with_overrides(config, {"memory.budget_gib": gib})
    found = fit(changed, facts, machine, counts)
    if found.verdict in ("fits", "tight"):
        why = "what others leave of the GPU" if shortage.is_crowded else "room for what it took"
        yield f"memory.budget_gib: {gib:g} ({why}{_cost_words(_ratio(found, now))})"


# ---- levers ------------------------------------------------------------------------------------


def _lever_lines(found: list[Lever], missing: int) -> list[str]:
    """Say what the first levers take off: those that are enough by themselves come first.

    Of several values for the same keys one is named: the cheapest that is enough, else the one
    that takes most.
    """
    usable = [lever for lever in found if lever.can_start]
    best: dict[tuple[str, ...], Lever] = {}
    for lever in usable:
        keys = tuple(lever.overrides)
        other = best.get(keys)
        if other is None or other.saved_bytes < min(missing, lever.saved_bytes):
            best[keys] = lever
    ranked = sorted(
        best.values(), key=lambda lever: (lever.saved_bytes < missing, lever.time_ratio)
    )
    gentle = [lever for lever in ranked if not lever.changes_training][:_FIRST_LEVERS]
    firm = [lever for lever in ranked if lever.changes_training][:_LAST_LEVERS]
    return [_lever_line(lever) for lever in (*gentle, *firm)]


def _lever_line(lever: Lever) -> str:
    keys = ", ".join(f"{key}: {write_scalar(value)}" for key, value in lever.overrides.items())
    saved = lever.saved_bytes
    amount = _gib(saved) if saved >= GIB else f"{saved / MIB:,.0f} MiB"
    other = ", in a new run: other losses" if lever.changes_training else ""
    return f"{keys} (takes {amount} off{_cost_words(lever.time_ratio)}{other})"


def _cost_words(ratio: float) -> str:
    """Say how much slower a change is, where that shows."""
    return f", {ratio - 1:.0%} slower" if ratio >= 1.005 else ""


def _ratio(found: Fit, now: Fit) -> float:
    return (found.seconds / found.step_tokens) / (now.seconds / now.step_tokens)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB"


def _host_levers(
    config: Config, facts: ModelFacts, machine: Machine, counts: Counts | None, now: Fit
) -> Iterator[Lever]:
    """Give what takes host memory off a run on a GPU: what waits there."""
    for words, overrides in _host_candidates(config):
        changed = with_overrides(config, overrides)
        found = fit(changed, facts, machine, counts)
        saved = now.host_needed - found.host_needed
        if saved <= 0 or found.worst.total > (found.budget_bytes or found.worst.total):
            continue
        yield Lever(
            words=words,
            overrides=overrides,
            saved_bytes=saved,
            time_ratio=_ratio(found, now),
            changes_training=any(
                key.startswith(("data.", "optimizer.", "batch.train")) for key in overrides
            ),
            can_start=True,
            verdict=found.verdict,
            total=found.worst.total,
            host_bytes=found.host_needed,
        )


def _host_candidates(config: Config) -> Iterator[tuple[str, Mapping[str, object]]]:
    memory, optimizer = config.memory, config.optimizer
    if memory.recompute != "full":
        yield "recompute blocks in backward", {"memory.recompute": "full"}
    if memory.block_inputs != "gpu":
        yield "keep block inputs on the GPU", {"memory.block_inputs": "gpu"}
    for share in (0.5, 1.0):
        if memory.resident_fraction != share:
            yield "keep more blocks on the GPU", {"memory.resident_fraction": share}
    if optimizer.rounding == "exact":
        yield "round weights stochastically", {"optimizer.rounding": "stochastic"}
    if optimizer.name != "adafactor":
        yield "keep factored statistics alone", {"optimizer.name": "adafactor"}
    yield "shorter rows", {"data.max_length": max(1, config.data.max_length // 2)}
    if config.batch.train > 1 and config.batch.microbatches == "auto":
        yield "fewer rows", {"batch.train": config.batch.train // 2}
