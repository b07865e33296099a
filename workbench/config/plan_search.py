"""The plan of a layer-major step: which form a budget allows and a machine runs fastest.

Every form is priced by ``memory_parts`` and timed by ``time_plan``; a config may fix any choice.
Of the forms that are about as fast as the fastest one wins whose weights all stay on the GPU, for
what waits in host memory is missing there; else the one that takes least of the GPU, then least of
the host.

Knows shapes and numbers, no config, no torch. Invariant: with more memory the fastest form is never
slower.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.block_search import BlockSearch, Candidate, Room
from workbench.config.host_parts import HostBytes, host_bytes
from workbench.config.memory_parts import (
    GIB,
    SLOTS,
    DeviceBytes,
    Recompute,
    StepForm,
    SumDtype,
    block_bytes,
    chunk_rows,
    device_bytes,
    microbatch_counts,
    needed_bytes,
    record_bytes,
    sum_bytes_of,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.rates import Rates
from workbench.config.time_plan import StepSeconds, step_clock, step_parts

ABOUT_AS_FAST = 0.01
"""Share of the fastest form's time that a smaller one may take longer."""

# What a plan leaves of the host memory that can be had, since other programs live there too, and
# what is pinned cannot be swapped: this share always; and so much, but no more than an eighth of a
# small host, where the smallest plan does not need it.
_HOST_SHARE_LEFT, _HOST_LEFT, _HOST_LEFT_AT_MOST = 0.05, 4 * GIB, 0.125

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
        return needed_bytes(self.device, self.host.pinned, is_gpu=self.form.is_gpu)


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
    smallest = smallest_form(
        facts, form, wishes, rates, seen_tokens=seen_tokens, host_limit=host_limit,
        budget_bytes=budget_bytes,
    )  # fmt: skip
    room = Room(
        budget_bytes, None if host_limit is None else _host_room(host_limit, smallest.host.total)
    )
    found = [
        candidate
        for base in _bases(facts, form, wishes)
        for candidate in _candidates(facts, base, wishes, rates, seen_tokens, room)
    ]
    if not found:
        return smallest
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
            everything does, and does not fit: then what takes least of the host within the budget.
    """
    level: Recompute = "full" if wishes.recompute == "auto" else wishes.recompute
    room = None if host_limit is None else most_of_host(host_limit)
    best: tuple[tuple[bool, bool, int], StepForm] | None = None
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
                host, device = host_bytes(facts, tried), device_bytes(facts, tried)
                lacks = room is not None and host.total > room
                key = (lacks, False, device.reserved)
                if lacks and budget_bytes is not None:
                    # Where the host lacks, what the GPU has room for need not wait there.
                    exceeds = needed_bytes(device, host.pinned, is_gpu=True) > budget_bytes
                    key = (True, exceeds, device.reserved if exceeds else host.total)
                if best is None or key < best[0]:
                    best = (key, tried)
    assert best is not None, "a step has rows"
    (lacks, _, _), chosen = best
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


def most_of_host(host_limit: int) -> int:
    """Give the bytes that a plan takes at most of the host memory that can be had."""
    return int(host_limit * (1 - _HOST_SHARE_LEFT))


def _host_room(host_limit: int, smallest: int) -> int:
    """Give the bytes for a plan that leaves room for others, where the smallest plan can do so.

    This does not depend on the budget, so that more of the GPU never makes a plan slower.
    """
    most = most_of_host(host_limit)
    left = min(_HOST_LEFT, _HOST_LEFT_AT_MOST * host_limit)
    return min(most, max(int(host_limit - left), smallest))


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


def _preference(candidate: Candidate) -> tuple[int, int, int]:
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
        tiles = [pair for pair in _TILES if pair[0] <= tokens] or [_TILES[-1]]
        for tile, share in tiles:
            yield replace(cut, tile_rows=tile, head_rows=max(_SMALLEST_HEAD, chunk // share))


def _candidates(
    facts: ModelFacts,
    base: StepForm,
    wishes: Wishes,
    rates: Rates,
    seen_tokens: float,
    room: Room,
) -> Iterator[Candidate]:
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
                    search = BlockSearch(
                        facts,
                        form,
                        clock,
                        room,
                        streamed=wishes.streamed_blocks(facts.num_layers),
                        recompute=wishes.recompute,
                    )
                    yield from search.candidates()
