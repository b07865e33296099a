import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.model.tiny import KINDS, MIXED, SIZES, reference_config
from workbench.config.family_table import FAMILIES
from workbench.config.model_facts import facts_of, read_model_facts
from workbench.errors import RunError
from workbench.model.decoder import block_parameters, parameter_shapes
from workbench.model.families import read_dimensions

LLAMA: dict[str, Any] = {"model_type": "llama", **SIZES}


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_is_read(tmp_path: Path, kind: str) -> None:
    config = reference_config(kind)
    config.save_pretrained(tmp_path)
    dims = read_dimensions(tmp_path)
    assert dims == read_dimensions(tmp_path / "config.json")
    assert dims.family == config.model_type
    assert dims.head_dim == getattr(config, "head_dim", SIZES["hidden_size"] // dims.num_heads)
    assert dims.num_key_value_heads == config.num_key_value_heads
    assert dims.rope_theta == config.rope_parameters["rope_theta"]
    assert dims.rotary.kind == config.rope_parameters["rope_type"]
    assert dims.tied == config.tie_word_embeddings
    assert dims.norm_epsilon == config.rms_norm_eps
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or (
        ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    )
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    assert [dims.window_of(block) for block in range(dims.num_layers)] == windows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_says_little_means_what_transformers_takes_it_to_mean(
    tmp_path: Path, family: str
) -> None:
    little = {key: SIZES[key] for key in SIZES if not key.startswith(("max_", "num_key", "pad_"))}
    little |= {"num_attention_heads": 32, "hidden_size": 128, "num_hidden_layers": 31}
    if family == "ministral":
        little["head_dim"] = 4  # transformers fails without
    dropped: dict[str, Any] = {"attention_dropout": 0.0, "residual_dropout": 0.0}
    config = AutoConfig.for_model(family, **little | dropped)
    config.save_pretrained(tmp_path)
    assert read_dimensions({"model_type": family, **little, **dropped}) == read_dimensions(tmp_path)


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
    ],
)
def test_both_spellings_of_the_rotary_base_are_read(stated: dict[str, Any]) -> None:
    assert read_dimensions(LLAMA | stated).rope_theta == 5e5
    assert read_dimensions(LLAMA).rope_theta == 10000.0


def test_a_window_that_is_null_is_none_and_an_absent_one_is_the_familys() -> None:
    mistral = LLAMA | {"model_type": "mistral"}
    assert read_dimensions(mistral | {"sliding_window": None}).sliding_window is None
    assert read_dimensions(mistral | {"sliding_window": 512}).sliding_window == 512
    assert read_dimensions(mistral).sliding_window == 4096


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "rope_parameters" in KINDS[kind][1]])
def test_both_spellings_of_scaled_positions_are_read(kind: str) -> None:
    stated = json.loads(reference_config(kind).to_json_string(use_diff=False))
    parameters = stated.pop("rope_parameters")
    inside = {"rope_scaling": parameters}
    theta, scaling_type = parameters.pop("rope_theta"), parameters["rope_type"]
    beside = {"rope_scaling": dict(parameters), "rope_theta": theta}
    older = {"rope_scaling": {**parameters, "type": scaling_type}, "rope_theta": theta}
    del older["rope_scaling"]["rope_type"]
    parameters["rope_theta"] = theta
    expected = read_dimensions(stated | {"rope_parameters": parameters})
    assert (expected.rope_theta, expected.rotary.kind) == (500.0, scaling_type)
    for spelling in (inside, beside, older):
        assert read_dimensions(stated | spelling) == expected


def test_the_original_context_is_where_transformers_looks_for_it() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    inside = yarn | {"original_max_position_embeddings": 32}
    for stated, expected in (
        ({"rope_parameters": yarn}, SIZES["max_position_embeddings"]),
        ({"rope_parameters": inside}, 32),
        ({"rope_parameters": inside, "original_max_position_embeddings": 64}, 64),
    ):
        numbers = dict(read_dimensions(LLAMA | stated).rotary.numbers)
        assert numbers["original_max_position_embeddings"] == expected
        config = AutoConfig.for_model("llama", **SIZES, **json.loads(json.dumps(stated)))
        config.standardize_rope_params()
        assert config.rope_parameters["original_max_position_embeddings"] == expected


