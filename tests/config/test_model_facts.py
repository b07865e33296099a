"""What a model folder says of itself, and folders that say too little."""

import json
from pathlib import Path

import pytest

from workbench.config.model_facts import (
    FAMILIES,
    TRAINABLE_FAMILIES,
    facts_of,
    read_model_facts,
)
from workbench.errors import RunError
from workbench.model.families import read_dimensions

MISTRAL_7B: dict[str, object] = {
    "model_type": "mistral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}


def write(folder: Path, stated: object) -> Path:
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def test_the_facts_of_a_7b_are_read(tmp_path: Path) -> None:
    facts = read_model_facts(write(tmp_path, MISTRAL_7B))
    assert (facts.family, facts.num_layers, facts.head_size) == ("mistral", 32, 128)
    assert facts.sliding_window == 4096
    # 7.242 B parameters (features.md C.11).
    assert facts.num_parameters == 7_241_732_096


def test_what_is_left_out_has_the_meaning_of_the_families(tmp_path: Path) -> None:
    left_out = ("num_key_value_heads", "sliding_window", "max_position_embeddings")
    stated = {key: value for key, value in MISTRAL_7B.items() if key not in left_out}
    facts = read_model_facts(
        write(tmp_path, stated | {"tie_word_embeddings": True, "head_dim": 64})
    )
    assert (facts.num_key_value_heads, facts.head_size, facts.tied) == (8, 64, True)
    assert (facts.sliding_window, facts.max_positions) == (4096, 131072)
    facts = read_model_facts(write(tmp_path, stated | {"model_type": "llama"}))
    assert (facts.num_key_value_heads, facts.head_size) == (32, 128)
    assert (facts.sliding_window, facts.max_positions) == (None, 2048)
    facts = read_model_facts(write(tmp_path, MISTRAL_7B | {"num_key_value_heads": None}))
    assert facts.num_key_value_heads == 32


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 32768),
        ({"type": "linear", "factor": 2.0}, 65536),
        ({"rope_type": "dynamic", "factor": 6.0}, 196608),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}, 32768),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 4096,
            },
            32768,
        ),
    ],
)
def test_scaled_positions_reach_further_than_what_they_were_made_for(
    scaling: dict[str, object] | None, longest: int
) -> None:
    facts = facts_of(MISTRAL_7B | {"rope_scaling": scaling}, where="here")
    assert (facts.max_positions, facts.longest_document) == (32768, longest)


SMALL: dict[str, object] = {
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"head_dim": 32, "attention_bias": True}),
        ("ministral", {"head_dim": 16}),
        ("cwm", {"mlp_bias": True}),
        ("iquestcoder", {"head_dim": 32, "attention_bias": True}),
        ("internlm3", {"qkv_bias": True, "bias": True}),
        ("seed_oss", {}),
        ("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ],
)
def test_parameters_are_counted_as_transformers_makes_them(
    tmp_path: Path, family: str, extra: dict[str, object]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SMALL, **extra)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    facts = read_model_facts(tmp_path)
    assert facts.num_parameters == sum(tensor.numel() for tensor in model.parameters())
    block = model.model.layers[0].state_dict()
    assert sorted(facts.block_shapes) == sorted(tuple(tensor.shape) for tensor in block.values())
    assert facts == read_model_facts(tmp_path / "config.json")


def test_a_small_file_says_as_much_as_the_one_transformers_writes(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for family in FAMILIES:
        (tmp_path / family).mkdir()
        AutoConfig.for_model(family, **SMALL).save_pretrained(tmp_path / family)
        whole = read_model_facts(tmp_path / family)
        assert facts_of(SMALL | {"model_type": family}, where="here") == whole


def test_the_families_that_train_are_known() -> None:
    assert set(TRAINABLE_FAMILIES) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1,000,000,000,000"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
        ({"num_key_value_heads": 64}, "num_key_value_heads 64 does not divide"),
        ({"hidden_size": 4100}, "hidden_size 4100 is no multiple"),
        ({"head_dim": 99}, "a head of 99 is odd"),
    ],
)
def test_a_field_that_cannot_be_is_named(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(RunError, match=named):
        read_model_facts(write(tmp_path, MISTRAL_7B | change))


def test_what_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(RunError, match="is not JSON"):
        read_model_facts(tmp_path)


@pytest.mark.parametrize(
    "change", [{"num_key_value_heads": 5}, {"hidden_size": 4100}, {"head_dim": 99}]
)
def test_heads_that_are_refused_are_those_that_the_decoder_refuses(
    tmp_path: Path, change: dict[str, object]
) -> None:
    folder = write(tmp_path, MISTRAL_7B | change)
    with pytest.raises(RunError):
        read_model_facts(folder)
    with pytest.raises(RunError):
        read_dimensions(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there"):
        read_model_facts(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no config\.json"):
        read_model_facts(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        read_model_facts(tmp_path)
    with pytest.raises(RunError, match="not JSON"):
        read_model_facts(tmp_path / "config.json")
    with pytest.raises(RunError, match="not a JSON object"):
        read_model_facts(write(tmp_path, []))
