"""Ways out for a config that does not fit: one change, the fewest together, or other hardware.

Each is a config, or a machine, that was estimated; what does not help is left out. Host memory that
is short counts like memory of the GPU.

Invariant: with what is given here the config fits.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from workbench.config.memory_fit import SHARE_FREE, Counts, Fit, Machine, fit, free_bytes
from workbench.config.memory_levers import (
    SHORTEST_ROW,
    Lever,
    can_start,
    changes_training,
    left_open,
    single_levers,
    time_ratio,
    with_overrides,
)
from workbench.config.memory_parts import GIB, StepForm
from workbench.config.model_facts import ModelFacts
from workbench.config.plan_search import most_of_host
from workbench.config.rates import CARDS
from workbench.config.schema.config import Config

# A key that leaves a choice to the plan stays in a combination where it makes that so much faster.
_WORTH_KEEPING = 0.05
# A card has so many GiB more than a config's budget before that is worth a change.
_LARGER_GIB = 0.5
# Hardware is asked about up to here, in GiB.
_MOST_HOST, _MOST_GPU = 4096, 1024


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Changes that make a config fit together, and not with one of them left out.

    Attributes:
        overrides: the keys that change.
        found: the fit with them.
        time_ratio: seconds per token against now.
        changes_training: other losses come out.
        can_start: this version's engine runs it.
    """

    overrides: Mapping[str, object]
    found: Fit
    time_ratio: float
    changes_training: bool
    can_start: bool


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What would hold a config.

    Attributes:
        host_bytes: of host memory that can be had, beside the same GPU; None where no host helps.
        gpu_bytes: of the GPU, on the same host; None where no GPU helps.
        gpu_overrides: the keys that let the larger GPU be used.
        both_bytes: of a GPU and of host memory, where more of one is not enough.
    """

    host_bytes: int | None
    gpu_bytes: int | None
    gpu_overrides: Mapping[str, object]
    both_bytes: tuple[int, int] | None = None


@dataclass(frozen=True)
class Refused:
    """A config that does not fit, and what it was held against.

    Attributes:
        config: as it is now.
        facts: of its model.
        machine: what it is held against.
        counts: of its prepared data.
        now: what it takes as it is.
    """

    config: Config
    facts: ModelFacts
    machine: Machine
    counts: Counts | None
    now: Fit

    def fit(self, overrides: Mapping[str, object]) -> Fit:
        """Estimate the config with some keys replaced."""
        changed = with_overrides(self.config, overrides)
        return fit(changed, self.facts, self.machine, self.counts)

    def fits_with(self, overrides: Mapping[str, object]) -> bool:
        """Say whether those changes are enough."""
        return _is_enough(self.fit(overrides))

    def can_start_with(self, overrides: Mapping[str, object]) -> bool:
        """Say whether this version trains the model so."""
        return can_start(with_overrides(self.config, overrides), self.facts)


def _is_enough(found: Fit) -> bool:
    return found.verdict in ("fits", "tight")


# ---- one change --------------------------------------------------------------------------------


def single_ways(refused: Refused) -> list[Lever]:
    """Give every change that is enough by itself, cheapest first; of one key's values the fastest.

    Its bytes are those of the plan that is made with it.
    """
    best: dict[tuple[str, ...], Lever] = {}
    now = refused.now
    candidates = [
        *(
            [("use all that is free on the GPU", larger)]
            if (larger := _larger_budget(refused))
            else []
        ),
        *single_levers(refused.config, refused.facts, now),
        *_for_the_host(refused),
    ]
    for words, overrides in candidates:
        found = refused.fit(overrides)
        if not _is_enough(found):
            continue
        lever = Lever(
            words=words,
            overrides=overrides,
            saved_bytes=now.worst.total - found.worst.total,
            time_ratio=time_ratio(found, now),
            changes_training=changes_training(overrides),
            can_start=refused.can_start_with(overrides),
            verdict=found.verdict,
            total=found.worst.total,
            host_bytes=found.host_needed,
        )
        keys = tuple(overrides)
        other = best.get(keys)
        # What leaves the choice to the plan comes first, and stays.
        is_open = other is not None and "auto" in other.overrides.values()
        if other is None or (not is_open and lever.time_ratio < other.time_ratio):
            best[keys] = lever
    return sorted(
        best.values(), key=lambda lever: (lever.changes_training, round(lever.time_ratio, 2))
    )


def _larger_budget(refused: Refused) -> dict[str, object]:
    """Give the budget that a card has beyond the one a config states; {} where there is none."""
    stated = refused.config.memory.budget_gib
    free = free_bytes(refused.machine)
    if stated is None or free is None or refused.machine.budget_gib is not None:
        return {}
    gib = math.floor(10 * free / GIB) / 10
    return {"memory.budget_gib": gib} if gib >= stated + _LARGER_GIB else {}


def _for_the_host(refused: Refused) -> Iterator[tuple[str, dict[str, object]]]:
    """Give what takes less of the host and is no lever for the GPU."""
    memory = refused.config.memory
    if not refused.now.is_gpu or not isinstance(refused.now.form, StepForm):
        return
    if memory.block_inputs != "gpu":
        yield "keep block inputs on the GPU", {"memory.block_inputs": "gpu"}
    for share in (0.25, 0.5, 0.75, 1.0):
        if memory.resident_fraction not in ("auto", share):
            yield f"keep {share:.0%} of the blocks on the GPU", {"memory.resident_fraction": share}


# ---- the fewest together -----------------------------------------------------------------------


def gentle_combination(refused: Refused) -> Combination | None:
    """Give changes that leave what is learned as it is; None where they are not enough."""
    found = [each for each in _gentle(refused) if each and refused.fits_with(each)]
    return _pruned(refused, found[0]) if found else None


def firm_combination(refused: Refused) -> Combination | None:
    """Give the fewest changes, of training too: what is remembered first, then what is seen."""
    base = _opened_all(refused)
    for changed in _remembered(refused.config):
        base |= changed
        if refused.fits_with(base):
            return _pruned(refused, base)
    less = _least_seen(refused, base)
    return None if less is None else _pruned(refused, base | less)


def _opened_all(refused: Refused) -> dict[str, object]:
    """Give what leaves to the plan all that a config fixes of it."""
    config = refused.config
    larger = _larger_budget(refused)
    if not isinstance(refused.now.form, StepForm):
        fixed = config.memory.recompute not in ("auto", "full")
        return larger | ({"memory.recompute": "auto"} if fixed else {})
    opened = left_open(config) | larger
    if config.batch.microbatches != "auto":
        opened["batch.microbatches"] = "auto"
    return opened


def _gentle(refused: Refused) -> Iterator[dict[str, object]]:
    config = refused.config
    if isinstance(refused.now.form, StepForm):
        yield left_open(config)
        yield left_open(config) | _larger_budget(refused)
        yield _opened_all(refused)
        return
    base = _opened_all(refused)
    yield base
    if config.memory.block_inputs != "pinned":
        yield base | {"memory.block_inputs": "pinned"}


def _remembered(config: Config) -> Iterator[dict[str, object]]:
    if config.optimizer.rounding == "exact":
        yield {"optimizer.rounding": "stochastic"}
    if config.optimizer.name != "adafactor":
        yield {"optimizer.name": "adafactor"}
    if config.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}
    if config.memory.sum_dtype != "bfloat16":
        yield {"memory.sum_dtype": "bfloat16"}


def _least_seen(refused: Refused, base: dict[str, object]) -> dict[str, object] | None:
    """Halve rows, then their length, or the other way round, as often as must be."""
    config = refused.config
    rows, length = [config.batch.train], [config.data.max_length]
    while rows[-1] > 1:
        rows.append(rows[-1] // 2)
    while length[-1] // 2 >= SHORTEST_ROW:
        length.append(length[-1] // 2)
    ways = (
        [(each, length[0]) for each in rows] + [(rows[-1], each) for each in length[1:]],
        [(rows[0], each) for each in length] + [(each, length[-1]) for each in rows[1:]],
    )

    def seen(pair: tuple[int, int]) -> dict[str, object]:
        fewer: dict[str, object] = {}
        if pair[1] != config.data.max_length:
            fewer["data.max_length"] = pair[1]
        if pair[0] != config.batch.train:
            fewer["batch.train"] = pair[0]
            stated = config.batch.microbatches
            if stated != "auto" and stated > pair[0] and "batch.microbatches" not in base:
                fewer["batch.microbatches"] = pair[0]
        return fewer

    found: list[tuple[int, int, dict[str, object]]] = []
    for number, way in enumerate(ways):
        if not refused.fits_with(base | seen(way[-1])):
            return None

        def is_enough(index: int, way: list[tuple[int, int]] = way) -> bool:
            return refused.fits_with(base | seen(way[index]))

        # Less is never more: the first that is enough is found by halves.
        index = _first(len(way), is_enough)
        found.append((index, number, seen(way[index])))
    return min(found, key=lambda each: each[:2])[2]


def _first(count: int, is_enough: Callable[[int], bool]) -> int:
    """Give the first number that is enough, of 0 to count - 1, where the last one is."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _pruned(refused: Refused, overrides: dict[str, object]) -> Combination:
    """Leave out what is not needed: changes of training first, then what makes nothing faster."""
    kept = dict(overrides)
    found = refused.fit(kept)
    for key in sorted(kept, key=lambda key: not changes_training({key: kept[key]})):
        fewer = {other: value for other, value in kept.items() if other != key}
        if not fewer:
            break
        without = refused.fit(fewer)
        slower = without.seconds / without.step_tokens > (1 + _WORTH_KEEPING) * (
            found.seconds / found.step_tokens
        )
        if _is_enough(without) and (changes_training({key: kept[key]}) or not slower):
            kept, found = fewer, without
    return Combination(
        overrides=kept,
        found=found,
        time_ratio=time_ratio(found, refused.now),
        changes_training=changes_training(kept),
        can_start=refused.can_start_with(kept),
    )


