"""Folders of every family against transformers: read, written, generated from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.model.tiny import KINDS, WINDOW, dimensions_of, our_logits, reference_model
from workbench.errors import RunError
from workbench.model.families import read_dimensions
from workbench.model.verify import TOLERANCE, check_difference, telling_length, verify_logits
from workbench.model.weights import random_weights, read_weights, write_weights
from workbench.training.beside_weights import files_beside_weights

NUM_NEW_TOKENS = 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_we_write_loads_in_transformers_with_equal_logits(
    tmp_path: Path, kind: str
) -> None:
    source, written = tmp_path / "source", tmp_path / "written"
    model = reference_model(kind)
    model.save_pretrained(source)
    dims = read_dimensions(source)
    written.mkdir()
    beside = files_beside_weights(source, template="", dtype="float32", stop_ids=[5], pad_id=0)
    for name, content in beside.items():
        (written / name).write_bytes(content)
    write_weights(written, read_weights(source, dims, torch.float32))
    loaded, report = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert read_dimensions(written) == dims
    assert verify_logits(written) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_config_json_goes_round_with_every_field(tmp_path: Path, kind: str) -> None:
    reference_model(kind).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    stated |= {"torch_dtype": "bfloat16", "of_our_own": {"nested": [1, None]}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    beside = files_beside_weights(tmp_path, template="", dtype="float32", stop_ids=[], pad_id=0)
    del stated["torch_dtype"]
    assert json.loads(beside["config.json"]) == stated | {"dtype": "float32"}


def test_random_weights_of_every_family_have_zero_biases_and_norms_of_one() -> None:
    weights = {
        name: tensor
        for kind in ("llama, biases", "qwen2", "qwen3")
        for name, tensor in random_weights(
            dimensions_of(reference_model(kind)), 0, torch.float32
        ).items()
        if tensor.dim() == 1
    }
    biases = [name for name in weights if name.endswith(".bias")]
    assert biases
    assert len(biases) < len(weights)
    for name, tensor in weights.items():
        assert torch.equal(tensor, torch.full_like(tensor, float(name not in biases))), name


# With dynamic positions a key that is kept was turned for a shorter document than the last one's.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "dynamic" not in kind])
def test_greedy_generation_agrees_for_two_hundred_tokens(kind: str) -> None:
    model = reference_model(kind)
    dims, weights = dimensions_of(model), model.state_dict()
    ids = torch.randint(dims.vocabulary_size, (1, 12))
    with torch.inference_mode():
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert expected.shape[1] == 12 + NUM_NEW_TOKENS
    # Each reply's token is the likeliest after all before it: one forward of the whole row tells.
    ours = our_logits(weights, dims, expected, [[0]])[0, 11:-1].argmax(-1)
    assert torch.equal(ours, expected[0, 12:])
    assert len(set(expected[0].tolist())) > 5, "a model that repeats itself tells little"


def test_rows_are_long_enough_to_show_windows_and_scaled_positions() -> None:
    plain = dimensions_of(reference_model("llama"))
    assert telling_length(plain) == 64
    assert telling_length(replace(plain, sliding_window=WINDOW)) == 64
    assert telling_length(replace(plain, sliding_window=100)) > 101
    assert telling_length(replace(plain, sliding_window=4096)) == 64
    dynamic = dimensions_of(reference_model("llama, dynamic"))
    numbers = (("factor", 2.0), ("max_position_embeddings", 200.0))
    made_for_200 = replace(dynamic, rotary=replace(dynamic.rotary, numbers=numbers))
    assert telling_length(made_for_200) > 201


def test_logits_that_differ_are_refused(tmp_path: Path) -> None:
    check_difference(TOLERANCE, tmp_path)
    for difference in (1.01 * TOLERANCE, float("nan")):
        with pytest.raises(RunError, match=f"logits differ from the reference by {difference:.1e}"):
            check_difference(difference, tmp_path)
