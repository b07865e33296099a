from dataclasses import replace

import pytest
import torch

from tests.model.tiny import (
    KINDS,
    ORIGINAL,
    WINDOW,
    dimensions_of,
    our_logits,
    reference_model,
    relative_difference,
)
from workbench.config.family_table import FAMILIES, PROJECTIONS
from workbench.config.rotary_scaling import NO_SCALING
from workbench.model.decoder import (
    block_parameters,
    block_prefix,
    parameter_shapes,
    row_context,
)
from workbench.model.rotary import scaled_frequencies

ATTENTION = ("dense", "sdpa")
LENGTH = 40


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(kind: str, attention: str) -> None:
    reference = reference_model(kind)
    dims = dimensions_of(reference)
    ids = torch.randint(dims.vocabulary_size, (2, LENGTH))
    assert dims.sliding_window is None or dims.sliding_window + 1 < LENGTH
    with torch.inference_mode():
        expected = reference(ids).logits
    ours = our_logits(reference.state_dict(), dims, ids, [[0], [0]], attention)
    assert relative_difference(ours, expected) < 1e-5


def test_the_kinds_have_every_family_every_scaling_and_every_switch() -> None:
    dims = [dimensions_of(reference_model(kind)) for kind in KINDS]
    assert {each.family for each in dims} == set(FAMILIES)
    kinds = {each.rotary.kind for each in dims}
    assert kinds == {"default", "linear", "dynamic", "llama3", "yarn"}
    assert {name for each in dims for name in each.biased} == set(PROJECTIONS)
    assert {each.query_key_norm for each in dims} == {True, False}
    assert any(each.sliding_blocks is not None for each in dims)
    assert any(each.turned_blocks is not None for each in dims)
    # Rows reach beyond what each scaling takes for its original context.
    for each in dims:
        numbers = dict(each.rotary.numbers)
        limits = {"dynamic": "max_position_embeddings"}
        limit = numbers.get(limits.get(each.rotary.kind, "original_max_position_embeddings"), 0)
        assert limit < LENGTH


SCALED = [kind for kind in KINDS if dimensions_of(reference_model(kind)).rotary.kind != "default"]
SLIDING_IN_PART = [kind for kind in KINDS if "mixed" in kind or "last" in kind or kind == "cwm"]


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_positions_show_in_the_logits(kind: str) -> None:
    reference = reference_model(kind)
    dims, weights = dimensions_of(reference), reference.state_dict()
    ids = torch.randint(dims.vocabulary_size, (2, LENGTH))
    plain = replace(dims, rotary=NO_SCALING)
    scaled, unscaled = (our_logits(weights, each, ids, [[0], [0]]) for each in (dims, plain))
    assert relative_difference(scaled, unscaled) > 1e-2


@pytest.mark.parametrize("kind", SLIDING_IN_PART)
def test_the_blocks_that_slide_are_those_named(kind: str) -> None:
    reference = reference_model(kind)
    dims, weights = dimensions_of(reference), reference.state_dict()
    assert dims.sliding_blocks is not None
    assert {dims.window_of(block) for block in range(dims.num_layers)} == {None, WINDOW}
    ids = torch.randint(dims.vocabulary_size, (2, LENGTH))
    named = our_logits(weights, dims, ids, [[0], [0]])
    for others in (None, (*dims.sliding_blocks[1:], not dims.sliding_blocks[0])):
        altered = replace(dims, sliding_blocks=others)
        assert relative_difference(our_logits(weights, altered, ids, [[0], [0]]), named) > 1e-2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "smollm3" in kind])
def test_the_blocks_without_positions_are_those_named(kind: str) -> None:
    reference = reference_model(kind)
    dims, weights = dimensions_of(reference), reference.state_dict()
    assert dims.turned_blocks is not None
    assert 0 < sum(dims.turned_blocks) < dims.num_layers
    ids = torch.randint(dims.vocabulary_size, (2, LENGTH))
    named = our_logits(weights, dims, ids, [[0], [0]])
    for others in (None, (*dims.turned_blocks[1:], dims.turned_blocks[0])):
        altered = replace(dims, turned_blocks=others)
        assert relative_difference(our_logits(weights, altered, ids, [[0], [0]]), named) > 1e-2


def test_there_is_one_structure_for_each_window_that_differs() -> None:
    dims = dimensions_of(reference_model("qwen2, mixed"))
    starts = torch.zeros((1, 1), dtype=torch.int32)
    context = row_context(starts, LENGTH, dims, torch.float32)
    assert len(context.structures) == 2
    windows = [context.structure_of(block).window for block in range(3)]
    assert windows == [None, WINDOW, None]
    assert context.structure_of(0) is context.structure_of(2)
    # A row no longer than the window: all blocks are alike, and may be asked as one.
    short = row_context(starts, WINDOW, dims, torch.float32)
    assert [short.structure_of(block) for block in range(3)] == [short.structure] * 3