# ---- hardware ----------------------------------------------------------------------------------


def fitting_hardware(refused: Refused) -> Hardware:
    """Say how much host memory, or how large a GPU, would be enough."""
    now = refused.now
    opened = left_open(refused.config) if isinstance(now.form, StepForm) else {}

    def with_host(gib: int) -> bool:
        if not now.is_gpu:
            machine = replace(refused.machine, host_bytes=gib * GIB, host_gib=None)
        else:
            machine = replace(refused.machine, host_gib=float(gib))
        return _is_enough(fit(refused.config, refused.facts, machine, refused.counts))

    def with_gpu(gib: int) -> bool:
        machine = replace(refused.machine, budget_gib=float(gib))
        changed = with_overrides(refused.config, opened)
        return _is_enough(fit(changed, refused.facts, machine, refused.counts))

    def with_both(gpu_gib: int, host_gib: int) -> bool:
        machine = replace(refused.machine, budget_gib=float(gpu_gib), host_gib=float(host_gib))
        return _is_enough(fit(refused.config, refused.facts, machine, refused.counts))

    host, gpu = now.host_available or 0, now.budget_bytes or 0
    more_host = _least_gib(host, _MOST_HOST, with_host)
    more_gpu = _least_gib(gpu, _MOST_GPU, with_gpu) if now.is_gpu else None
    both = None
    if more_host is None and now.is_gpu and now.host_decides:
        card = _least_gib(gpu, _MOST_GPU, lambda gib: with_both(gib, _MOST_HOST))
        if card is not None:
            beside = _least_gib(host, _MOST_HOST, lambda gib: with_both(card, gib))
            if beside is not None and beside * GIB > host + GIB:
                both = (card * GIB, beside * GIB)
    return Hardware(
        both_bytes=both,
        host_bytes=None if more_host is None else more_host * GIB,
        gpu_bytes=None if more_gpu is None else more_gpu * GIB,
        gpu_overrides=opened,
    )


