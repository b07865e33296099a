"""Bytes of host memory and of disk: what a rank takes beside its device, by arithmetic alone.

Knows shapes and numbers, no config, no torch. Invariant: what a form takes off the device is here.
"""

from dataclasses import dataclass

from workbench.config.memory_parts import (
    GIB,
    MIB,
    OptimizerName,
    StepForm,
    block_bytes,
    companion_bytes,
    device_bytes,
    factored_state_bytes,
    records_bytes,
)
from workbench.config.model_facts import ModelFacts

GPU_PROCESS_BYTES, CPU_PROCESS_BYTES = 3 * GIB, 512 * MIB
"""A rank before it holds anything: Python, torch, its libraries, tokenizer, mapped rows."""


@dataclass(frozen=True, kw_only=True)
class HostBytes:
    """Bytes of host memory that one rank takes, by part.

    Attributes:
        process: Python, torch, the loader.
        weights: blocks that are streamed, and the vocabulary where it is.
        block_inputs: kept in pinned memory, with activations kept beside them.
        gradient_sums: of a pipeline stage, where they do not fit its GPU.
        low_bits: of exact fp32 weights that travel.
        optimizer_state: moments that travel.
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
    def pinned(self) -> int:
        """Add up what is locked in memory for the GPU."""
        pinned = self.weights + self.block_inputs + self.gradient_sums + self.low_bits
        return pinned + self.optimizer_state

    @property
    def total(self) -> int:
        """Add up the parts."""
        return self.process + self.pinned + self.training


def host_bytes(facts: ModelFacts, form: StepForm) -> HostBytes:
    """Give the host memory of a layer-major rank, by part."""
    if not form.is_gpu:
        return HostBytes(process=CPU_PROCESS_BYTES, training=device_bytes(facts, form).reserved)
    weights = form.streamed_blocks * block_bytes(facts, form.weight_bytes)
    if not form.vocabulary_resident:
        weights += facts.vocabulary_parameters * (1 if facts.tied else 2) * form.weight_bytes
    travelling = 0 if form.companions_resident else facts.num_parameters
    moments = companion_bytes(form.optimizer, exact=False)
    return HostBytes(
        process=GPU_PROCESS_BYTES,
        weights=weights,
        block_inputs=records_bytes(facts, form) if form.pinned_records else 0,
        low_bits=2 * travelling if form.exact else 0,
        optimizer_state=round(moments * travelling),
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
    state = factored_state_bytes(facts) if optimizer == "adafactor" else 0
    beside = companion_bytes(optimizer, exact=exact)
    return int((facts.num_parameters * (weight_bytes + beside) + state) * 1.05)
