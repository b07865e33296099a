"""The decoder as functions over weights that somebody else owns, readable and with autograd.

A block takes its weights as a mapping from relative Hugging Face names to tensors. Nothing here
holds state, and nothing waits for the device. Verification runs it; training takes names, shapes
and the context of rows from here and computes by passes of its own, which must equal this.

    rows (B), tokens of a row (T), hidden (D), vocabulary (V)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.config.family_table import ATTENTION
from workbench.model.attention import (
    AttentionStructure,
    attend,
    attention_structure,
    choose_method,
)
from workbench.model.attention_documents import document_spans
from workbench.model.families import Dimensions
from workbench.model.kernels import gated_product, rms_norm, rotate
from workbench.model.rotary import document_positions, rotary_tables

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

BLOCK_STACKS = {
    "self_attn.qkv": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "mlp.gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
"""Matrices of a block that read the same input: an engine may lay them on top of each other."""

QUERY_NORM, KEY_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
"""Of a block, where queries and keys are normed; each is shared by all heads."""

Weights = Mapping[str, Tensor]


def projection_prefix(projection: str) -> str:
    """Give what a projection's weight and bias are called within a block: q, self_attn.q_proj."""
    part = "self_attn" if projection in ATTENTION else "mlp"
    return f"{part}.{projection}_proj"


def block_prefix(block: int) -> str:
    """Give what stands before the names of one block's parameters."""
    return f"model.layers.{block}."


def block_parameters(dims: Dimensions) -> dict[str, tuple[int, ...]]:
    """Name the parameters of one block, relative to its prefix, in Hugging Face order.

    Returns:
        Name to shape; matrices are (out, in).
    """
    width, inner = dims.hidden_size, dims.intermediate_size
    queries = dims.num_heads * dims.head_dim
    keys = dims.num_key_value_heads * dims.head_dim
    matrices = {
        "q": (queries, width),
        "k": (keys, width),
        "v": (keys, width),
        "o": (width, queries),
        "gate": (inner, width),
        "up": (inner, width),
        "down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, into) in matrices.items():
        prefix = projection_prefix(name)
        shapes[f"{prefix}.weight"] = (out, into)
        if name in dims.biased:
            shapes[f"{prefix}.bias"] = (out,)
        if name == "o" and dims.query_key_norm:
            shapes |= dict.fromkeys((QUERY_NORM, KEY_NORM), (dims.head_dim,))
    shapes |= dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (width,))
    return shapes


def parameter_shapes(dims: Dimensions) -> dict[str, tuple[int, ...]]:
    """Name every parameter of the model with its shape, in Hugging Face order.

    A tied head is not listed: it is the embedding.
    """
    vocabulary = (dims.vocabulary_size, dims.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: vocabulary}
    for block in range(dims.num_layers):
        prefix = block_prefix(block)
        shapes |= {prefix + name: shape for name, shape in block_parameters(dims).items()}
    shapes[FINAL_NORM] = (dims.hidden_size,)
    if not dims.tied:
        shapes[HEAD] = vocabulary
    return shapes


def block_weights(weights: Weights, block: int) -> dict[str, Tensor]:
    """Pick one block's weights out of the model's, under their relative names."""
    prefix = block_prefix(block)
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True)
class RowContext:
    """What every block needs to know of a microbatch, apart from its activations.

    Attributes:
        cosine: (B, T, 1, head_dim), the activations' dtype.
        sine: the same.
        structures: what attention needs of the documents, once for each distinct window.
        structure_numbers: for each block which of them is its own; () where there is one.
    """

    cosine: Tensor
    sine: Tensor
    structures: tuple[AttentionStructure, ...]
    structure_numbers: tuple[int, ...] = ()

    def structure_of(self, block: int) -> AttentionStructure:
        """Give what attention of a block needs of the documents."""
        return self.structures[self.structure_numbers[block] if self.structure_numbers else 0]

    @property
    def structure(self) -> AttentionStructure:
        """Give what attention needs of the documents where all blocks are alike."""
        assert len(self.structures) == 1, "blocks differ, ask structure_of for one"
        return self.structures[0]


