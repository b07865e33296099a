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

from workbench.model.attention import (
    AttentionStructure,
    attend,
    attention_structure,
    choose_method,
)
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

Weights = Mapping[str, Tensor]


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
    return {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }


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
        structure: what attention needs of the documents.
    """

    cosine: Tensor
    sine: Tensor
    structure: AttentionStructure

    def structure_of(self, block: int) -> AttentionStructure:
        """Give what attention of a block needs of the documents."""
        return self.structure


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
    it. Starts that already lie on a GPU are copied back once, unless attention is varlen.

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
    structure = attention_structure(
        document_starts,
        row_length,
        dims.sliding_window,
        method,
        device,
        dtype=dtype,
        head_dim=dims.head_dim,
    )
    # The starts travel, not the positions: the host may wait where it copies more than 64 KiB of
    # ordinary memory.
    starts = document_starts.to(device, non_blocking=True)
    positions = document_positions(starts, row_length)
    cosine, sine = rotary_tables(positions, dims.head_dim, dims.rope_theta, dtype)
    return RowContext(cosine, sine, structure)


def embed(weight: Tensor, ids: Tensor) -> Tensor:
    """Look up the ids.

    Args:
        weight: (V, D).
        ids: (B, T) int32 or int64.

    Returns:
        (B, T, D).
    """
    return F.embedding(ids, weight)


def block_forward(weights: Weights, x: Tensor, context: RowContext, dims: Dimensions) -> Tensor:
    """Run a block.

    Args:
        weights: one block's parameters by relative name.
        x: (B, T, D).
        context: of the microbatch.
        dims: of the model.

    Returns:
        (B, T, D).
    """
    rows, length, _ = x.shape
    normed = rms_norm(x, weights["input_layernorm.weight"], dims.norm_epsilon)
    q, k, v = (
        F.linear(normed, weights[f"self_attn.{name}_proj.weight"]).view(
            rows, length, -1, dims.head_dim
        )
        for name in "qkv"
    )
    q = rotate(q, context.cosine, context.sine)
    k = rotate(k, context.cosine, context.sine)
    attended = attend(q, k, v, context.structure).reshape(rows, length, -1)
    residual = x + F.linear(attended, weights["self_attn.o_proj.weight"])
    normed = rms_norm(residual, weights["post_attention_layernorm.weight"], dims.norm_epsilon)
    product = gated_product(
        F.linear(normed, weights["mlp.gate_proj.weight"]),
        F.linear(normed, weights["mlp.up_proj.weight"]),
    )
    return residual + F.linear(product, weights["mlp.down_proj.weight"])


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
        x = block_forward(block_weights(weights, block), x, context, dims)
    return F.linear(final_norm(weights[FINAL_NORM], x, dims), head_weight(weights))
