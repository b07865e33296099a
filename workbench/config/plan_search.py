"""The plan of a layer-major step: which form a budget allows and a machine runs fastest.

Every form is priced by ``memory_parts`` and timed by ``time_plan``; a config may fix any choice.
Of the forms that are about as fast as the fastest one wins whose weights all stay on the GPU, for
what waits in host memory is missing there; else the one that takes least of the GPU, then least of
the host.

Knows shapes and numbers, no config, no torch. Invariant: with more memory the fastest form is never
slower.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.memory_parts import (
    GIB,
    MARGIN,
    SLOTS,
    DeviceBytes,
    HostBytes,
    Recompute,
    StepForm,
    SumDtype,
    block_bytes,
    chunk_rows,
    device_bytes,
    host_bytes,
    microbatch_counts,
    needed_bytes,
    record_bytes,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.rates import Rates
from workbench.config.time_plan import StepClock, StepSeconds, step_clock, step_parts

ABOUT_AS_FAST = 0.01
"""Share of the fastest form's time that a smaller one may take longer."""

HOST_SHARE = 0.95
"""Share of the host memory that can be had which a plan takes at most."""

# On the CPU: few enough tokens that a microbatch's activations of one block stay small beside the
# model, and records that may be kept without asking what the host has.
CPU_MICROBATCH_TOKENS = 8192
_CPU_RECORD_BYTES = 1 * GIB
# Rows of the MLP, and what the rows of the head are divided by: the larger, the fewer launches.
_TILES = ((4096, 1), (2048, 1), (1024, 2), (512, 4))
_SMALLEST_TILE, _SMALLEST_HEAD = 256, 256
# Numbers of microbatches that are tried at most: those nearest to this many tokens, and the most.
_MOST_COUNTS, _USUAL_TOKENS = 6, 8192


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a config fixes; ``auto`` leaves it to the plan.

    Attributes:
        microbatches: ``batch.microbatches``.
        sum_dtype: ``memory.sum_dtype``.
        resident_fraction: ``memory.resident_fraction``.
        block_inputs: ``memory.block_inputs``, the place of all that forward keeps.
        recompute: ``memory.recompute``.
    """

    microbatches: Literal["auto"] | int = "auto"
    sum_dtype: SumDtype = "auto"
    resident_fraction: Literal["auto"] | float = "auto"
    block_inputs: Literal["auto", "gpu", "pinned"] = "auto"
    recompute: Literal["auto"] | Recompute = "auto"

    def streamed_blocks(self, num_layers: int) -> int | None:
        """Count the blocks that are to be streamed; None where that is open."""
        if self.resident_fraction == "auto":
            return None
        return num_layers - round(self.resident_fraction * num_layers)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A form, what it takes, and whether that can be had.

    Attributes:
        form: every choice made.
        device: bytes on the device.
        host: bytes of host memory.
        seconds: of a step, by part.
        fits: it stays within the budget (True where there is none) and the host memory.
    """

    form: StepForm
    device: DeviceBytes
    host: HostBytes
    seconds: StepSeconds
    fits: bool

    @property
    def needed(self) -> int:
        """Give the budget that it needs."""
        return needed_bytes(self.device, is_gpu=self.form.is_gpu)


def choose_plan_form(
    facts: ModelFacts,
    form: StepForm,
    wishes: Wishes,
    rates: Rates,
    *,
    seen_tokens: float,
    budget_bytes: int | None,
    host_limit: int | None = None,
) -> Choice:
    """Choose the form of a step.

    Where nothing fits, the smallest is given and ``fits`` is False. Without a budget a GPU is taken
    to hold all blocks and their inputs, as nothing says that more could be kept.

    Args:
        facts: of the model.
        form: rows, dtypes, optimizer and device count; the rest is replaced.
        wishes: what is fixed.
        rates: of the machine.
        seen_tokens: mean length of a document.
        budget_bytes: of the GPU; None where there is none, or none is known.
        host_limit: bytes of host memory that can be had; None where that is not known.
    """
    if not form.is_gpu:
        return _on_cpu(facts, form, wishes, rates, seen_tokens)
    if budget_bytes is None:
        return _without_budget(facts, form, wishes, rates, seen_tokens)
    room = _Room(budget_bytes, None if host_limit is None else int(host_limit * HOST_SHARE))
    found = [
        candidate
        for base in _bases(facts, form, wishes)
        for candidate in _candidates(facts, base, wishes, rates, seen_tokens, room)
    ]
    if not found:
        return smallest_form(
            facts, form, wishes, rates, seen_tokens=seen_tokens, host_limit=host_limit,
            budget_bytes=budget_bytes,
        )  # fmt: skip
    fastest = min(each.seconds for each in found)
    as_fast = [each for each in found if each.seconds <= fastest * (1 + ABOUT_AS_FAST)]
    best = min(as_fast, key=_preference)
    return _choice(facts, best.form, rates, seen_tokens, fits=True)


