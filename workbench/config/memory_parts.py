"""Bytes of every part of a step, by arithmetic alone: one function for forecast and worker.

The layer-major engine allocates what it needs once, before its first step: weights or the slots
that they pass through, sums, what forward keeps, arenas. So its peak is the sum of these buffers
and of the largest thing that comes and goes beside them. The engine counts the same parts by the
same names, and a test holds the two against each other.

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
"""What the driver takes for a new context outside of torch's count; 769 to 773 MiB on an H200."""

KERNEL_BYTES = 52 * MIB
"""What it takes for kernels, once all of a step are loaded; 44 to 51 MiB on an H200."""

_PAGE, _PAGE_ENTRY = 4096, 8  # bytes of pinned memory, and of the GPU for its place in a table

MARGIN = 0.02
"""Share of torch's bytes that a plan leaves free."""

SLOTS = 3
"""Blocks' worth of GPU memory that streamed blocks pass through; two where it must be."""

COMPANION_SLOTS = 2
"""Slots for what an optimizer keeps of a block, which is there for updates alone."""

LIBRARY_BYTES = 72 * MIB
"""Workspaces of cuBLAS and cuBLASLt, 32 MiB each, from torch's allocator; scratch of updates."""

# What the parts take that fused kernels add up afterwards, and flash attention's room to pad each
# document, in elements of a query in fp32; tokens times query heads that one call of attention's
# backward takes at most, which ``model/attention_kernels`` holds to.
_PARTS_BYTES, _PADDED_ROWS, _TOKEN_HEADS = 8 * MIB, 128, 1 << 19
_PROCESSORS = 132  # of an H200; other large cards have about as many
# What torch's allocator (expandable segments) holds without using it: small tensors of many sizes,
# and a share of what comes and goes. Arenas leave it little else.
_GAP_BYTES, _GAP_OF_TRANSIENT = 24 * MIB, 0.03
# Where a tensor may begin in a region.
_ALIGNMENT = 256
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
        row_documents: documents that a row holds at most.
        weight_bytes: per element of weights and activations, 2 or 4.
        sum_bytes: per element of a gradient sum, 2 or 4.
        streamed_blocks: whose weights wait in host memory; 0 keeps all on the device.
        vocabulary_resident: embedding and head stay on the device; else one slot serves both.
        slots: that streamed blocks pass through.
        pinned_records: what forward keeps for backward waits in pinned host memory.
        selective_blocks: of which all but norms and MLP products is kept.
        kept_blocks: of which every product is kept; of the others, the input alone.
        tile_rows: rows of the MLP that exist at once.
        head_rows: rows that pass the head together; None takes ``chunk_rows``.
        optimizer: update rule.
        exact: the low 16 bits of fp32 weights are kept beside the high ones.
        companions_resident: low bits and moments stay on the device; else they travel.
        deterministic: attention sums in one fixed order, which takes more room.
        is_gpu: on a GPU; on the CPU there is no context, and no allocator that holds back.
    """

    rows: int
    row_length: int
    microbatches: int
    row_documents: int = 1
    weight_bytes: int = 2
    sum_bytes: int = 2
    streamed_blocks: int = 0
    vocabulary_resident: bool = True
    slots: int = SLOTS
    pinned_records: bool = False
    selective_blocks: int = 0
    kept_blocks: int = 0
    tile_rows: int = 2048
    head_rows: int | None = None
    optimizer: OptimizerName = "adafactor"
    exact: bool = False
    companions_resident: bool = True
    deterministic: bool = False
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
    def companion_bytes(self) -> float:
        """Give the bytes that the optimizer keeps beside each element of a weight."""
        return companion_bytes(self.optimizer, exact=self.exact)

    def resident_blocks(self, num_layers: int) -> int:
        """Count the blocks whose weights stay on the device."""
        return num_layers - self.streamed_blocks

    def at_level(self, recompute: Recompute, num_layers: int) -> "StepForm":
        """Give the same form with every block recomputed so."""
        return replace(
            self,
            selective_blocks=num_layers if recompute == "selective" else 0,
            kept_blocks=num_layers if recompute == "none" else 0,
        )

    def full_blocks(self, num_layers: int) -> int:
        """Count the blocks of which the input alone is kept."""
        return num_layers - self.selective_blocks - self.kept_blocks


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
        weights: resident blocks, embedding and head where they stay, final norm.
        slots: where streamed blocks pass through, the vocabulary where it is streamed, and what
            an optimizer keeps of either where that travels.
        companions: low bits and moments that stay.
        block_inputs: kept on the device for backward, with activations kept beside them.
        hidden_states: of the whole step, or their gradients.
        step_inputs: rotary tables, ids, targets and their order, of the whole step.
        gradient_sums: one block's, and the head's or embedding's; a pipeline stage's whole.
        optimizer_state: statistics that stay on the device.
        staging: buffers on the way to and from pinned memory, or between stages.
        block_buffers: where a block computes.
        head_buffers: where head and loss compute.
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
    step_inputs: int = 0
    companions: int = 0
    block_buffers: int = 0
    head_buffers: int = 0

    @property
    def lasting(self) -> int:
        """Give the bytes that are there in every phase, block inputs left out."""
        return (
            self.weights + self.slots + self.companions + self.hidden_states + self.step_inputs
            + self.gradient_sums + self.optimizer_state + self.staging + self.block_buffers
            + self.head_buffers + self.libraries
        )  # fmt: skip

    def _at(self, phase: Phase) -> int:
        return self.lasting + phase.workspace + (self.block_inputs if phase.with_inputs else 0)

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


def outside_bytes(pinned: int) -> int:
    """Give what the driver takes of the GPU outside of torch's count, page tables included.

    On an H200 it was within 7 MiB of this with none to 234 GiB of pinned memory.

    Args:
        pinned: bytes of host memory that the GPU reads and writes.
    """
    return CONTEXT_BYTES + KERNEL_BYTES + pinned * _PAGE_ENTRY // _PAGE


def needed_bytes(device: DeviceBytes, pinned: int, *, is_gpu: bool = True) -> int:
    """Give what a budget must hold: reserved bytes, a margin on them, and the driver's.

    Args:
        device: its parts.
        pinned: bytes of host memory that the GPU reads and writes.
        is_gpu: there is a driver.
    """
    return int(device.reserved * (1 + MARGIN)) + (outside_bytes(pinned) if is_gpu else 0)


def factored_state_bytes(facts: ModelFacts) -> int:
    """Give the bytes of Adafactor's fp32 statistics: a row and a column per matrix.

    A vector keeps its whole second moment.
    """
    inside = sum(sum(shape) for shape in facts.block_shapes) * facts.num_layers
    vocabulary = (facts.vocabulary_size + facts.hidden_size) * (1 if facts.tied else 2)
    return 4 * (inside + vocabulary + facts.hidden_size)


def companion_bytes(optimizer: OptimizerName, *, exact: bool) -> float:
    """Give the bytes kept beside each element of a weight: moments, and low bits where exact."""
    return _STATE_BYTES.get(optimizer, 0.0) + (2.0 if exact else 0.0)


def chunk_rows(vocabulary_size: int) -> int:
    """Give the rows that pass the head together: 2^25 logits where 1,024 to 4,096 rows allow it.

    Fewer rows would be bound by launches and add too often into a bfloat16 sum.
    """
    return max(_SMALLEST_CHUNK, min(_LARGEST_CHUNK, _CHUNK_ELEMENTS // vocabulary_size))


def block_bytes(facts: ModelFacts, element: int) -> int:
    """Give the bytes of one block's region: each tensor or stack at a multiple of 256 bytes."""
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    groups = [(q + 2 * k) * h, h * q, 2 * f * h, h * f, *_vector_groups(facts)]
    return sum(_aligned(group * element) for group in groups)


