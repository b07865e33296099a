"""What one rank takes of its GPU and its host, part by part, in words for people.

Invariant: the parts of a rank add up to its total.
"""

from dataclasses import dataclass

from workbench.config.host_parts import HostBytes
from workbench.config.memory_parts import (
    DeviceBytes,
    StepForm,
    needed_bytes,
)
from workbench.config.model_facts import ModelFacts
from workbench.config.pipeline_parts import PipelineForm, RankBytes
from workbench.config.plan_search import Choice


@dataclass(frozen=True)
class Part:
    """A part of the bytes, in words for people."""

    label: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class RankFit:
    """What one rank takes; of a layer-major run there is one.

    Attributes:
        rank: from 0.
        blocks: of the model that are here.
        alive: passes of a pipeline alive at once; None in the layer-major engine.
        parts: of the device, which add up to ``total``.
        total: bytes that a budget must hold.
        peak_phase: when that is.
        host: host memory, by part.
    """

    rank: int
    blocks: int
    alive: int | None
    parts: tuple[Part, ...]
    total: int
    peak_phase: str
    host: HostBytes


def recompute_words(form: StepForm, num_layers: int) -> str:
    """Say how many blocks recompute how much: "30 blocks selective, 2 full"."""
    counts = (
        (form.kept_blocks, "none"),
        (form.selective_blocks, "selective"),
        (form.full_blocks(num_layers), "full"),
    )
    told = [(count, level) for count, level in counts if count]
    if len(told) == 1:
        return f"{told[0][1]} for every block"
    first, *rest = told
    return ", ".join(
        [f"{first[0]} blocks {first[1]}", *(f"{count} {level}" for count, level in rest)]
    )


def layer_major_rank(choice: Choice, facts: ModelFacts, *, is_gpu: bool) -> RankFit:
    """Give what a layer-major run takes, in words for people."""
    form = choice.form
    blocks, num_layers = form.resident_blocks(facts.num_layers), facts.num_layers
    kept = "block inputs and activations" if form.full_blocks(num_layers) == 0 else "block inputs"
    if 0 < form.full_blocks(num_layers) < num_layers:
        kept = "block inputs, some activations"
    vocabulary = "" if form.vocabulary_resident else ", vocabulary streamed"
    labels = _Labels(
        weights=f"weights, {blocks}/{num_layers} blocks resident{vocabulary}",
        inputs=f"{kept} → pinned RAM" if form.pinned_records else kept,
        sums="gradient sums: one block, the head" if facts.tied else "gradient sums of one block",
        state=_state_words(form.optimizer),
    )
    return _rank_fit(0, num_layers, None, choice.device, choice.host, labels, is_gpu=is_gpu)


@dataclass(frozen=True)
class _Labels:
    weights: str
    inputs: str
    sums: str
    state: str


def _state_words(optimizer: str) -> str:
    return (
        "factored optimizer state" if optimizer == "adafactor" else f"optimizer state: {optimizer}"
    )


def pipeline_rank(rank: RankBytes, form: PipelineForm, *, is_gpu: bool) -> RankFit:
    """Give what a rank of a pipeline takes, in words for people."""
    outside = [
        word for word, here in (("embedding", rank.has_embedding), ("head", rank.has_head)) if here
    ]
    labels = _Labels(
        weights=", ".join([f"weights: {rank.blocks} blocks", *outside]),
        inputs="block inputs → pinned RAM"
        if form.pinned_inputs
        else f"activations of {rank.alive} passes",
        sums="gradient sums → pinned RAM" if form.pinned_sums else "gradient sums of all stages",
        state=_state_words("adafactor"),
    )
    return _rank_fit(
        rank.rank, rank.blocks, rank.alive, rank.device, rank.host, labels, is_gpu=is_gpu
    )


def _rank_fit(
    rank: int,
    blocks: int,
    alive: int | None,
    device: DeviceBytes,
    host: HostBytes,
    labels: _Labels,
    *,
    is_gpu: bool,
) -> RankFit:
    phase = device.peak_phase
    total = needed_bytes(device, host.pinned) if is_gpu else host.total
    parts = [
        Part(labels.weights, device.weights),
        Part("slots that pass through", device.slots),
        Part("low bits, moments", device.companions),
        Part(labels.inputs, device.block_inputs if phase.with_inputs else 0),
        Part("buffers to and from elsewhere", device.staging),
        Part("hidden states of the step", device.hidden_states),
        Part("tables and ids of the step", device.step_inputs),
        Part(labels.sums, device.gradient_sums),
        Part(labels.state, device.optimizer_state),
        Part("where a block computes", device.block_buffers),
        Part("where head and loss compute", device.head_buffers),
        Part(f"beside it: {phase.name}", phase.workspace),
        Part("libraries, unused by the allocator", device.libraries + device.unused),
    ]
    always = (labels.weights, labels.inputs)
    parts = [part for part in parts if part.num_bytes or part.label in always]
    rest = total - sum(part.num_bytes for part in parts)
    parts.append(Part("CUDA context, 2 % margin" if is_gpu else "Python, torch, loader", rest))
    return RankFit(
        rank=rank,
        blocks=blocks,
        alive=alive,
        parts=tuple(parts),
        total=total,
        peak_phase=phase.name,
        host=host,
    )
