"""Tiny random models of both families, ours and the reference's, with the same weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel

from workbench.model.decoder import forward, row_context
from workbench.model.families import Dimensions, read_dimensions

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WINDOW = 9
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama, a key head per query head": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama, wide heads and another base": (
        LlamaConfig,
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "mistral, whole": (MistralConfig, {"sliding_window": None}),
    "mistral, window": (MistralConfig, {"sliding_window": WINDOW}),
}


def reference_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build transformers' model with weights large enough that every part shows in the logits."""
    config_class, changes = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_class(**SIZES | changes), attn_implementation="eager", dtype=dtype
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.2)
        else:
            parameter.data.uniform_(0.5, 1.5)
    return model


def dimensions_of(model: PreTrainedModel) -> Dimensions:
    return read_dimensions(model.config.to_dict())


def our_logits(
    weights: Mapping[str, Tensor],
    dims: Dimensions,
    ids: Tensor,
    starts: list[list[int]],
    attention: str = "auto",
) -> Tensor:
    context = row_context(
        torch.tensor(starts, dtype=torch.int32),
        ids.shape[1],
        dims,
        weights["model.norm.weight"].dtype,
        attention,
    )
    with torch.inference_mode():
        return forward(weights, ids, context, dims)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).double().norm() / theirs.double().norm())