def test_a_yarn_without_a_factor_takes_it_from_the_contexts() -> None:
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}
    numbers = dict(read_dimensions(LLAMA | {"rope_parameters": yarn}).rotary.numbers)
    assert numbers["factor"] == SIZES["max_position_embeddings"] / 32


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_the_user_side_are_those_of_the_decoder(tmp_path: Path, kind: str) -> None:
    reference_config(kind).save_pretrained(tmp_path)
    facts, dims = read_model_facts(tmp_path), read_dimensions(tmp_path)
    assert sorted(facts.block_shapes) == sorted(block_parameters(dims).values())
    assert facts.num_parameters == sum(map(math.prod, parameter_shapes(dims).values()))
    assert (facts.family, facts.biased, facts.query_key_norm, facts.max_positions) == (
        dims.family, dims.biased, dims.query_key_norm, dims.max_positions,
    )  # fmt: skip
    assert (facts.sliding_window, facts.sliding_blocks) == (
        dims.sliding_window, dims.sliding_blocks,
    )  # fmt: skip


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PER_KIND = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'.* needs experts"),
        ({"model_type": "exaone4"}, "model_type is 'exaone4'.* blocks without positions"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, "x"]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "internlm3", "attention_out_bias": True}, "attention_out_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "seed_oss"}, "attention_dropout: is 0.1"),
        ({"model_type": "seed_oss", "attention_dropout": 0}, "residual_dropout: is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"is_causal": False}, "is_causal"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"model_type": "iquestcoder", "use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": []}, None),
        ({"rope_parameters": ["llama3"]}, "rope_parameters: is not a mapping"),
        ({"rope_parameters": LLAMA3}, None),
        ({"rope_parameters": LLAMA3 | {"factor": None}}, r"rope_parameters\.factor"),
        ({"rope_parameters": LLAMA3 | {"factor": True}}, r"rope_parameters\.factor"),
        ({"rope_parameters": LLAMA3 | {"factor": -1.0}}, r"rope_parameters\.factor"),
        ({"rope_parameters": LLAMA3 | {"factor": float("inf")}}, r"rope_parameters\.factor"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, r"\.high_freq_factor: 1 is not"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor"),
        (
            {"rope_scaling": {"type": "longrope"}},
            r"rope_scaling\.rope_type.*short and one for long",
        ),
        ({"rope_scaling": {"rope_type": "unheard of"}}, r"rope_scaling\.rope_type"),
        ({"rope_parameters": PER_KIND}, r"rope_parameters\.full_attention: positions of their own"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention"] * 3}, None),
        ({"layer_types": ["full_attention"] * 2}, "layer_types: names 2 blocks"),
        ({"layer_types": 3}, "layer_types: names 3"),
        ({"layer_types": MIXED}, "layer_types: other blocks slide.*state model_type ministral"),
        ({"model_type": "mistral", "layer_types": MIXED}, "layer_types: other blocks slide"),
        (
            {"model_type": "qwen3", "layer_types": MIXED},
            "layer_types: blocks slide and there is no",
        ),
        (
            {"model_type": "ministral", "layer_types": ["full_attention", "linear_attention"] * 2}
            | {"num_hidden_layers": 4},
            "layer_types: 'linear_attention' is not supported",
        ),
        ({"model_type": "mistral", "sliding_window": "all"}, "sliding_window"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None},
            "max_window_layers",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 30}, "hidden_size"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": "97"}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_field(
    stated: dict[str, Any], field: str | None
) -> None:
    read_dimensions(LLAMA)
    if field is None:  # what differs by one field from a case below is not refused
        read_dimensions(LLAMA | stated)
        facts_of(LLAMA | stated, where="here")
        return
    with pytest.raises(RunError, match=field):
        read_dimensions(LLAMA | stated)


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.rope_type"),
        ({"layer_types": MIXED}, "layer_types"),
    ],
)
def test_the_user_side_refuses_the_same_before_anything_starts(
    stated: dict[str, Any], field: str
) -> None:
    for read in (read_dimensions, lambda content: facts_of(content, where="here")):
        with pytest.raises(RunError, match=field):
            read(LLAMA | stated)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no model config"), ("{", "is not JSON"), ("[]", "not a JSON object")],
)
def test_a_broken_config_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        read_dimensions(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json")
