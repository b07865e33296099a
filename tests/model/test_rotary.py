"""Angles of positions against those of transformers, far beyond what small models are made for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.config.rotary_scaling import RotaryScaling
from workbench.model.families import Dimensions, read_dimensions
from workbench.model.rotary import rotary_tables, scaled_frequencies

# What published models state, by what they are known for.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-2": {},
    "llama-3": {"rope_theta": 500000.0},
    "llama-3.1": {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "llama-3.2-1b": {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "head_dim": 64,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "deepseek-coder": {
        "rope_theta": 100000,
        "max_position_embeddings": 16384,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "yarn-llama-2": {
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "finetuned": True,
        },
    },
    "qwen with yarn": {
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
    "internlm": {
        "rope_theta": 50000000,
        "max_position_embeddings": 32768,
        "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
    },
}


def theirs(stated: dict[str, Any], positions: torch.Tensor, dtype: torch.dtype) -> list[Any]:
    tables = LlamaRotaryEmbedding(LlamaConfig(**stated))(torch.zeros(1, dtype=dtype), positions)
    return [table[:, :, None] for table in tables]


def ours(dims: Dimensions, positions: torch.Tensor, dtype: torch.dtype) -> list[Any]:
    longest = int(positions.max()) + 1
    return list(
        rotary_tables(positions, dims.head_dim, dims.rope_theta, dtype, dims.rotary, longest)
    )


def dimensions(stated: dict[str, Any]) -> Dimensions:
    sizes = {
        "vocab_size": 10, "hidden_size": 4096, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 32,
    }  # fmt: skip
    return read_dimensions({"model_type": "llama", **sizes, **stated})


@pytest.mark.parametrize("longest", [4096, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_angles_of_published_models_are_those_of_transformers_bit_for_bit(
    model: str, dtype: torch.dtype, longest: int
) -> None:
    stated = PUBLISHED[model]
    positions = torch.cat((torch.arange(64), torch.arange(longest - 64, longest)))[None]
    expected = theirs(dict(stated), positions, dtype)
    found = ours(dimensions(stated), positions, dtype)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


numbers = st.floats(0.25, 64.0)
contexts = st.integers(2, 40_000)
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": numbers}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": st.floats(1.0, 64.0)}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": numbers,
            "low_freq_factor": st.floats(0.1, 4.0),
            "high_freq_factor": st.floats(4.01, 64.0),
            "original_max_position_embeddings": contexts,
        }
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": numbers},
        optional={
            "original_max_position_embeddings": contexts,
            "attention_factor": st.floats(0.1, 4.0),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.1, 8.0),
            "mscale": st.floats(0.0, 2.0),
            "mscale_all_dim": st.floats(0.0, 2.0),
            "truncate": st.booleans(),
        },
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    scaling=SCALINGS,
    theta=st.sampled_from([500.0, 10000.0, 1e6, 5e6]),
    head_dim=st.sampled_from([4, 64, 80, 128]),
    max_positions=contexts,
    longest=st.integers(1, 50_000),
)
def test_any_scaling_turns_as_transformers_does(
    scaling: dict[str, Any], theta: float, head_dim: int, max_positions: int, longest: int
) -> None:
    stated = {
        "head_dim": head_dim,
        "max_position_embeddings": max_positions,
        "rope_parameters": {**scaling, "rope_theta": theta},
    }
    positions = torch.arange(longest)[None, -8:]
    expected = theirs(
        {**stated, "rope_parameters": dict(stated["rope_parameters"])}, positions, torch.float32
    )
    found = ours(dimensions(stated), positions, torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), (one - other).abs().max()


def test_dynamic_scaling_begins_beyond_what_the_model_is_made_for() -> None:
    scaling = RotaryScaling("dynamic", (("factor", 2.0), ("max_position_embeddings", 100.0)))
    positions = torch.arange(50)[None]
    plain = rotary_tables(positions, 64, 1e4, torch.float32)[0]
    up_to = [rotary_tables(positions, 64, 1e4, torch.float32, scaling, n)[0] for n in (50, 100)]
    beyond = rotary_tables(positions, 64, 1e4, torch.float32, scaling, 101)[0]
    assert all(torch.equal(table, plain) for table in up_to)
    assert not torch.equal(beyond, plain)


def test_a_scaling_that_nobody_computes_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(AssertionError, match="longrope"):
        scaled_frequencies(64, 1e4, RotaryScaling("longrope"))
