"""Seconds of a step from FLOP, bytes and rates: what a block computes, and what copies hide behind.

Knows numbers, no machine. Invariant: nothing here is precise; a measured run of the same config is
better, and ``memory_plan`` prefers one. The constants that turn rates of a machine into seconds of
the engine stand at the top; shares of what is published of a card in ``rates``.

    hidden (h), queries, keys and values side by side (E), FFN width (f), vocabulary (V),
    tokens of a step (S), of a microbatch (T)
"""

import math
from dataclasses import dataclass
from typing import Literal

from workbench.config.memory_parts import (
    Recompute,
    StepForm,
    block_bytes,
    head_rows_of,
    record_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.rates import Rates

# Bytes of device memory that one parameter's update moves, its gradient sum in 16 bits: read in so
# many passes, the weight read and written, moments too. Two more per pass of a sum in 32 bits, and
# four for low bits.
_UPDATE_BYTES = {"adafactor": 10, "adamw": 24, "adamw_8bit": 12, "adamw_4bit": 10}
_UPDATE_PASSES = {"adafactor": 3, "adamw": 2, "adamw_8bit": 2, "adamw_4bit": 2}
# A product of n rows takes as long as one of this many more: the last wave of tiles, and weights
# that are read again for each part of the rows. On an H200 (benchmarks/products.py) 256 rows took
# 1.1 to 1.5 times as long as a sixteenth of 4,096.
_PRODUCT_ROWS = 40
# Narrower products reach less: the root of the width below this one fits shapes of 900 to 4,096.
_FULL_WIDTH = 4096
# Products of fp32 in tensor cores (TF32) reach this share of what those of bfloat16 do.
_WIDE = 0.5
# Backward of attention computes five products where forward computes two. Either takes as long as
# if each token saw this many more, in tiles at the ends of documents: on an H200 16,384 tokens in
# documents of 870 (mean over tokens) took 0.63 and 1.75 ms, in documents of 4,096 1.69 and 5.0.
_ATTENTION_BACKWARD, _ATTENTION_ENDS = 2.5, 950
# What the host takes to launch one kernel, and the launches of a block, of each of its MLP's tiles,
# and of the update of one matrix.
_LAUNCH_SECONDS = 9e-6
_FORWARD_LAUNCHES, _BACKWARD_LAUNCHES, _UPDATE_LAUNCHES = (6, 4), (18, 8), 4
# A copy beside computing takes this share of its own time from it: bandwidth, and waits at the
# ends. On an H200 streaming a whole 7 B cost 0.3 % of a step, a fifth of this; cards whose memory
# is slower beside their link lose more.
_HIDDEN_COPY = 0.025
# With two slots nothing evens out a copy that comes late.
_TWO_SLOTS = 1.01
# Ids and tables of a step, its loss and the end of its last update.
_STEP_SECONDS = 3e-3


# ---- FLOP --------------------------------------------------------------------------------------


def matmul_parameters(facts: ModelFacts) -> int:
    """Count the parameters that multiply each token: the matrices of all blocks, and the head."""
    block = sum(shape[0] * shape[1] for shape in facts.block_shapes if len(shape) == 2)
    return facts.num_layers * block + facts.vocabulary_parameters


def forward_flop_per_token(facts: ModelFacts, seen_tokens: float) -> float:
    """Give the FLOP of one token's forward: two per parameter, and causal attention.

    Args:
        facts: of the model.
        seen_tokens: length of the document a token stands in, on average; on average it sees half.
    """
    attention = facts.num_layers * _attention_flop(facts, seen_tokens)
    return 2 * matmul_parameters(facts) + attention


def training_flop_per_token(
    facts: ModelFacts,
    seen_tokens: float,
    recompute: Literal["all"] | Recompute = "full",
) -> float:
    """Give the FLOP of one token's forward, recomputation and backward.

    Backward costs two forwards. *All* repeats every block; *full*, as the engine does it, all but
    the down projection; *selective* gate and up alone; the head is never repeated.
    """
    forward = forward_flop_per_token(facts, seen_tokens)
    down = 2 * facts.num_layers * facts.hidden_size * facts.intermediate_size
    repeated = {
        "none": 0.0,
        "selective": 2.0 * down,
        "full": forward - 2 * facts.vocabulary_parameters - down,
        "all": forward - 2.0 * facts.vocabulary_parameters,
    }
    return 3 * forward + repeated[recompute]


def _attention_flop(facts: ModelFacts, seen_tokens: float) -> float:
    """Give what attention of a block costs a token, on average over the blocks."""
    if facts.sliding_window is not None:
        within = min(seen_tokens, facts.sliding_window)
        seen_tokens += facts.sliding_fraction * (within - seen_tokens)
    return 2 * seen_tokens * facts.query_size


# ---- seconds -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Seconds of a step, by part; a sweep lasts as long as its computing or its copies.

    Attributes:
        forward: of all blocks.
        head: final norm, head and loss, forward and back.
        backward: of all blocks, their recomputation and updates with it.
        vocabulary: updates of embedding and head.
        copies: what copies that are hidden take from what they hide behind.
        other: what comes once per step.
        up: copies to the device, hidden or not.
        down: copies to the host, hidden or not.
    """

    forward: float
    head: float
    backward: float
    vocabulary: float
    copies: float
    other: float
    up: float
    down: float

    @property
    def total(self) -> float:
        """Add up what comes one after the other."""
        return self.forward + self.head + self.backward + self.vocabulary + self.copies + self.other


@dataclass(frozen=True, kw_only=True)
class StepClock:
    """What one block, the head and the updates of a step take, from which any form's step follows.

    The forms share rows, microbatches, tiles and dtypes; what is streamed, kept and pinned differs.

    Attributes:
        num_layers: of the model.
        forward: seconds of a block's forward, all microbatches.
        backward: seconds of its backward and update, by what is recomputed.
        head: seconds of head and loss.
        vocabulary: seconds of the updates outside of blocks.
        weights: bytes of a streamed block.
        vocabulary_weights: bytes of embedding and head.
        companions: bytes that travel with a block for its update.
        vocabulary_companions: bytes that travel with embedding and head for theirs.
        records: bytes kept of a block, all microbatches, by what is recomputed.
        rates: of the machine.
    """

    num_layers: int
    forward: float
    backward: dict[Recompute, float]
    head: float
    vocabulary: float
    weights: int
    vocabulary_weights: int
    companions: float
    vocabulary_companions: float
    records: dict[Recompute, int]
    rates: Rates

    def seconds(self, form: StepForm) -> StepSeconds:
        """Give the seconds of a step, by part."""
        forward, backward, up, down = self._sweeps(
            form.streamed_blocks, form.selective_blocks, form.kept_blocks, form.pinned_records,
            form.slots, form.vocabulary_resident, form.companions_resident,
        )  # fmt: skip
        return StepSeconds(
            forward=forward,
            head=self.head,
            backward=backward,
            vocabulary=self.vocabulary,
            copies=_HIDDEN_COPY * (up + down),
            other=self._other,
            up=up,
            down=down,
        )

    def total(
        self, *, streamed: int, selective: int, kept: int, pinned: bool, slots: int,
        vocabulary_resident: bool, companions_resident: bool,
    ) -> float:  # fmt: skip
        """Give the seconds of a step, as a search asks thousands of times."""
        forward, backward, up, down = self._sweeps(
            streamed, selective, kept, pinned, slots, vocabulary_resident, companions_resident
        )
        fixed = self.head + self.vocabulary + self._other
        return forward + backward + _HIDDEN_COPY * (up + down) + fixed

    @property
    def _other(self) -> float:
        return _STEP_SECONDS if self.rates.is_gpu else 0.0

    def _sweeps(
        self,
        streamed: int,
        selective: int,
        kept: int,
        pinned: bool,
        slots: int,
        vocabulary_resident: bool,
        companions_resident: bool,
    ) -> tuple[float, float, float, float]:
        """Give the seconds of forward, of backward, and of copies up and down in both.

        Blocks that travel, and levels of what is kept, are spread evenly among the others, so that
        a sweep takes as long as the longest of its computing and its copies either way.
        """
        full = self.num_layers - selective - kept
        computing_back = (
            full * self.backward["full"]
            + selective * self.backward["selective"]
            + kept * self.backward["none"]
        )
        # What is in the slots at a turn need not come again.
        weights = max(0, streamed - slots + 1) * self.weights
        up_forward, up_back, down_back, down_forward = weights, weights, streamed * self.weights, 0
        if not vocabulary_resident:
            up_forward += self.vocabulary_weights // 2
            up_back += self.vocabulary_weights // 2
            down_back += self.vocabulary_weights
        beside = 0.0
        if not companions_resident:
            beside = self.num_layers * self.companions + self.vocabulary_companions
        if pinned:
            down_forward = (
                full * self.records["full"]
                + selective * self.records["selective"]
                + kept * self.records["none"]
            )
        forward_up, forward_down = self._copies(up_forward, down_forward)
        back_up, back_down = self._copies(up_back + beside + down_forward, down_back + beside)
        forward = max(self.num_layers * self.forward, forward_up, forward_down)
        backward = max(computing_back, back_up, back_down)
        if slots < 3 and streamed:
            # A slot is filled only when what was in it has been written back.
            one_way = streamed * self.weights * (1 / self.rates.up + 1 / self.rates.down)
            forward, backward = forward * _TWO_SLOTS, max(backward, one_way) * _TWO_SLOTS
        return forward, backward, forward_up + back_up, forward_down + back_down

    def _copies(self, up: float, down: float) -> tuple[float, float]:
        """Give the seconds of each direction, both at work as long as either has to."""
        together = min(up, down) / self.rates.both
        return (
            together + max(0.0, up - down) / self.rates.up,
            together + max(0.0, down - up) / self.rates.down,
        )


def step_clock(facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float) -> StepClock:
    """Work out what a block, the head and the updates take.

    Args:
        facts: of the model.
        form: rows, microbatches, tiles and dtypes count.
        rates: of the machine.
        seen_tokens: length of the document a token stands in, on average.
    """
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    e, parts, tokens = form.weight_bytes, form.microbatches, form.microbatch_tokens
    step_tokens, width = form.step_tokens, q + 2 * k
    tile, head_rows = min(form.tile_rows, tokens), head_rows_of(facts, form)
    tiles = -(-tokens // tile)
    products, attending = _reached(facts, rates), rates.attention
    if rates.is_gpu and e == 4:
        products, attending = products * _WIDE, attending * _WIDE

    def computing(flop: float, rows: int) -> float:
        return (
            step_tokens * flop / products * ((rows + _PRODUCT_ROWS) / rows if rates.is_gpu else 1)
        )

    def moving(num_bytes: float) -> float:
        return step_tokens * num_bytes / rates.memory if rates.is_gpu else 0.0

    def summing(parameters: int, rows: int) -> float:
        # A weight's gradient is added to its sum once for each part of the rows, and a product
        # hides little of it: 0.5 to 1.3 of this was seen on an H200 (benchmarks/products.py).
        return moving(2 * form.sum_bytes * parameters / rows)

    attention_products, mlp = 2 * (h * width + q * h), 2 * h * f
    seen = seen_tokens + (_ATTENTION_ENDS if rates.is_gpu else 0)
    attention = step_tokens * _attention_flop(facts, seen) / attending
    # Two norms read and write, two sums of the residual read and write, and so do rotation and the
    # gated product.
    ways_in = computing(attention_products, tokens) + attention + moving(e * (4 * h + 2 * (q + k)))
    gate_and_up = computing(2 * mlp, tile) + moving(2 * e * h)
    # A bias reads and writes its product, and its gradient reads that of the product; norms of
    # heads read and write queries and keys, and their backward reads the gradients too.
    biases = _bias_widths(facts)
    normed = 2 * (q + k) if facts.query_key_norm else 0
    ways_in += moving(e * (normed + 2 * biases["attention"]))
    gate_and_up += moving(e * 2 * biases["gate and up"])
    forward = ways_in + gate_and_up + computing(mlp, tile) + moving(e * 3 * f)
    forward += moving(e * 2 * biases["down"])
    gradients = (
        computing(2 * attention_products, tokens)
        + computing(6 * mlp, tile)
        + summing(attention_products // 2, tokens)
        + summing(3 * h * f, tile)
        + _ATTENTION_BACKWARD * attention
        + moving(e * (6 * f + 10 * h + 2 * width))
        + moving(e * (1.5 * normed + sum(biases.values())))
    )
    # Where heads are normed, a record has them before that: they are normed and turned again.
    turned = moving(e * 2 * normed)
    again: dict[Recompute, float] = {
        "full": ways_in + gate_and_up,
        "selective": turned + gate_and_up,
        "none": turned + moving(2 * e * h),
    }
    per_parameter = _UPDATE_BYTES[form.optimizer] + (4 if form.exact else 0)
    per_parameter += _UPDATE_PASSES[form.optimizer] * (form.sum_bytes - 2)
    update = facts.block_parameters * per_parameter / rates.memory
    matrices = len(facts.block_shapes)
    launch = parts * _LAUNCH_SECONDS if rates.is_gpu else 0.0
    more = (2 if normed else 0) + (2 if biases["attention"] else 0)
    more_in_tiles = sum(1 for part in ("gate and up", "down") if biases[part])
    least_forward = launch * (
        _FORWARD_LAUNCHES[0] + more + tiles * (_FORWARD_LAUNCHES[1] + more_in_tiles)
    )
    least_back = launch * (
        _BACKWARD_LAUNCHES[0] + 3 * more + tiles * (_BACKWARD_LAUNCHES[1] + 3 * more_in_tiles)
    )
    least_update = matrices * _UPDATE_LAUNCHES * _LAUNCH_SECONDS if rates.is_gpu else 0.0
    vocabulary, copies = facts.vocabulary_parameters, 1 if facts.tied else 2
    beside = form.companion_bytes
    levels: tuple[Recompute, ...] = ("full", "selective", "none")
    return StepClock(
        num_layers=facts.num_layers,
        forward=max(forward, least_forward),
        backward={
            level: max(gradients + again[level], least_back) + max(update, least_update)
            for level in levels
        },
        head=computing(6 * vocabulary, head_rows)
        + summing(vocabulary, head_rows)
        + moving(e * (4 * facts.vocabulary_size + 8 * h)),
        vocabulary=copies * vocabulary * per_parameter / rates.memory,
        weights=block_bytes(facts, e),
        vocabulary_weights=copies * vocabulary * e,
        companions=beside * facts.block_parameters,
        vocabulary_companions=beside * copies * vocabulary,
        records={level: parts * record_bytes(facts, tokens, level, e) for level in levels},
        rates=rates,
    )


def _bias_widths(facts: ModelFacts) -> dict[str, int]:
    """Give the widths of a block's biases: of q, k, v and o, of gate and up, of down."""
    widths = {"q": facts.query_size, "k": facts.key_size, "v": facts.key_size}
    widths |= {"o": facts.hidden_size, "down": facts.hidden_size}
    parts = {"attention": "q k v o", "gate and up": "gate up", "down": "down"}
    return {
        part: sum(
            widths.get(name, facts.intermediate_size)
            for name in names.split()
            if name in facts.biased
        )
        for part, names in parts.items()
    }


def step_parts(facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float) -> StepSeconds:
    """Give the seconds of a layer-major step, by part.

    A streamed block goes up for forward and for backward and down once it is updated; low bits and
    moments go both ways in backward; pinned block inputs, and what is kept beside them, go down in
    forward and up in backward.
    """
    return step_clock(facts, form, rates, seen_tokens).seconds(form)


def step_seconds(facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float) -> float:
    """Give the seconds of a layer-major step."""
    return step_parts(facts, form, rates, seen_tokens).total


def pass_seconds(
    facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float, *, head_rows: int
) -> float:
    """Give the seconds of rows that pass the blocks once, without a loss and a way back.

    Streamed weights move once, and resident ones are read once, however few the rows are.

    Args:
        facts: of the model.
        form: of the rows that pass, and of where weights are.
        rates: of the machine.
        seen_tokens: length of the document a token stands in, on average.
        head_rows: rows that pass the head.
    """
    clock = step_clock(facts, form, rates, seen_tokens)
    size = form.weight_bytes
    reading = facts.num_layers * clock.weights / rates.memory
    copying = form.streamed_blocks * clock.weights
    if not form.vocabulary_resident:
        copying += clock.vocabulary_weights
    head = max(
        2 * head_rows * facts.vocabulary_parameters / _reached(facts, rates),
        size * facts.vocabulary_parameters / rates.memory,
    )
    return max(facts.num_layers * clock.forward, reading, copying / rates.up) + head


def stage_seconds(
    facts: ModelFacts, share: float, tokens: int, rates: Rates, seen_tokens: float, recompute: bool
) -> float:
    """Give the seconds that a pipeline rank computes in a step, for its share of the model."""
    how: Literal["full", "none"] = "full" if recompute else "none"
    flop = tokens * training_flop_per_token(facts, seen_tokens, how)
    update = facts.num_parameters * _UPDATE_BYTES["adafactor"] / rates.memory
    return share * (flop / _reached(facts, rates) + update)


def _reached(facts: ModelFacts, rates: Rates) -> float:
    """Give the FLOP/s that products of this width reach."""
    if not rates.is_gpu:
        return rates.products
    return rates.products * math.sqrt(min(1.0, facts.hidden_size / _FULL_WIDTH))
