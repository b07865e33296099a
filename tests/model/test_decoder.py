import pytest
import torch

from tests.model.tiny import (
    KINDS,
    WINDOW,
    dimensions_of,
    our_logits,
    reference_model,
    relative_difference,
)
from workbench.model.decoder import (
    block_parameters,
    block_prefix,
    parameter_shapes,
)

ATTENTION = ("dense", "sdpa")


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(kind: str, attention: str) -> None:
    reference = reference_model(kind)
    dims = dimensions_of(reference)
    ids = torch.randint(dims.vocabulary_size, (2, 40))
    assert dims.sliding_window is None or ids.shape[1] > dims.sliding_window + 1
    with torch.inference_mode():
        expected = reference(ids).logits
    ours = our_logits(reference.state_dict(), dims, ids, [[0], [0]], attention)
    assert relative_difference(ours, expected) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral, window"])
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
    assert block_prefix(1) + next(iter(block_parameters(dims))) in expected


# A row of 40: documents of 17, 3, 12 tokens and padding of 8; and one of two documents.
PACKED = [[0, 17, 20, 32, 40], [0, 25, 40, 40, 40]]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", ["llama", "mistral, window"])
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
@pytest.mark.parametrize("kind", ["llama", "mistral, window"])
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
