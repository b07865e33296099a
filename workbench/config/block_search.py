"""Which blocks to stream and how much of each to keep, where all else of a form is chosen.

Knows shapes and numbers, no config, no torch. Invariant: a candidate fits the room it was given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.host_parts import host_bytes
from workbench.config.memory_parts import (
    MARGIN,
    Recompute,
    StepForm,
    block_bytes,
    device_bytes,
    outside_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.time_plan import StepClock


@dataclass(frozen=True)
class Room:
    """What can be had: of the GPU, and of the host or None where that is not known."""

    device: int
    host: int | None


@dataclass(frozen=True)
class Candidate:
    """A form that fits, its seconds, and what it takes of GPU and pinned memory."""

    form: StepForm
    seconds: float
    device: int
    pinned: int


class BlockSearch:
    """Finds what to stream and what to keep where everything else of a form is chosen.

    Bytes are linear in both, so that no form is priced to be refused: a level is a number from 0,
    everything recomputed, over ``num_layers``, everything selective, to twice that, nothing.

    Args:
        facts: of the model.
        form: everything but what is streamed and kept.
        clock: of its step.
        room: what can be had.
        streamed: blocks that a config wants streamed; None leaves it open.
        recompute: what a config wants recomputed.
    """

    def __init__(
        self,
        facts: ModelFacts,
        form: StepForm,
        clock: StepClock,
        room: Room,
        *,
        streamed: int | None,
        recompute: Literal["auto"] | Recompute,
    ) -> None:
        self._form, self._clock, self._room = form, clock, room
        self._layers = facts.num_layers
        self._streamed, self._recompute = streamed, recompute
        self._block = block_bytes(facts, form.weight_bytes)
        # Nothing streamed and everything recomputed, its inputs left out.
        device = device_bytes(facts, form)
        host = host_bytes(facts, replace(form, pinned_records=False))
        self._base = int(replace(device, block_inputs=0, staging=0).reserved * (1 + MARGIN))
        self._host_base, self._pinned_base = host.total, host.pinned

    def candidates(self) -> Iterator[Candidate]:
        """Give the fastest form, and those that may be about as fast and take less.

        These stream all that the host holds, or keep no more than selective, for the largest
        record decides how large the buffers are that all of them pass through.
        """
        low, high = self._levels()
        if self._streamed is not None:
            streams = [self._streamed]
        else:
            possible = self._possible(low)
            if self._form.pinned_records or self._fits(0, high):
                # Streaming more helps nothing here: the first that fits is the fastest.
                streams = list(possible[:1])
            else:
                every = ((self._at(s, low, high), s) for s in possible)
                some = [(found, s) for found, s in every if found is not None]
                streams = [min(some)[1]] if some else []
            if streams and streams[0] > 0:
                most = next((s for s in reversed(possible) if self._fits(s, low)), streams[0])
                streams = sorted({*streams, most})
        for streamed in streams:
            for most in {high, min(high, max(low, self._layers))}:
                found = self._at(streamed, low, most)
                if found is not None:
                    yield self._candidate(*found, streamed)

    def _possible(self, level: int) -> Sequence[int]:
        """Give the numbers of streamed blocks at which a level fits, fewest first.

        The slots make streaming few blocks take more than none; from there on each takes less of
        the GPU and more of the host.
        """
        if self._fits(0, level):
            return range(self._layers + 1)
        beyond = self._device(0, level) - self._room.device
        fewest = self._form.slots + max(0, int(beyond / (self._block * (1 + MARGIN))))
        while fewest <= self._layers and self._device(fewest, level) > self._room.device:
            fewest += 1
        return range(min(fewest, self._layers + 1), self._layers + 1)

    def _at(self, streamed: int, low: int, high: int) -> tuple[float, int] | None:
        """Give seconds and level of the fastest level; None where none fits."""
        most = self._most_that_fits(streamed, low, high)
        if most is None:
            return None
        if not self._form.pinned_records:
            return self._seconds(most, streamed), most
        # Keeping more saves computing until copies take longer: convex on either side of selective.
        turn = min(max(low, self._layers), most)
        return min(self._lowest(low, turn, streamed), self._lowest(turn, most, streamed))

    def _lowest(self, begin: int, end: int, streamed: int) -> tuple[float, int]:
        while begin < end:
            middle = (begin + end) // 2
            if self._seconds(middle, streamed) <= self._seconds(middle + 1, streamed):
                end = middle
            else:
                begin = middle + 1
        return self._seconds(begin, streamed), begin

    def _levels(self) -> tuple[int, int]:
        match self._recompute:
            case "auto":
                return 0, 2 * self._layers
            case "full":
                return 0, 0
            case "selective":
                return self._layers, self._layers
            case "none":
                return 2 * self._layers, 2 * self._layers

    def _counts_of(self, level: int) -> tuple[int, int]:
        """Give the blocks that are selective, and those of which everything is kept."""
        kept = max(0, level - self._layers)
        return min(level, self._layers) - kept, kept

    def _records(self, level: int) -> int:
        selective, kept = self._counts_of(level)
        records = self._clock.records
        return (
            (self._layers - selective - kept) * records["full"]
            + selective * records["selective"]
            + kept * records["none"]
        )

    def _device(self, streamed: int, level: int) -> int:
        """Give the bytes that a budget must hold; a little more where few blocks are full."""
        records = self._records(level)
        if self._form.pinned_records:
            records = 2 * self._clock.records[self._largest(level)] // self._form.microbatches
        changed = int((records - self._moved(streamed)) * (1 + MARGIN))
        pinned = self._pinned_base + self._host(streamed, level)
        return self._base + changed + outside_bytes(pinned) + 1

    def _moved(self, streamed: int) -> int:
        """Give the bytes of weights that leave the GPU, slots taken off."""
        return (streamed - self._form.slots) * self._block if streamed else 0

    def _largest(self, level: int) -> Recompute:
        """Give the level of the largest record, for which staging buffers are made."""
        if level > self._layers:
            return "none"
        return "selective" if level else "full"

    def _host(self, streamed: int, level: int) -> int:
        records = self._records(level) if self._form.pinned_records else 0
        return streamed * self._block + records

    def _fits(self, streamed: int, level: int) -> bool:
        if self._device(streamed, level) > self._room.device:
            return False
        host = self._room.host
        return host is None or self._host_base + self._host(streamed, level) <= host

    def _most_that_fits(self, streamed: int, low: int, high: int) -> int | None:
        """Give the highest level that fits; None where none does."""
        if not self._fits(streamed, low):
            return None
        if not self._form.pinned_records:
            # Records are all that a level changes here: the room left says how many there can be.
            high = max(low, min(high, self._level_of(streamed) + 1))
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(streamed, middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _level_of(self, streamed: int) -> int:
        """Give the level whose records fill the GPU, or one beside it."""
        records = self._clock.records
        outside = outside_bytes(self._pinned_base + streamed * self._block)
        room = (self._room.device - self._base - outside) / (1 + MARGIN) + self._moved(streamed)
        room -= self._layers * records["full"]
        selective = records["selective"] - records["full"]
        if room <= self._layers * selective:
            return int(room // selective)
        room -= self._layers * selective
        return self._layers + int(room // (records["none"] - records["selective"]))

    def _seconds(self, level: int, streamed: int) -> float:
        selective, kept = self._counts_of(level)
        form = self._form
        return self._clock.total(
            streamed=streamed,
            selective=selective,
            kept=kept,
            pinned=form.pinned_records,
            slots=form.slots,
            vocabulary_resident=form.vocabulary_resident,
            companions_resident=form.companions_resident,
        )

    def _candidate(self, seconds: float, level: int, streamed: int) -> Candidate:
        selective, kept = self._counts_of(level)
        return Candidate(
            replace(
                self._form, streamed_blocks=streamed, selective_blocks=selective, kept_blocks=kept
            ),
            seconds,
            self._device(streamed, level),
            self._pinned_base + self._host(streamed, level),
        )
