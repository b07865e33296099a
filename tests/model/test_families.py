from pathlib import Path
from typing import Any

import pytest

from tests.model.tiny import KINDS, SIZES
from workbench.errors import RunError
from workbench.model.families import read_dimensions

LLAMA: dict[str, Any] = {"model_type": "llama", **SIZES}


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_is_read(tmp_path: Path, kind: str) -> None:
    config_class, changes = KINDS[kind]
    config = config_class(**SIZES | changes)
    config.save_pretrained(tmp_path)
    dims = read_dimensions(tmp_path)
    assert dims == read_dimensions(tmp_path / "config.json")
    assert dims.family == config.model_type
    assert dims.head_dim == config.head_dim
    assert dims.num_key_value_heads == config.num_key_value_heads
    assert dims.rope_theta == config.rope_parameters["rope_theta"]
    assert dims.sliding_window == getattr(config, "sliding_window", None)
    assert dims.tied == config.tie_word_embeddings
    assert dims.norm_epsilon == config.rms_norm_eps


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


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"rope_parameters\.rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling\.rope_type"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 1e4}, r"rope_scaling\.rope_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
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
    stated: dict[str, Any], field: str
) -> None:
    read_dimensions(LLAMA)
    with pytest.raises(RunError, match=field):
        read_dimensions(LLAMA | stated)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no model config"), ("{", "cannot be read as JSON"), ("[]", "not a JSON object")],
)
def test_a_broken_config_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        read_dimensions(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json")