def _least_gib(now: int, most: int, is_enough: Callable[[int], bool]) -> int | None:
    """Give the fewest whole GiB above ``now`` that are enough; None where even ``most`` are not."""
    if not is_enough(most):
        return None
    low = now // GIB + 1
    high = low
    while not is_enough(high):
        low, high = high + 1, min(most, 2 * high)
    return low + _first(high - low + 1, lambda index: is_enough(low + index))


def hardware_words(found: Hardware, now: Fit) -> str:
    """Say what would hold a config, and cards that have as much."""
    words = []
    if found.host_bytes is not None:
        free = "" if now.is_gpu else " free"
        words.append(f"{found.host_bytes / GIB:,.0f} GiB of host memory{free}")
    if found.both_bytes is not None:
        gpu_bytes, host_bytes = found.both_bytes
        words.append(
            f"a GPU with {gpu_bytes / GIB:,.0f} GiB free beside {host_bytes / GIB:,.0f} GiB of "
            "host memory"
        )
    if found.gpu_bytes is not None:
        keys = " ".join(f"{key}={value}" for key, value in found.gpu_overrides.items())
        large = [
            name
            for name, card in sorted(CARDS.items(), key=lambda item: item[1].memory_gib)
            if int(SHARE_FREE * card.memory_gib * GIB) >= found.gpu_bytes
        ]
        cards = f" (such as {', '.join(large[:2])})" if large else ""
        gpu = "a GPU" if len(now.ranks) == 1 else "GPUs"
        words.append(
            f"{gpu} with {found.gpu_bytes / GIB:,.0f} GiB free{cards}"
            + (f" and {keys}" if keys else "")
        )
    return ", or ".join(words) or "no machine that is known"


def host_room_words(now: Fit) -> str:
    """Say by how much host memory is short."""
    assert now.host_available is not None, "nothing is short of what is not known"
    room = most_of_host(now.host_available) if now.is_gpu else now.host_available
    short = -(-(now.host_needed - room) * 100 // GIB) / 100
    return (
        f"host memory is short by {short:,.2f} GiB: a run may take {room / GIB:,.2f} of "
        f"{now.host_available / GIB:,.2f}"
    )