@pytest.mark.parametrize(
    ("lengths", "longest"), [([40], 40), ([10, 25, 5], 25), ([10, 14, 16], 16), ([16, 17, 7], 17)]
)
def test_dynamic_positions_follow_the_longest_document(lengths: list[int], longest: int) -> None:
    dims = dimensions_of(reference_model("llama, dynamic"))
    starts = torch.tensor([lengths]).cumsum(1) - torch.tensor([lengths])
    context = row_context(starts.to(torch.int32), LENGTH, dims, torch.float32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    frequencies = scaled_frequencies(
        dims.head_dim, dims.rope_theta, dims.rotary, longest if longest > ORIGINAL else None
    )
    angles = positions[..., None] * frequencies.repeat(2)
    assert torch.equal(context.cosine, angles.cos()[:, :, None])
    assert torch.equal(context.sine, angles.sin()[:, :, None])


@pytest.mark.parametrize(
    "kind", ["llama", "mistral, window", "qwen2, mixed", "qwen3", "llama, yarn", "llama, dynamic"]
)
def test_bf16_logits_are_rounded_where_transformers_rounds(kind: str) -> None:
    reference = reference_model(kind, torch.bfloat16)
    dims = dimensions_of(reference)
    ids = torch.randint(dims.vocabulary_size, (2, 40))
    with torch.inference_mode():
        expected = reference(ids).logits
    ours = our_logits(reference.state_dict(), dims, ids, [[0], [0]], "dense")
    assert torch.equal(ours, expected)


def test_a_token_outside_the_window_changes_the_last_layer_only_through_others() -> None:
    # With one layer nothing carries the first token beyond the window.
    reference = reference_model("mistral, window")
    weights = {
        name: tensor
        for name, tensor in reference.state_dict().items()
        if "layers." not in name or "layers.0." in name
    }
    dims = dimensions_of(reference)
    dims = type(dims)(**vars(dims) | {"num_layers": 1})
    ids = torch.randint(dims.vocabulary_size, (1, WINDOW + 1))
    altered = ids.clone()
    altered[0, 0] = (ids[0, 0] + 1) % dims.vocabulary_size
    before, after = (our_logits(weights, dims, row, [[0]], "sdpa") for row in (ids, altered))
    assert not torch.equal(before[0, WINDOW - 1], after[0, WINDOW - 1])
    assert torch.equal(before[0, WINDOW], after[0, WINDOW])


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_named_and_shaped_as_transformers_does(kind: str) -> None:
    reference = reference_model(kind)
    dims = dimensions_of(reference)
    expected = {name: tuple(tensor.shape) for name, tensor in reference.named_parameters()}
    assert list(parameter_shapes(dims).items()) == list(expected.items())
    assert block_prefix(dims.num_layers - 1) + next(iter(block_parameters(dims))) in expected


# A row of 40: documents of 17, 3, 12 tokens and padding of 8; and one of two documents.
PACKED = [[0, 17, 20, 32, 40], [0, 25, 40, 40, 40]]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", ["llama", "mistral, window", "qwen2, mixed", "llama, dynamic"])
def test_a_document_never_attends_to_its_neighbour(kind: str, attention: str) -> None:
    reference = reference_model(kind)
    dims, weights = dimensions_of(reference), reference.state_dict()
    ids = torch.randint(dims.vocabulary_size, (2, 40))
    altered = ids.clone()
    altered[0, 17:20] = (ids[0, 17:20] + 1) % dims.vocabulary_size
    before = our_logits(weights, dims, ids, PACKED, attention)
    after = our_logits(weights, dims, altered, PACKED, attention)
    assert not torch.equal(before[0, 17:20], after[0, 17:20])
    assert torch.equal(before[0, :17], after[0, :17])
    assert torch.equal(before[0, 20:], after[0, 20:])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", ["llama", "mistral, window", "qwen3, mixed and llama3"])
def test_a_packed_document_gives_the_logits_it_gives_alone(kind: str, attention: str) -> None:
    reference = reference_model(kind)
    dims, weights = dimensions_of(reference), reference.state_dict()
    ids = torch.randint(dims.vocabulary_size, (2, 40))
    packed = our_logits(weights, dims, ids, PACKED, attention)
    num_compared = 0
    for row, starts in enumerate(PACKED):
        for start, end in zip(starts, [*starts[1:], 40], strict=True):
            if start == end:
                continue
            with torch.inference_mode():
                alone = reference(ids[row : row + 1, start:end]).logits[0]
            assert relative_difference(packed[row, start:end], alone) < 1e-5
            num_compared += 1
    assert num_compared == 6