def _vector_groups(facts: ModelFacts) -> list[int]:
    """Give the sizes of a block's vectors; biases lie together where all of a stack has them."""
    sizes = [shape[0] for shape in facts.block_shapes if len(shape) == 1]
    for stack, parts in (
        (("q", "k", "v"), [facts.query_size, facts.key_size, facts.key_size]),
        (("gate", "up"), [facts.intermediate_size] * 2),
    ):
        if set(stack) <= set(facts.biased):
            for part in parts:
                sizes.remove(part)
            sizes.append(sum(parts))
    return sizes


def record_bytes(facts: ModelFacts, tokens: int, recompute: Recompute, element: int = 2) -> int:
    """Give the bytes that forward keeps of one block and microbatch.

    *Full* keeps the block's input; *selective* queries, keys and values (where heads are normed, as
    they were before), attention's result with its log-sum-exp, and the residual behind it; *none*
    gate and up as well, so that no product is repeated.
    """
    h, q, k = facts.hidden_size, facts.query_size, facts.key_size
    kept = _aligned(tokens * h * element)
    if recompute != "full":
        kept += _aligned(tokens * (q + 2 * k) * element) + _aligned(tokens * q * element)
        kept += _aligned(tokens * facts.num_heads * 4) + _aligned(tokens * h * element)
    if recompute == "none":
        kept += _aligned(tokens * 2 * facts.intermediate_size * element)
    return kept


