"""Tiny random models of every family, ours and the reference's, with the same weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

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
    "pad_token_id": None,  # a padding id gets no gradient in transformers
}
WINDOW = 9
ORIGINAL = 16
"""Tokens that scaled positions are made for; rows of the tests are longer."""

MIXED = ["full_attention", "sliding_attention", "full_attention"]
_ROTARY: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}


def _scaled(kind: str, **changes: float) -> dict[str, Any]:
    parameters = {"rope_type": kind, "rope_theta": 500.0, **_ROTARY[kind], **changes}
    config: dict[str, Any] = {"head_dim": 16, "rope_parameters": parameters}
    if kind == "dynamic":
        config["max_position_embeddings"] = ORIGINAL
    return config


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, a key head per query head": ("llama", {"num_key_value_heads": 4}),
    "llama, wide heads and another base": (
        "llama",
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, biases in the MLP": ("llama", {"mlp_bias": True, "tie_word_embeddings": True}),
    "llama, linear": ("llama", _scaled("linear")),
    "llama, dynamic": ("llama", _scaled("dynamic")),
    "llama, llama3": ("llama", _scaled("llama3")),
    "llama, yarn": ("llama", _scaled("yarn")),
    "llama, yarn with mscale": (
        "llama",
        _scaled("yarn", mscale=1.0, mscale_all_dim=0.6, beta_fast=4.0, beta_slow=2.0),
    ),
    "llama, yarn not truncated": (
        "llama",
        _scaled("yarn", truncate=False, attention_factor=1.3, beta_fast=3.0, beta_slow=0.5),
    ),
    "llama, one odd vocabulary": ("llama", {"vocab_size": 101, "num_hidden_layers": 1}),
    "llama, uneven sizes": (
        "llama",
        {
            "vocab_size": 103,
            "hidden_size": 42,
            "intermediate_size": 58,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
        },
    ),
    "mistral, whole": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "mistral, window and yarn": ("mistral", {"sliding_window": WINDOW, **_scaled("yarn")}),
    "ministral, window": ("ministral", {"sliding_window": WINDOW, "head_dim": 8}),
    "ministral, mixed": (
        "ministral",
        {"sliding_window": WINDOW, "head_dim": 16, "layer_types": MIXED},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, uneven sizes, one key head": (
        "qwen2",
        {
            "vocab_size": 109,
            "hidden_size": 30,
            "intermediate_size": 37,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2, tied, yarn": ("qwen2", {"tie_word_embeddings": True, **_scaled("yarn")}),
    "qwen2, last blocks slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen2, mixed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied, biases": (
        "qwen3",
        {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3, mixed and llama3": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            **_scaled("llama3"),
        },
    ),
    "cwm": ("cwm", {"sliding_window": WINDOW, "num_hidden_layers": 5, **_scaled("llama3")}),
    "iquestcoder": ("iquestcoder", {"head_dim": 16}),
    "internlm3": ("internlm3", {"head_dim": 16}),
    "internlm3, biases, dynamic": (
        "internlm3",
        {"qkv_bias": True, "bias": True, **_scaled("dynamic")},
    ),
    "seed_oss": (
        "seed_oss",
        {"head_dim": 16, "attention_dropout": 0.0, "residual_dropout": 0.0},
    ),
    "seed_oss, all biases": (
        "seed_oss",
        {
            "head_dim": 16,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "attention_out_bias": True,
            "mlp_bias": True,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3, untied, windows where nothing is turned": (
        "smollm3",
        {
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "no_rope_layers": [0, 1, 1],
            **_scaled("yarn"),
        },
    ),
}
"""Name to ``model_type`` and what differs from ``SIZES``; every family and every switch."""


def reference_config(kind: str) -> PreTrainedConfig:
    family, changes = KINDS[kind]
    return AutoConfig.for_model(family, **SIZES | changes)


def reference_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build transformers' model with weights large enough that every part shows in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        reference_config(kind), attn_implementation="eager", dtype=dtype
    ).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.2)
        elif name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.5)
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