def smallest_form(
    facts: ModelFacts,
    form: StepForm,
    wishes: Wishes,
    rates: Rates,
    *,
    seen_tokens: float,
    budget_bytes: int | None = None,
    host_limit: int | None = None,
) -> Choice:
    """Give the form that takes least of the GPU, whatever that costs.

    Args:
        facts: of the model.
        form: rows, dtypes, optimizer and device count; the rest is replaced.
        wishes: what is fixed.
        rates: of the machine.
        seen_tokens: mean length of a document.
        budget_bytes: that it is held against; None where there is none.
        host_limit: bytes of host memory that can be had; what exceeds it is given only where
            everything does, and does not fit.
    """
    level: Recompute = "full" if wishes.recompute == "auto" else wishes.recompute
    room = None if host_limit is None else int(host_limit * HOST_SHARE)
    best: tuple[bool, int, StepForm] | None = None
    for count in _counts(form, wishes):
        for pinned in _places(wishes):
            smallest = replace(
                form,
                microbatches=count,
                sum_bytes=sum_bytes_of(wishes.sum_dtype, form.weight_bytes, count),
                vocabulary_resident=False,
                slots=2,
                pinned_records=pinned,
                tile_rows=_SMALLEST_TILE,
                head_rows=_SMALLEST_HEAD,
                companions_resident=not form.companion_bytes,
            ).at_level(level, facts.num_layers)
            for tried in _streamed_as_far(facts, smallest, wishes, room):
                lacks = room is not None and host_bytes(facts, tried).total > room
                key = (lacks, device_bytes(facts, tried).reserved, tried)
                if best is None or key[:2] < best[:2]:
                    best = key
    assert best is not None, "a step has rows"
    lacks, _, chosen = best
    found = _choice(facts, chosen, rates, seen_tokens, fits=not lacks)
    if budget_bytes is not None and found.needed > budget_bytes:
        return replace(found, fits=False)
    return found