def kept_bytes_per_token(facts: ModelFacts, recompute: Recompute, element: int = 2) -> int:
    """Give the bytes per token and block that are kept beside the block's input."""
    if recompute == "full":
        return 0
    h, q, k = facts.hidden_size, facts.query_size, facts.key_size
    kept = element * (2 * q + h + 2 * k) + 4 * facts.num_heads
    return kept if recompute == "selective" else kept + 2 * element * facts.intermediate_size


def records_bytes(facts: ModelFacts, form: StepForm) -> int:
    """Give the bytes that forward keeps of all blocks and microbatches."""
    tokens, element = form.microbatch_tokens, form.weight_bytes
    counts: tuple[tuple[int, Recompute], ...] = (
        (form.full_blocks(facts.num_layers), "full"),
        (form.selective_blocks, "selective"),
        (form.kept_blocks, "none"),
    )
    return form.microbatches * sum(
        count * record_bytes(facts, tokens, level, element) for count, level in counts if count
    )


def largest_record_bytes(facts: ModelFacts, form: StepForm) -> int:
    """Give the bytes of the largest record, which a staging buffer must hold."""
    level: Recompute = (
        "none" if form.kept_blocks else "selective" if form.selective_blocks else "full"
    )
    return record_bytes(facts, form.microbatch_tokens, level, form.weight_bytes)


def step_inputs_bytes(facts: ModelFacts, step_tokens: int, element: int) -> int:
    """Give the bytes of rotary tables, and of ids, targets and the order of sums: six int64."""
    return step_tokens * (2 * facts.head_size * element + 48)


def head_rows_of(facts: ModelFacts, form: StepForm) -> int:
    """Give the rows that pass the head together."""
    rows = chunk_rows(facts.vocabulary_size) if form.head_rows is None else form.head_rows
    return min(rows, form.microbatch_tokens)


def device_bytes(facts: ModelFacts, form: StepForm) -> DeviceBytes:
    """Give the bytes of a layer-major step on its device, by part."""
    h, q, k, f = facts.hidden_size, facts.query_size, facts.key_size, facts.intermediate_size
    e, tokens, step_tokens = form.weight_bytes, form.microbatch_tokens, form.step_tokens
    # Heads that are normed are kept as they were before, and turned in a buffer of their own.
    qkv = (q + 2 * k) * (2 if facts.query_key_norm else 1)
    vocabulary, matrices = facts.vocabulary_parameters, 1 if facts.tied else 2
    weights = form.resident_blocks(facts.num_layers) * block_bytes(facts, e) + h * e
    slots = companions = 0
    if form.streamed_blocks:
        slots += form.slots * block_bytes(facts, e)
    if form.vocabulary_resident:
        weights += matrices * vocabulary * e
    else:
        slots += vocabulary * e
    beside = form.companion_bytes
    if beside and form.companions_resident:
        companions = round(beside * facts.num_parameters)
    elif beside:
        slots += round(beside * (COMPANION_SLOTS * facts.block_parameters + vocabulary))
    records = records_bytes(facts, form)
    tile = min(form.tile_rows, tokens)
    return DeviceBytes(
        weights=weights,
        slots=slots,
        companions=companions,
        block_inputs=0 if form.pinned_records else records,
        hidden_states=step_tokens * h * e,
        step_inputs=step_inputs_bytes(facts, step_tokens, e),
        gradient_sums=_sums_bytes(facts, form),
        optimizer_state=factored_state_bytes(facts) if form.optimizer == "adafactor" else 0,
        staging=2 * largest_record_bytes(facts, form) if form.pinned_records else 0,
        block_buffers=tokens * e * (h + qkv + max(h, q)) + tile * 3 * f * e,
        head_buffers=head_rows_of(facts, form) * ((facts.vocabulary_size + 3 * h) * e + 5),
        libraries=LIBRARY_BYTES if form.is_gpu else 0,
        phases=tuple(_phase(*each, is_gpu=form.is_gpu) for each in _transients(facts, form)),
        gap=_GAP_BYTES if form.is_gpu else 0,
    )