def row_context(
    document_starts: Tensor,
    row_length: int,
    dims: Dimensions,
    dtype: torch.dtype,
    attention: str = "auto",
    *,
    device: torch.device | None = None,
) -> RowContext:
    """Prepare positions and document boundaries of a microbatch, once for all blocks.

    Hand over the starts as they are on the host and name the device: then nothing here waits for
    it. Starts that already lie on a GPU are copied back once, unless attention is varlen; and once
    more where rotary positions are scaled by the longest document of the microbatch.

    Args:
        document_starts: (B, documents) int32 or int64, ascending from 0; the tail repeats
            ``row_length``.
        row_length: T.
        dims: of the model.
        dtype: of the activations.
        attention: ``model.attention``.
        device: where the blocks run; None: where the starts are.

    Raises:
        ConfigError: the attention asked for does not work on this device.
    """
    device = document_starts.device if device is None else torch.device(device)
    method = choose_method(attention, device, dtype, dims.head_dim)
    # A window no shorter than the row is none: blocks that differ in it alone share a structure.
    windows = [
        None if window is None or window >= row_length else window
        for window in map(dims.window_of, range(dims.num_layers))
    ]
    distinct = list(dict.fromkeys(windows)) or [None]
    structures = tuple(
        attention_structure(
            document_starts,
            row_length,
            window,
            method,
            device,
            dtype=dtype,
            head_dim=dims.head_dim,
        )
        for window in distinct
    )
    numbers = () if len(distinct) == 1 else tuple(map(distinct.index, windows))
    longest = None
    if dims.rotary.kind == "dynamic":
        longest = int(document_spans(document_starts.cpu().long(), row_length)[1].max())
    # The starts travel, not the positions: the host may wait where it copies more than 64 KiB of
    # ordinary memory.
    starts = document_starts.to(device, non_blocking=True)
    positions = document_positions(starts, row_length)
    cosine, sine = rotary_tables(
        positions, dims.head_dim, dims.rope_theta, dtype, dims.rotary, longest
    )
    return RowContext(cosine, sine, structures, numbers)


def embed(weight: Tensor, ids: Tensor) -> Tensor:
    """Look up the ids.

    Args:
        weight: (V, D).
        ids: (B, T) int32 or int64.

    Returns:
        (B, T, D).
    """
    return F.embedding(ids, weight)


def block_forward(
    weights: Weights, x: Tensor, context: RowContext, dims: Dimensions, block: int
) -> Tensor:
    """Run a block.

    Args:
        weights: one block's parameters by relative name.
        x: (B, T, D).
        context: of the microbatch.
        dims: of the model.
        block: its number, which says how far it sees and whether it knows of positions.

    Returns:
        (B, T, D).
    """
    rows, length, _ = x.shape
    normed = rms_norm(x, weights["input_layernorm.weight"], dims.norm_epsilon)
    q, k, v = (
        _project(weights, name, normed).view(rows, length, -1, dims.head_dim) for name in "qkv"
    )
    if dims.query_key_norm:
        q = rms_norm(q, weights[QUERY_NORM], dims.norm_epsilon)
        k = rms_norm(k, weights[KEY_NORM], dims.norm_epsilon)
    if dims.is_turned(block):
        q = rotate(q, context.cosine, context.sine)
        k = rotate(k, context.cosine, context.sine)
    attended = attend(q, k, v, context.structure_of(block)).reshape(rows, length, -1)
    residual = x + _project(weights, "o", attended)
    normed = rms_norm(residual, weights["post_attention_layernorm.weight"], dims.norm_epsilon)
    product = gated_product(_project(weights, "gate", normed), _project(weights, "up", normed))
    return residual + _project(weights, "down", product)


def _project(weights: Weights, projection: str, x: Tensor) -> Tensor:
    prefix = projection_prefix(projection)
    return F.linear(x, weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias"))


def final_norm(weight: Tensor, x: Tensor, dims: Dimensions) -> Tensor:
    """Norm what the head reads: (..., D) to (..., D)."""
    return rms_norm(x, weight, dims.norm_epsilon)


def head_weight(weights: Weights) -> Tensor:
    """Give the head's matrix (V, D): its own, or the embedding when they are tied."""
    return weights[HEAD] if HEAD in weights else weights[EMBEDDING]


def forward(weights: Weights, ids: Tensor, context: RowContext, dims: Dimensions) -> Tensor:
    """Run the whole model; for tests, verification and small models.

    Args:
        weights: all parameters by full name.
        ids: (B, T) int32 or int64.
        context: of these rows.
        dims: of the model.

    Returns:
        logits (B, T, V).
    """
    x = embed(weights[EMBEDDING], ids)
    for block in range(dims.num_layers):
        x = block_forward(block_weights(weights, block), x, context, dims, block)
    return F.linear(final_norm(weights[FINAL_NORM], x, dims), head_weight(weights))
