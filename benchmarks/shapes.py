"""Shapes of models, and random rows for them: what every benchmark of a step begins with."""

import dataclasses
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from workbench.data.loader import StepRows, make_batch
from workbench.data.packing import Row
from workbench.model.families import Dimensions

# vocabulary, hidden, layers, intermediate, heads, key and value heads
SHAPES = {
    "demo": (1536, 128, 4, 384, 4, 2),
    "qwen-0.5b": (151936, 896, 24, 4864, 14, 2),
    "1b": (32000, 2048, 16, 5632, 32, 8),
    "qwen-1.5b": (151936, 1536, 28, 8960, 12, 2),
    "mistral-7b": (32000, 4096, 32, 14336, 32, 8),
    "llama-2-7b": (32000, 4096, 32, 11008, 32, 32),
    "llama-3.1-8b": (128256, 4096, 32, 14336, 32, 8),
    "qwen-7b": (152064, 3584, 28, 18944, 28, 4),
    "llama-2-13b": (32000, 5120, 40, 13824, 40, 40),
    "llama-30b": (32000, 6656, 60, 17920, 52, 52),
    "llama-70b": (32000, 8192, 80, 28672, 64, 8),
}
_CHUNK_ELEMENTS = 1 << 24


def dimensions(name: str, layers: int | None = None) -> Dimensions:
    """Give the dimensions of shapes, with fewer blocks where ``layers`` says so."""
    vocabulary, hidden, all_layers, intermediate, heads, key_heads = SHAPES[name]
    return Dimensions(
        family="llama",
        num_layers=layers or all_layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=hidden // heads,
        vocabulary_size=vocabulary,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        max_positions=1 << 20,
        sliding_window=None,
        tied=False,
        initializer_range=0.02,
    )


def random_rows(
    dims: Dimensions,
    rows: int,
    length: int,
    microbatches: int,
    seed: int,
    *,
    one_document: bool = False,
) -> StepRows:
    """Make full rows of documents of 100 to 1,300 tokens; half of the tokens are targets.

    The same seed gives the same rows whatever ``microbatches`` is.

    Args:
        dims: whose vocabulary the ids come from.
        rows: of the step.
        length: tokens of a row.
        microbatches: that the step is cut into.
        seed: of ids, lengths and masks.
        one_document: each row is one document instead.
    """
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        starts = [0]
        while (start := starts[-1] + int(generator.integers(100, 1301))) < length:
            starts.append(start)
        starts = starts[:1] if one_document else starts
        targets = generator.random(length) < 0.5
        targets[starts] = False
        ids = generator.integers(0, dims.vocabulary_size, length).astype(np.int32)
        made.append(Row(ids=ids, targets=targets, document_starts=np.array(starts, np.int32)))
    return step_of(made, length, microbatches)


def step_of(made: list[Row], length: int, microbatches: int) -> StepRows:
    """Cut rows into the microbatches of one step, padded to ``length``."""
    share = -(-len(made) // microbatches)
    # One width for every step: few documents are followed by empty ones.
    widest = max(length // 100, max(row.document_starts.size for row in made)) + 2
    batches = tuple(
        make_batch(
            made[start : start + share],
            num_rows=share,
            row_length=length,
            max_documents=widest,
            pad_id=0,
        )
        for start in range(0, len(made), share)
    )
    return StepRows(
        batches,
        num_targets=sum(batch.num_targets for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        epoch=0.0,
    )


def draw_weights(named: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Fill weights where they live with random numbers that depend on their names alone.

    They are drawn on ``device`` in small pieces and copied from there: the CPU would take minutes
    for a model of 30 B, and zeros would make products faster than data do.

    Args:
        named: parameters by full name, on the device or in host memory.
        device: that draws.
    """
    piece: Tensor | None = None
    for name, tensor in named:
        if tensor.dim() == 1:
            tensor.fill_(1)
            continue
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        flat = tensor.detach().view(-1)
        if piece is None or piece.dtype != tensor.dtype:
            piece = torch.empty(_CHUNK_ELEMENTS, dtype=tensor.dtype, device=device)
        for begin in range(0, flat.numel(), _CHUNK_ELEMENTS):
            part = flat[begin : begin + _CHUNK_ELEMENTS]
            part.copy_(piece[: part.numel()].normal_(0, 0.02, generator=generator))


def host_bytes_of(dims: Dimensions, step_tokens: int, weight_bytes: int = 2) -> int:
    """Give the host memory of a step with every weight and block input in it."""
    width = dims.hidden_size * (dims.num_heads + 2 * dims.num_key_value_heads) * dims.head_dim
    block = width + dims.hidden_size * dims.num_heads * dims.head_dim
    block += 3 * dims.hidden_size * dims.intermediate_size + 2 * dims.hidden_size
    inputs = step_tokens * dims.hidden_size
    outside = 2 * dims.vocabulary_size * dims.hidden_size
    return weight_bytes * (dims.num_layers * (block + inputs) + outside)


def layers_that_fit(dims: Dimensions, step_tokens: int, available_bytes: int) -> int:
    """Give the most blocks whose weights and inputs host memory holds, at least one."""
    layers = dims.num_layers
    while layers > 1:
        fewer = dataclasses.replace(dims, num_layers=layers)
        if host_bytes_of(fewer, step_tokens) <= available_bytes:
            break
        layers -= 1
    return layers