def _streamed_as_far(
    facts: ModelFacts, form: StepForm, wishes: Wishes, room: int | None
) -> Iterator[StepForm]:
    """Give a form with as many blocks streamed as the host has room for, and with none."""
    wished = wishes.streamed_blocks(facts.num_layers)
    if wished is not None:
        yield replace(form, streamed_blocks=wished)
        return
    most = facts.num_layers
    if room is not None:
        left = room - host_bytes(facts, form).total
        most = max(0, min(most, left // block_bytes(facts, form.weight_bytes)))
    for streamed in sorted({0, most}):
        yield replace(form, streamed_blocks=streamed)
        # A host that lacks a little may hold the vocabulary only if that stays.
        yield replace(form, streamed_blocks=streamed, vocabulary_resident=True)


# ---- without a search ----------------------------------------------------------------------------


def _on_cpu(
    facts: ModelFacts, form: StepForm, wishes: Wishes, rates: Rates, seen_tokens: float
) -> Choice:
    """Keep everything where it is, with the fewest microbatches of 8,192 tokens."""
    counts = _counts(form, wishes)
    few = [
        count for count in counts if form.rows // count * form.row_length <= CPU_MICROBATCH_TOKENS
    ]
    count = (few or counts[-1:])[0]
    chosen = replace(
        form,
        microbatches=count,
        sum_bytes=sum_bytes_of(wishes.sum_dtype, form.weight_bytes, count),
        streamed_blocks=wishes.streamed_blocks(facts.num_layers) or 0,
        pinned_records=wishes.block_inputs == "pinned",
    )
    if wishes.recompute == "auto":
        kept = chosen.at_level("none", facts.num_layers)
        records = kept.microbatches * facts.num_layers * record_bytes(
            facts, kept.microbatch_tokens, "none", kept.weight_bytes
        )  # fmt: skip
        chosen = kept if records <= _CPU_RECORD_BYTES else chosen
    else:
        chosen = chosen.at_level(wishes.recompute, facts.num_layers)
    return _choice(facts, chosen, rates, seen_tokens, fits=True)


def _without_budget(
    facts: ModelFacts, form: StepForm, wishes: Wishes, rates: Rates, seen_tokens: float
) -> Choice:
    count = min(_counts(form, wishes))
    level: Recompute = "full" if wishes.recompute == "auto" else wishes.recompute
    chosen = replace(
        form,
        microbatches=count,
        sum_bytes=sum_bytes_of(wishes.sum_dtype, form.weight_bytes, count),
        streamed_blocks=wishes.streamed_blocks(facts.num_layers) or 0,
        pinned_records=wishes.block_inputs == "pinned",
    ).at_level(level, facts.num_layers)
    return _choice(facts, chosen, rates, seen_tokens, fits=True)


def _choice(
    facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float, *, fits: bool
) -> Choice:
    return Choice(
        form=form,
        device=device_bytes(facts, form),
        host=host_bytes(facts, form),
        seconds=step_parts(facts, form, rates, seen_tokens),
        fits=fits,
    )


# ---- the search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Room:
    """What can be had: of the GPU, and of the host or None where that is not known."""

    device: int
    host: int | None


@dataclass(frozen=True)
class _Candidate:
    """A form that fits, its seconds, and what it takes of GPU and pinned memory."""

    form: StepForm
    seconds: float
    device: int
    pinned: int


def _preference(candidate: _Candidate) -> tuple[int, int, int]:
    form = candidate.form
    streams = form.streamed_blocks > 0
    # Two slots and a vocabulary that travels leave nothing to spare for a copy that comes late.
    travels = streams + (not form.vocabulary_resident) + (streams and form.slots < SLOTS)
    return travels, candidate.device, candidate.pinned


def _counts(form: StepForm, wishes: Wishes) -> list[int]:
    if wishes.microbatches != "auto":
        return [wishes.microbatches]
    counts = microbatch_counts(form.rows)

    def distance(count: int) -> float:
        return abs(math.log2(form.rows // count * form.row_length / _USUAL_TOKENS))

    near = sorted(counts, key=distance)[: _MOST_COUNTS - 1]
    return sorted({*near, counts[-1]})


def _places(wishes: Wishes) -> tuple[bool, ...]:
    return (False, True) if wishes.block_inputs == "auto" else (wishes.block_inputs == "pinned",)


def _bases(facts: ModelFacts, form: StepForm, wishes: Wishes) -> Iterator[StepForm]:
    """Give the forms that differ in more than what is streamed and kept."""
    chunk = chunk_rows(facts.vocabulary_size)
    for count in _counts(form, wishes):
        cut = replace(
            form,
            microbatches=count,
            sum_bytes=sum_bytes_of(wishes.sum_dtype, form.weight_bytes, count),
        )
        tokens = cut.microbatch_tokens
        tiles = [pair for pair in _TILES if pair[0] < tokens] or [_TILES[-1]]
        for tile, share in tiles:
            yield replace(cut, tile_rows=tile, head_rows=max(_SMALLEST_HEAD, chunk // share))


def _candidates(
    facts: ModelFacts,
    base: StepForm,
    wishes: Wishes,
    rates: Rates,
    seen_tokens: float,
    room: _Room,
) -> Iterator[_Candidate]:
    clock = step_clock(facts, base, rates, seen_tokens)
    beside = (True, False) if base.companion_bytes else (True,)
    for vocabulary_resident in (True, False):
        for slots in (SLOTS, 2):
            for companions_resident in beside:
                for pinned in _places(wishes):
                    form = replace(
                        base,
                        vocabulary_resident=vocabulary_resident,
                        slots=slots,
                        companions_resident=companions_resident,
                        pinned_records=pinned,
                    )
                    yield from _Search(facts, form, wishes, clock, room).candidates()


class _Search:
    """Finds what to stream and what to keep where everything else of a form is chosen.

    Bytes are linear in both, so that no form is priced to be refused: a level is a number from 0,
    everything recomputed, over ``num_layers``, everything selective, to twice that, nothing.
    """

    def __init__(
        self, facts: ModelFacts, form: StepForm, wishes: Wishes, clock: StepClock, room: _Room
    ) -> None:
        self._facts, self._form, self._clock = facts, form, clock
        self._layers = facts.num_layers
        self._wishes, self._room = wishes, room
        self._block = block_bytes(facts, form.weight_bytes)
        # Nothing streamed and everything recomputed, its inputs left out.
        device = device_bytes(facts, form)
        self._base = needed_bytes(replace(device, block_inputs=0, staging=0))
        host = host_bytes(facts, replace(form, pinned_records=False))
        self._host_base, self._pinned_base = host.total, host.pinned

    def candidates(self) -> Iterator[_Candidate]:
        """Give the fastest form, and those that may be about as fast and take less.

        These stream all that the host holds, or keep no more than selective, for the largest
        record decides how large the buffers are that all of them pass through.
        """
        low, high = self._levels()
        wished = self._wishes.streamed_blocks(self._layers)
        if wished is not None:
            streams = [wished]
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
        match self._wishes.recompute:
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
        return self._base + int((records - self._moved(streamed)) * (1 + MARGIN)) + 1

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
        room = (self._room.device - self._base) / (1 + MARGIN) + self._moved(streamed)
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

    def _candidate(self, seconds: float, level: int, streamed: int) -> _Candidate:
        selective, kept = self._counts_of(level)
        return _Candidate(
            replace(
                self._form, streamed_blocks=streamed, selective_blocks=selective, kept_blocks=kept
            ),
            seconds,
            self._device(streamed, level),
            self._pinned_base + self._host(streamed, level),
        )
