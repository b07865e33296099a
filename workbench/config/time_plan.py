"""Seconds of a step from FLOP, the rate of a card and the rate of its link.

A rate comes from whoever states it, from a card in the table, or is an assumption; ``Rates.basis``
always says which. Knows numbers, no machine. Invariant: nothing here is precise; a measured run of
the same config is better, and ``memory_plan`` prefers one.
"""

import math
from dataclasses import dataclass
from typing import Literal

from workbench.config.memory_parts import (
    StepForm,
    kept_bytes_per_token,
    optimizer_state_bytes,
)
from workbench.config.model_facts import ModelFacts

Recompute = Literal["full", "all", "selective", "none"]


@dataclass(frozen=True)
class Card:
    """What is published of a card: dense bf16 TFLOP/s, memory GB/s, link GB/s of one direction."""

    peak_tflops: float
    memory_gbps: float
    link_gbps: float


CARDS = {
    "H200": Card(989, 4800, 55),
    "H100 PCIe": Card(756, 2000, 50),
    "H100": Card(989, 3350, 50),
    "A100": Card(312, 1555, 24),
    "L40S": Card(362, 864, 24),
    "RTX A6000": Card(155, 768, 24),
    "RTX 5090": Card(209, 1792, 50),
    "RTX 4090": Card(165, 1008, 24),
    "RTX 4080": Card(97, 717, 24),
    "RTX 4070 Ti": Card(80, 504, 24),
    "RTX 3090": Card(71, 936, 24),
    "RTX 5060 Ti": Card(47, 448, 24),
}
"""By a part of the name that nvidia-smi gives; the first that fits counts."""

# Share of a card's peak that products, attention and what lies between them reach together, and
# bytes of its memory that one parameter's update moves: fitted to steps of 512 to 16,384 tokens
# of 7 B and 8 B shapes on one H200. The same shares are taken for other cards, whose peak and
# bandwidth stand in a like ratio.
EFFICIENCY = 0.54
_UPDATE_BYTES = 600
# Narrower products reach less: the root of the width below this one fits shapes of 900 to 4,096.
_FULL_WIDTH = 4096
# One microbatch through one block, forward and back, costs this in launches, read off steps of one
# to eight microbatches.
_LAUNCH_SECONDS = 0.7e-3
# FLOP per byte of device memory where only a rate is stated.
_FLOP_PER_BYTE = 110
_CPU_TFLOPS = 0.1
_ASSUMED_TFLOPS, _ASSUMED_LINK_GBPS = 85.0, 24.0


@dataclass(frozen=True)
class Rates:
    """How fast a machine is taken to be.

    Attributes:
        flops: achieved FLOP/s of training.
        memory: bytes per second of device memory.
        link: bytes per second between host and device, one direction.
        basis: where these come from, in words.
        is_gpu: narrow products reach a smaller share of the rate.
    """

    flops: float
    memory: float
    link: float
    basis: str
    is_gpu: bool = True