def _sums_bytes(facts: ModelFacts, form: StepForm) -> int:
    """Give the bytes of gradient sums; those of vectors are fp32.

    A head that is no embedding is updated before the first block: one region serves both.
    """
    groups = _vector_groups(facts)
    vectors = sum(_aligned(4 * group) for group in groups)
    block = (facts.block_parameters - sum(groups)) * form.sum_bytes
    vocabulary = facts.vocabulary_parameters * form.sum_bytes
    together = block + vocabulary if facts.tied else max(block, vocabulary)
    return together + vectors + 4 * facts.hidden_size


def _transients(facts: ModelFacts, form: StepForm) -> list[tuple[str, int]]:
    """Give what comes and goes, by moment: tensors that torch's own kernels make."""
    q, e, tokens = facts.query_size, form.weight_bytes, form.microbatch_tokens
    attended = tokens * (q * e + 4 * facts.num_heads)
    backward = _attention_backward_bytes(facts, form)
    if form.full_blocks(facts.num_layers):
        backward += attended
    largest = max(facts.vocabulary_parameters, *(math.prod(shape) for shape in facts.block_shapes))
    update = _PARTS_BYTES if form.is_gpu else twin_update_bytes(largest, form.sum_bytes)
    return [
        ("attention of a block", attended),
        ("backward of a block", max(backward, _PARTS_BYTES if form.is_gpu else 0)),
        ("update of a matrix", update),
    ]


def _attention_backward_bytes(facts: ModelFacts, form: StepForm) -> int:
    """Give what attention's backward allocates beside what it is given.

    Gradients of queries, keys and values; fp32 sums of the first, padded for each document; and
    where several query heads share keys, gradients of both for every query head before they are
    added. Where rows are long their heads go in turn: only the gradients are for all of them, and
    the kernel copies the result and its gradient, of which it is given a part, to have them whole.
    """
    q, k, e, tokens = facts.query_size, facts.key_size, form.weight_bytes, form.microbatch_tokens
    group = facts.num_heads // facts.num_key_value_heads
    at_once = max(1, _TOKEN_HEADS // (tokens * group)) if form.is_gpu else facts.num_heads
    gradients = tokens * (q + 2 * k) * e
    in_turn = 0
    if at_once < facts.num_key_value_heads:
        q = at_once * group * facts.head_size
        in_turn = tokens * (3 * q + 2 * at_once * facts.head_size) * e
    padded = tokens + _PADDED_ROWS * form.row_documents * form.rows_per_microbatch
    sums = 1
    if form.deterministic and form.is_gpu:
        # One per multiprocessor that would otherwise wait for its turn.
        sums = -(-_PROCESSORS // (form.rows_per_microbatch * facts.num_heads))
    beside = sums * padded * 4 * q + (2 * tokens * q * e if group > 1 else 0)
    return gradients + in_turn + beside


def _phase(name: str, workspace: int, *, is_gpu: bool) -> Phase:
    return Phase(name, workspace, gap=round(_GAP_OF_TRANSIENT * workspace) if is_gpu else 0)


def twin_update_bytes(parameters: int, sum_bytes: int) -> int:
    """Give what updating one matrix takes without a fused kernel: fp32 copies and reductions.

    The first copy is the gradient, which an fp32 sum is already; later a copy of the weight takes
    its place.
    """
    reductions = min(16 * parameters, 133 * MIB)
    copies = 8 * parameters
    return copies + reductions if sum_bytes < 4 else max(copies, 4 * parameters + reductions)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def documents_of(row_length: int, seen_tokens: float | None) -> int:
    """Guess how many documents a row holds at most, from their mean length: half more than fit."""
    if seen_tokens is None or seen_tokens >= row_length:
        return 1
    return math.ceil(1.5 * row_length / max(1.0, seen_tokens))


# ---- what a config says ------------------------------------------------------------------------


def sum_bytes_of(wanted: SumDtype, weight_bytes: int, microbatches: int) -> int:
    """Turn ``memory.sum_dtype`` into bytes: auto sums up to four microbatches in bfloat16."""
    if weight_bytes == 4 or wanted == "float32":
        return 4
    return 2 if wanted == "bfloat16" or microbatches <= 4 else 4


def microbatch_counts(rows: int) -> list[int]:
    """Give the numbers of equal parts that rows can be cut into, ascending."""
    small = [count for count in range(1, math.isqrt(rows) + 1) if rows % count == 0]
    return sorted({*small, *(rows // count for count in small)})
