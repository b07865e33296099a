"""Bytes of every rank of a pipeline, by arithmetic: formula only, for its engine is not built yet.

Blocks are dealt out by cost, the head counted as the blocks it costs; a rank holds its stages'
weights, the gradient sums of all of them (a schedule ends its backwards late), the activations of
the passes that are alive, and one receive buffer per microbatch and neighbour.

Knows shapes and numbers, no config, no torch. Invariant: every block is on exactly one rank.
"""

import math
from dataclasses import dataclass, replace

from workbench.config.host_parts import CPU_PROCESS_BYTES, GPU_PROCESS_BYTES, HostBytes
from workbench.config.memory_parts import (
    LIBRARY_BYTES,
    DeviceBytes,
    Phase,
    Recompute,
    factored_state_bytes,
    kept_bytes_per_token,
    needed_bytes,
    step_inputs_bytes,
    twin_update_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.pipeline_twins import (
    gap_bytes,
    head_bytes,
    head_phase,
    recomputed_block_bytes_per_token,
    saved_bytes_per_token,
)
from workbench.config.schedule_facts import ScheduleName, alive_passes, is_v_shaped


@dataclass(frozen=True, kw_only=True)
class PipelineForm:
    """How a step runs over several ranks, every choice made.

    Attributes:
        ranks: of the pipeline.
        stages: per rank.
        schedule: order of forwards and backwards.
        rows: of a step.
        row_length: tokens of a row.
        microbatches: parts of the step.
        weight_bytes: per element of weights and activations.
        sum_bytes: per element of a gradient sum.
        recompute: what of a block is computed again in backward.
        pinned_inputs: block inputs wait in pinned host memory.
        pinned_sums: gradient sums wait there too and pass through two slots of a block's size.
        is_gpu: on GPUs.
    """

    ranks: int
    stages: int
    schedule: ScheduleName
    rows: int
    row_length: int
    microbatches: int
    weight_bytes: int = 2
    sum_bytes: int = 2
    recompute: Recompute = "full"
    pinned_inputs: bool = False
    pinned_sums: bool = False
    is_gpu: bool = True

    @property
    def microbatch_tokens(self) -> int:
        """Count the tokens that pass a stage together."""
        return -(-self.rows // self.microbatches) * self.row_length

    @property
    def step_tokens(self) -> int:
        """Count the tokens of a step."""
        return self.microbatch_tokens * self.microbatches


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """What one rank holds.

    Attributes:
        rank: from 0.
        blocks: of the model, over all stages of the rank.
        has_embedding: the first stage is here.
        has_head: the last stage is here.
        alive: passes whose activations are held at the worst moment.
        share: of the model's work.
        device: bytes on the device.
        host: bytes of host memory.
    """

    rank: int
    blocks: int
    has_embedding: bool
    has_head: bool
    alive: int
    share: float
    device: DeviceBytes
    host: HostBytes


def deal_blocks(facts: ModelFacts, form: PipelineForm) -> tuple[list[int], list[float]]:
    """Deal the blocks to the ranks so that the slowest is as fast as it can be.

    The head costs 6Vh per token, forward and backward; a block 6 per matrix element, 8 where it is
    recomputed. Embedding and attention are left out: the one is free, the other alike in all.

    Returns:
        Blocks per rank, and each rank's share of the work. Four ranks of a 7B with 32 blocks get
        8 each and the last 8 with the head, or 7 where the vocabulary is large.
    """
    matrices = sum(math.prod(shape) for shape in facts.block_shapes if len(shape) == 2)
    block = (8 if form.recompute == "full" else 6) * matrices
    head_rank = 0 if is_v_shaped(form.schedule) else form.ranks - 1
    blocks = [form.stages] * form.ranks
    costs = [form.stages * 1.0] * form.ranks
    costs[head_rank] += 6 * facts.vocabulary_parameters / block
    for _ in range(facts.num_layers - sum(blocks)):
        rank = min(range(form.ranks), key=lambda each: (costs[each], each))
        blocks[rank] += 1
        costs[rank] += 1
    return blocks, [cost / sum(costs) for cost in costs]


def ranks_bytes(facts: ModelFacts, form: PipelineForm) -> list[RankBytes]:
    """Give what each rank holds, rank 0 first."""
    blocks, shares = deal_blocks(facts, form)
    return [
        _rank_bytes(facts, form, rank, blocks[rank], shares[rank]) for rank in range(form.ranks)
    ]


def worst_rank(ranks: list[RankBytes]) -> RankBytes:
    """Give the rank that holds most: it decides."""
    return max(ranks, key=lambda each: each.device.reserved)


def place_sums(
    facts: ModelFacts, form: PipelineForm, budget_bytes: int | None
) -> tuple[PipelineForm, list[RankBytes]]:
    """Keep gradient sums on the GPUs where they fit the budget, else move them to pinned memory.

    Moving sums costs two bytes per parameter and way and microbatch; moving weights would need
    three times the tokens per microbatch to hide, so sums go first.
    """
    ranks = ranks_bytes(facts, form)
    if budget_bytes is None or not form.is_gpu:
        return form, ranks
    worst = worst_rank(ranks)
    if needed_bytes(worst.device, worst.host.pinned) <= budget_bytes:
        return form, ranks
    moved = replace(form, pinned_sums=True)
    return moved, ranks_bytes(facts, moved)


def _rank_bytes(
    facts: ModelFacts, form: PipelineForm, rank: int, blocks: int, share: float
) -> RankBytes:
    h, element, tokens = facts.hidden_size, form.weight_bytes, form.microbatch_tokens
    has_embedding = rank == 0
    has_head = rank == (0 if is_v_shaped(form.schedule) else form.ranks - 1)
    vocabulary = facts.vocabulary_parameters
    # A tied head on a rank of its own is a second copy, kept equal by sending gradients and rows.
    copies = has_embedding + has_head - (facts.tied and has_embedding and has_head)
    parameters = blocks * facts.block_parameters + copies * vocabulary + has_head * h
    alive = alive_passes(
        form.schedule,
        ranks=form.ranks,
        rank=rank,
        stages=form.stages,
        microbatches=form.microbatches,
    )
    held = alive * -(-blocks // form.stages) * tokens
    kept = held * h * element
    if form.recompute == "selective":
        kept += held * kept_bytes_per_token(facts, "selective", element)
    elif form.recompute == "none":
        kept = held * saved_bytes_per_token(facts, element)
    block = recomputed_block_bytes_per_token(facts, element)
    if form.recompute == "none":
        block = max(
            block - saved_bytes_per_token(facts, element),
            3 * element * facts.intermediate_size,
        )
    phases = [Phase("backward of a block", tokens * block)]
    if has_head:
        phases.append(head_phase(head_bytes(facts, tokens, element), is_gpu=form.is_gpu))
    largest = max(
        (vocabulary if has_embedding or has_head else 0),
        *(math.prod(shape) for shape in facts.block_shapes),
    )
    # Updates come after a stage's last backward: its activations are gone by then.
    phases.append(
        Phase("update of a tensor", twin_update_bytes(largest, form.sum_bytes), with_inputs=False)
    )
    sums = parameters * form.sum_bytes
    slots = 2 * max(facts.block_parameters, copies * vocabulary) * form.sum_bytes
    buffers = form.microbatches * tokens * h * element * _num_neighbours(form, rank)
    staging = 3 * tokens * h * element if form.pinned_inputs else 0
    device = DeviceBytes(
        weights=parameters * element,
        slots=slots if form.pinned_sums else 0,
        block_inputs=0 if form.pinned_inputs else kept,
        hidden_states=0,
        step_inputs=step_inputs_bytes(facts, form.step_tokens, element),
        gradient_sums=0 if form.pinned_sums else sums,
        optimizer_state=round(factored_state_bytes(facts) * parameters / facts.num_parameters),
        staging=buffers + staging,
        libraries=LIBRARY_BYTES if form.is_gpu else 0,
        phases=tuple(phases),
        gap=gap_bytes(tokens * block) if form.is_gpu else 0,
    )
    host = HostBytes(
        process=GPU_PROCESS_BYTES if form.is_gpu else CPU_PROCESS_BYTES,
        block_inputs=kept if form.pinned_inputs else 0,
        gradient_sums=sums if form.pinned_sums else 0,
        training=0 if form.is_gpu else device.reserved,
    )
    return RankBytes(
        rank=rank,
        blocks=blocks,
        has_embedding=has_embedding,
        has_head=has_head,
        alive=alive,
        share=share,
        device=device,
        host=host,
    )


def _num_neighbours(form: PipelineForm, rank: int) -> int:
    """Count the borders from which the stages of a rank receive, forward and backward."""
    last = form.ranks * form.stages - 1
    if is_v_shaped(form.schedule):
        places = [rank, last - rank]
    else:
        places = [rank + index * form.ranks for index in range(form.stages)]
    return sum((place > 0) + (place < last) for place in places)