def rates_of(
    *,
    gpu_name: str | None,
    tflops: float | None = None,
    link_gbps: float | None = None,
    is_gpu: bool = True,
) -> Rates:
    """Find the rates of a machine.

    Args:
        gpu_name: as nvidia-smi gives it; None where there is none.
        tflops: achieved, stated by the user; comes before the table.
        link_gbps: GB/s of one direction, stated by the user.
        is_gpu: a GPU trains.
    """
    found = _card(gpu_name)
    if not is_gpu:
        rate, memory = (tflops or _CPU_TFLOPS) * 1e12, 10e9
        basis = f"{tflops or _CPU_TFLOPS:g} TFLOP/s" + (
            " as stated" if tflops else ", an assumption"
        )
        return Rates(rate, memory, memory, f"CPU: {basis}", is_gpu=False)
    if tflops is not None:
        rate, memory = tflops * 1e12, tflops * 1e12 / _FLOP_PER_BYTE
        words = f"{tflops:g} TFLOP/s as stated"
    elif found is not None:
        name, card = found
        rate, memory = card.peak_tflops * 1e12 * EFFICIENCY, card.memory_gbps * 1e9
        words = f"{name}: {EFFICIENCY:.0%} of {card.peak_tflops:g} TFLOP/s"
    else:
        rate, memory = _ASSUMED_TFLOPS * 1e12, _ASSUMED_TFLOPS * 1e12 / _FLOP_PER_BYTE
        unknown = f"{gpu_name} is not in the table" if gpu_name else "no GPU here"
        words = f"assumed {_ASSUMED_TFLOPS:g} TFLOP/s, about an RTX 4090 ({unknown}; --tflops)"
    link = found[1].link_gbps if found and link_gbps is None else link_gbps or _ASSUMED_LINK_GBPS
    stated = " as stated" if link_gbps is not None else ""
    return Rates(rate, memory, link * 1e9, f"{words}, link {link:g} GB/s{stated}")


def _card(gpu_name: str | None) -> tuple[str, Card] | None:
    wanted = (gpu_name or "").lower()
    for name, card in CARDS.items():
        if all(word in wanted for word in name.lower().split()):
            return name, card
    return None


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
    if facts.sliding_window is not None:
        seen_tokens = min(seen_tokens, facts.sliding_window)
    attention = 2 * facts.num_layers * seen_tokens * facts.query_size
    return 2 * matmul_parameters(facts) + attention


def training_flop_per_token(
    facts: ModelFacts,
    seen_tokens: float,
    recompute: Recompute = "full",
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


# ---- seconds -----------------------------------------------------------------------------------


def step_seconds(facts: ModelFacts, form: StepForm, rates: Rates, seen_tokens: float) -> float:
    """Give the seconds of a layer-major step: the longest of compute, copies up, copies down.

    A streamed block goes up for forward and for backward and down once it is updated; low bits and
    moments go both ways in backward; pinned block inputs, and what is kept beside them, go down in
    forward and up in backward.
    """
    flop = form.step_tokens * training_flop_per_token(facts, seen_tokens, form.recompute)
    launches = facts.num_layers * form.microbatches * _LAUNCH_SECONDS if form.is_gpu else 0.0
    # Moving less than the twin of today's factored update would be another kernel.
    update = facts.num_parameters * _UPDATE_BYTES / rates.memory
    streamed = (facts.num_layers - form.resident_blocks(facts.num_layers)) * facts.block_parameters
    beside = 2 * facts.num_parameters if form.exact else 0
    if form.optimizer != "adafactor":
        beside += optimizer_state_bytes(facts, form.optimizer, streamed)
    inputs = 0
    if form.pinned_inputs:
        kept = facts.hidden_size * form.weight_bytes
        kept += kept_bytes_per_token(facts, form.recompute, form.weight_bytes)
        inputs = facts.num_layers * form.step_tokens * kept
    up = (2 * streamed * form.weight_bytes + beside + inputs) / rates.link
    down = (streamed * form.weight_bytes + beside + inputs) / rates.link
    return max(flop / _reached(facts, rates) + update + launches, up, down)


def stage_seconds(
    facts: ModelFacts, share: float, tokens: int, rates: Rates, seen_tokens: float, recompute: bool
) -> float:
    """Give the seconds that a pipeline rank computes in a step, for its share of the model."""
    how: Literal["full", "none"] = "full" if recompute else "none"
    flop = tokens * training_flop_per_token(facts, seen_tokens, how)
    update = facts.num_parameters * _UPDATE_BYTES / rates.memory
    return share * (flop / _reached(facts, rates) + update)


def _reached(facts: ModelFacts, rates: Rates) -> float:
    """Give the FLOP/s that products of this width reach."""
    if not rates.is_gpu:
        return rates.flops
    return rates.flops * math.sqrt(min(1.0, facts.hidden_size / _FULL_WIDTH))
