"""Bytes of every part of a step, by arithmetic alone: one function for forecast and worker.

Two forms are known. *Measured* is the engine as it runs: every block resident, block inputs where
they were made, PyTorch twins of the kernels. Its terms are counted from the tensors that are alive
in each phase of a step and agree with peaks on one H200 (``tests/assets/measured_peaks.json``).
*Formula* is every other form that a config can ask for; nothing was measured for it.

Knows shapes and numbers, no config, no torch. Invariant: the total of a peak is the sum of its
parts.

    block parameters (w), hidden (h), query width (q), key width (k), FFN width (f), vocabulary (V),
    blocks (L), tokens of a step (S), tokens of a microbatch (T), bytes of an element (e)
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from workbench.config.model_facts import ModelFacts

GIB = 1 << 30
MIB = 1 << 20

CONTEXT_BYTES = 776 * MIB
"""What the driver takes for a context outside of torch's count; 769 to 773 MiB on an H200."""

MARGIN = 0.02
"""Share of torch's bytes that a plan leaves free."""

SLOTS = 3
"""Blocks' worth of GPU memory that streamed blocks pass through."""

LIBRARY_BYTES = 64 * MIB
"""Workspaces of cuBLAS and cuBLASLt, 32 MiB each, from torch's allocator."""

# What the reductions of an update take beside its two fp32 copies, read off peaks on an H200 with
# torch 2.11; the same for matrices of 60 to 540 million elements, but for one that took twice that.
_REDUCTION_BYTES = 133 * MIB
# What torch's allocator (expandable segments) holds without using it, fitted to the peaks of 0.6 B
# to 8 B shapes: a share of a block's workspace, as tensors of many sizes come and go; and while
# the head is at work a share of its chunk, whose tensors are the largest of all.
_GAP_OF_BLOCK, _GAP_OF_HEAD, _GAP_BYTES = 0.07, 0.235, 32 * MIB
# Rows of the MLP that exist at once where a block is tiled.
_TILE_ROWS = 2048
_SMALLEST_CHUNK, _LARGEST_CHUNK, _CHUNK_ELEMENTS = 1024, 4096, 1 << 25

OptimizerName = Literal["adafactor", "adamw", "adamw_8bit", "adamw_4bit"]
SumDtype = Literal["auto", "bfloat16", "float32"]
Recompute = Literal["full", "selective", "none"]

# Two moments in fp32; in 8 or 4 bits, with one fp32 scale for 256 or 128 elements of each.
_STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "adamw_4bit": 1 + 2 * 4 / 128}


@dataclass(frozen=True, kw_only=True)
class StepForm:
    """How a step runs, every choice made.

    Attributes:
        rows: of a step, all microbatches together.
        row_length: tokens of a row.
        microbatches: parts of the step.
        weight_bytes: per element of weights and activations, 2 or 4.
        sum_bytes: per element of a gradient sum, 2 or 4.
        resident_fraction: share of blocks whose weights stay on the GPU.
        pinned_inputs: block inputs wait in pinned host memory.
        recompute: what of a block is computed again in backward; full keeps its input alone.
        optimizer: update rule.
        exact: the low 16 bits of fp32 weights are kept in host memory.
        is_gpu: on a GPU; on the CPU there is no context, and no allocator that holds back.
    """

    rows: int
    row_length: int
    microbatches: int
    weight_bytes: int = 2
    sum_bytes: int = 2
    resident_fraction: float = 1.0
    pinned_inputs: bool = False
    recompute: Recompute = "full"
    optimizer: OptimizerName = "adafactor"
    exact: bool = False
    is_gpu: bool = True

    @property
    def step_tokens(self) -> int:
        """Count the tokens of a step, rows that fill up the last microbatch included."""
        return self.rows_per_microbatch * self.microbatches * self.row_length

    @property
    def rows_per_microbatch(self) -> int:
        """Count the rows that pass the model together."""
        return -(-self.rows // self.microbatches)

    @property
    def microbatch_tokens(self) -> int:
        """Count the tokens that pass the model together."""
        return self.rows_per_microbatch * self.row_length

    @property
    def is_measured(self) -> bool:
        """Say whether this is the form whose peaks were measured."""
        return (
            self.resident_fraction == 1.0
            and not self.pinned_inputs
            and self.recompute == "full"
            and self.optimizer == "adafactor"
            and not self.exact
        )

    def resident_blocks(self, num_layers: int) -> int:
        """Count the blocks whose weights stay on the GPU."""
        return round(self.resident_fraction * num_layers)


@dataclass(frozen=True)
class Phase:
    """A moment of a step that may be its peak.

    Attributes:
        name: what happens.
        workspace: bytes that exist for it alone.
        with_inputs: block inputs are still kept.
        gap: bytes that the allocator holds and does not use because of it.
    """

    name: str
    workspace: int
    with_inputs: bool = True
    gap: int = 0


@dataclass(frozen=True, kw_only=True)
class DeviceBytes:
    """Bytes on the device that trains, by part.

    Attributes:
        weights: resident blocks, embedding, head, final norm.
        slots: where streamed blocks pass through.
        block_inputs: kept on the device, with kept activations.
        hidden_states: of the whole step, or their gradients; rotary tables and ids.
        gradient_sums: one block's, and the head's or embedding's; a pipeline stage's whole.
        optimizer_state: statistics or moments.
        staging: buffers on the way to and from pinned memory, or between stages.
        libraries: workspaces of cuBLAS.
        phases: what each moment takes on top.
        gap: held by torch's allocator and not used, in every phase.
    """

    weights: int
    slots: int
    block_inputs: int
    hidden_states: int
    gradient_sums: int
    optimizer_state: int
    staging: int
    libraries: int
    phases: tuple[Phase, ...]
    gap: int

    def _at(self, phase: Phase) -> int:
        lasting = self.weights + self.slots + self.hidden_states + self.gradient_sums
        lasting += self.optimizer_state + self.staging + self.libraries
        return lasting + phase.workspace + (self.block_inputs if phase.with_inputs else 0)

    @property
    def peak_phase(self) -> Phase:
        """Give the moment at which the allocator must hold most."""
        return max(self.phases, key=lambda phase: self._at(phase) + phase.gap)

    @property
    def peak(self) -> int:
        """Give the bytes alive at the worst moment of a step: torch's *allocated*."""
        return max(self._at(phase) for phase in self.phases)

    @property
    def reserved(self) -> int:
        """Give the bytes torch's allocator holds at its largest: what a card must have."""
        return self._at(self.peak_phase) + self.unused

    @property
    def unused(self) -> int:
        """Give the bytes that it holds then and does not use."""
        return self.gap + self.peak_phase.gap


def needed_bytes(device: DeviceBytes, *, is_gpu: bool = True) -> int:
    """Give what a budget must hold: reserved bytes, a margin on them, and the context."""
    return int(device.reserved * (1 + MARGIN)) + (CONTEXT_BYTES if is_gpu else 0)


def factored_state_bytes(facts: ModelFacts) -> int:
    """Give the bytes of Adafactor's fp32 statistics: a row and a column per matrix.

    A vector keeps its whole second moment.
    """
    inside = sum(sum(shape) for shape in facts.block_shapes) * facts.num_layers
    vocabulary = (facts.vocabulary_size + facts.hidden_size) * (1 if facts.tied else 2)
    return 4 * (inside + vocabulary + facts.hidden_size)


def optimizer_state_bytes(facts: ModelFacts, optimizer: OptimizerName, parameters: int) -> int:
    """Give the bytes of the optimizer's state for so many of the model's parameters."""
    if optimizer == "adafactor":
        return round(factored_state_bytes(facts) * parameters / facts.num_parameters)
    return round(_STATE_BYTES[optimizer] * parameters)


def chunk_rows(vocabulary_size: int) -> int:
    """Give the rows that pass the head together: 2^25 logits where 1,024 to 4,096 rows allow it.

    Fewer rows would be bound by launches and add too often into a bfloat16 sum.
    """
    return max(_SMALLEST_CHUNK, min(_LARGEST_CHUNK, _CHUNK_ELEMENTS // vocabulary_size))


def recomputed_block_bytes_per_token(facts: ModelFacts, element: int = 2) -> int:
    """Give the bytes per token that the backward pass of one recomputed block takes at its worst.

    Three moments compete. *MLP*: both norms' fp32 copies and results (2 x 8h in bfloat16), the
    residual (2h), queries, keys, values and attention's result (4q + 4k), and seven tensors of the
    MLP's width (gate, its SiLU, up, product, and the gradients of product, up and SiLU).
    *Norm*: its backward holds five fp32 copies. *Attention*: gradients of q, k, v, and the fp32
    sums of its backward kernel.
    """
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    wide = 4  # a norm computes in fp32, whatever the activations are
    norms = 2 * (wide * h + 2 * element * h)
    mlp = norms + element * (h + 2 * q + 2 * k + 7 * f)
    norm = (
        norms // 2 + element * (h + 2 * q + 2 * k + 2 * f) + norms // 2 + (4 * wide + element) * h
    )
    attention = norms // 2 + element * (2 * h + 4 * q + 4 * k + 2 * f) + 8 * q
    return max(mlp, norm, attention) + 4 * facts.num_heads


def kept_bytes_per_token(facts: ModelFacts, recompute: Recompute, element: int = 2) -> int:
    """Give the bytes per token and block that are kept beside the block's input.

    *Selective* keeps attention's result with its log-sum-exp, the residual behind it, and queries,
    keys and values; *none* gate and up as well, so that no product is repeated.
    """
    if recompute == "full":
        return 0
    h, q, k = facts.hidden_size, facts.query_size, facts.key_size
    kept = element * (2 * q + h + 2 * k) + 4 * facts.num_heads
    return kept if recompute == "selective" else kept + 2 * element * facts.intermediate_size


def saved_bytes_per_token(facts: ModelFacts, element: int = 2) -> int:
    """Give the bytes per token and block that autograd keeps where nothing is recomputed.

    What the twins of today's kernels save: the block's input and the residual behind attention,
    both norms with an fp32 copy, q, k, v, attention's result, and gate, its SiLU, up, product.
    """
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    norms = 2 * (4 * h + 2 * element * h)
    return norms + element * (2 * h + 2 * q + 2 * k + 4 * f) + 4 * facts.num_heads


def head_bytes(facts: ModelFacts, tokens: int, element: int = 2) -> int:
    """Give what head and loss of a microbatch take, all its tokens being targets.

    A chunk's logits, their fp32 copy and the temporary of its log-sum-exp; for every target its
    row, the row's norm with an fp32 copy, and the gradients of both and of the hidden state.
    """
    chunk = min(chunk_rows(facts.vocabulary_size), tokens)
    logits = chunk * facts.vocabulary_size * (8 + (element if element < 4 else 0))
    return logits + tokens * facts.hidden_size * (4 + 5 * element)


def gap_bytes(block: int) -> int:
    """Give what torch's allocator holds beside what is alive, from a block's workspace."""
    return round(_GAP_OF_BLOCK * block + _GAP_BYTES)


def head_phase(num_bytes: int, *, is_gpu: bool) -> Phase:
    """Give the moment of head and loss, from what it takes."""
    gap = round(_GAP_OF_HEAD * num_bytes) if is_gpu else 0
    return Phase("head and loss", num_bytes, gap=gap)


def update_bytes(parameters: int, sum_bytes: int) -> int:
    """Give what updating one matrix takes: two fp32 copies and the reductions over them.

    The first copy is the gradient, which an fp32 sum is already; later a copy of the weight takes
    its place.
    """
    reductions = min(16 * parameters, _REDUCTION_BYTES)
    copies = 8 * parameters
    return copies + reductions if sum_bytes < 4 else max(copies, 4 * parameters + reductions)


def device_bytes(facts: ModelFacts, form: StepForm) -> DeviceBytes:
    """Give the bytes of a layer-major step on its device, by part."""
    return _measured(facts, form) if form.is_measured else _formula(facts, form)


def _weights(facts: ModelFacts, form: StepForm) -> int:
    resident = form.resident_blocks(facts.num_layers)
    outside = facts.num_parameters - facts.num_layers * facts.block_parameters
    return (resident * facts.block_parameters + outside) * form.weight_bytes


def _measured(facts: ModelFacts, form: StepForm) -> DeviceBytes:
    h, element = facts.hidden_size, form.weight_bytes
    tokens, step_tokens = form.microbatch_tokens, form.step_tokens
    vocabulary = facts.vocabulary_parameters
    block = tokens * recomputed_block_bytes_per_token(facts, element)
    head = head_bytes(facts, tokens, element)
    largest = max(math.prod(shape) for shape in facts.block_shapes)
    # Gradients laid end to end, sorted, and in fp32; then one fp32 row per distinct id.
    embedding = step_tokens * h * (4 + 2 * element)
    embedding += min(step_tokens, facts.vocabulary_size) * h * (4 + element)
    update_vocabulary = update_bytes(vocabulary, form.sum_bytes)
    phases = [
        Phase("backward of a block", block),
        head_phase(head, is_gpu=form.is_gpu),
        Phase("update of a block", update_bytes(largest, form.sum_bytes)),
        Phase("gradient of the embedding", embedding, with_inputs=False),
        Phase("update of the embedding", update_vocabulary, with_inputs=False),
    ]
    if not facts.tied:
        phases.append(Phase("update of the head", update_vocabulary))
    return DeviceBytes(
        weights=_weights(facts, form),
        slots=0,
        block_inputs=facts.num_layers * step_tokens * h * element,
        hidden_states=step_tokens * (h * element + 2 * facts.head_size * element + 16),
        gradient_sums=(facts.block_parameters + vocabulary + h) * form.sum_bytes,
        optimizer_state=factored_state_bytes(facts),
        staging=0,
        libraries=LIBRARY_BYTES if form.is_gpu else 0,
        phases=tuple(phases),
        gap=gap_bytes(block) if form.is_gpu else 0,
    )


def _formula(facts: ModelFacts, form: StepForm) -> DeviceBytes:
    """Give the bytes of a form that streams, offloads or keeps: buffers made once, tiled MLPs.

    A block's backward holds the attention tensors with their gradients, 2e(4h + 2k) per token in
    step with 4T(4h + 2k) at two bytes, six tensors of one tile of the MLP with theirs, and the
    microbatch's input with its gradient. A chunk of logits is overwritten by its own gradient.
    """
    h, k, f, element = (
        facts.hidden_size,
        facts.key_size,
        facts.intermediate_size,
        form.weight_bytes,
    )
    tokens, step_tokens = form.microbatch_tokens, form.step_tokens
    streamed = facts.num_layers - form.resident_blocks(facts.num_layers)
    slot_bytes = facts.block_parameters * (element + (2 if form.exact else 0))
    resident_parameters = facts.num_parameters - streamed * facts.block_parameters
    state = optimizer_state_bytes(facts, form.optimizer, resident_parameters)
    if streamed and form.optimizer != "adafactor":
        slot_bytes += optimizer_state_bytes(facts, form.optimizer, facts.block_parameters)
    kept = facts.num_layers * step_tokens * kept_bytes_per_token(facts, form.recompute, element)
    inputs = facts.num_layers * step_tokens * h * element + kept
    block = 2 * element * tokens * (2 * h + 2 * facts.query_size + 2 * k)
    block += 6 * element * min(_TILE_ROWS, tokens) * f + 2 * tokens * h * element
    chunk = min(chunk_rows(facts.vocabulary_size), tokens)
    head = tokens * h * element + chunk * facts.vocabulary_size * element
    phases = (Phase("backward of a block", block), head_phase(head, is_gpu=form.is_gpu))
    needs_slots = streamed > 0 or form.exact
    return DeviceBytes(
        weights=_weights(facts, form),
        slots=SLOTS * slot_bytes if needs_slots else 0,
        block_inputs=0 if form.pinned_inputs else inputs,
        hidden_states=step_tokens * (h * element + 2 * facts.head_size * element + 16),
        gradient_sums=(facts.block_parameters + facts.vocabulary_parameters + h) * form.sum_bytes,
        optimizer_state=state,
        staging=3 * tokens * h * element if form.pinned_inputs else 0,
        libraries=LIBRARY_BYTES if form.is_gpu else 0,
        phases=phases,
        gap=gap_bytes(block) if form.is_gpu else 0,
    )


# ---- host and disk -----------------------------------------------------------------------------

GPU_PROCESS_BYTES, CPU_PROCESS_BYTES = 3 * GIB, 512 * MIB
"""A rank before it holds anything: Python, torch, its libraries, tokenizer, mapped rows."""


@dataclass(frozen=True, kw_only=True)
class HostBytes:
    """Bytes of host memory that one rank takes, by part.

    Attributes:
        process: Python, torch, the loader.
        weights: blocks that are streamed.
        block_inputs: kept in pinned memory.
        gradient_sums: of a pipeline stage, where they do not fit its GPU.
        low_bits: of exact fp32 weights.
        optimizer_state: of streamed blocks.
        training: everything a step takes, where the CPU trains.
    """

    process: int
    weights: int = 0
    block_inputs: int = 0
    gradient_sums: int = 0
    low_bits: int = 0
    optimizer_state: int = 0
    training: int = 0

    @property
    def total(self) -> int:
        """Add up the parts."""
        pinned = self.weights + self.block_inputs + self.gradient_sums + self.low_bits
        return self.process + pinned + self.optimizer_state + self.training


def host_bytes(facts: ModelFacts, form: StepForm) -> HostBytes:
    """Give the host memory of a layer-major rank, by part."""
    element = form.weight_bytes
    if not form.is_gpu:
        return HostBytes(process=CPU_PROCESS_BYTES, training=device_bytes(facts, form).reserved)
    streamed = (facts.num_layers - form.resident_blocks(facts.num_layers)) * facts.block_parameters
    kept = facts.hidden_size * element + kept_bytes_per_token(facts, form.recompute, element)
    has_moments = form.optimizer != "adafactor"
    return HostBytes(
        process=GPU_PROCESS_BYTES,
        weights=streamed * element,
        block_inputs=facts.num_layers * form.step_tokens * kept if form.pinned_inputs else 0,
        low_bits=2 * facts.num_parameters if form.exact else 0,
        optimizer_state=optimizer_state_bytes(facts, form.optimizer, streamed)
        if has_moments
        else 0,
    )


def checkpoint_bytes(
    facts: ModelFacts,
    *,
    weight_bytes: int,
    optimizer: OptimizerName = "adafactor",
    exact: bool = False,
) -> int:
    """Give the bytes of one checkpoint: weights, the optimizer's state, low bits.

    5 % stand for what varies: tokenizer, headers, random states.
    """
    state = optimizer_state_bytes(facts, optimizer, facts.num_parameters)
    weights = facts.num_parameters * (weight_bytes + (2 if exact else 0))
    return int((weights + state) * 1.05)


# ---- choices -----------------------------------------------------------------------------------

# On the CPU: few enough that a microbatch's activations of one block stay small beside the model.
CPU_MICROBATCH_TOKENS = 8192


def sum_bytes_of(wanted: SumDtype, weight_bytes: int, microbatches: int) -> int:
    """Turn ``memory.sum_dtype`` into bytes: auto sums up to four microbatches in bfloat16."""
    if weight_bytes == 4 or wanted == "float32":
        return 4
    return 2 if wanted == "bfloat16" or microbatches <= 4 else 4


def microbatch_counts(rows: int) -> list[int]:
    """Give the numbers of equal parts that rows can be cut into, ascending."""
    small = [count for count in range(1, math.isqrt(rows) + 1) if rows % count == 0]
    return sorted({*small, *(rows // count for count in small)})


@dataclass(frozen=True)
class Choice:
    """A form, its bytes, and whether it stays within the budget (True where there is none)."""

    form: StepForm
    device: DeviceBytes
    fits: bool


def choose_microbatches(
    facts: ModelFacts,
    form: StepForm,
    *,
    microbatches: Literal["auto"] | int,
    sum_dtype: SumDtype,
    budget_bytes: int | None,
) -> Choice:
    """Choose the fewest microbatches that fit the budget; the largest number where none does.

    Without a budget on the CPU, the fewest of at most ``CPU_MICROBATCH_TOKENS`` tokens; on a GPU
    whose memory is not known, one.

    Args:
        facts: of the model.
        form: everything but ``microbatches`` and ``sum_bytes``, which are replaced.
        microbatches: ``batch.microbatches``.
        sum_dtype: ``memory.sum_dtype``.
        budget_bytes: of the GPU; None where there is none, or none is known.
    """
    counts = microbatch_counts(form.rows) if microbatches == "auto" else [microbatches]
    choice: Choice | None = None
    for count in counts:
        sums = sum_bytes_of(sum_dtype, form.weight_bytes, count)
        tried = replace(form, microbatches=count, sum_bytes=sums)
        device = device_bytes(facts, tried)
        if budget_bytes is not None:
            fits = needed_bytes(device, is_gpu=form.is_gpu) <= budget_bytes
        else:
            is_small = form.rows // count * form.row_length <= CPU_MICROBATCH_TOKENS
            fits = form.is_gpu or is_small
        choice = Choice(tried, device, fits or budget_bytes is None)
        if fits:
            break
    assert choice is not None, "a step has rows"
    return choice
