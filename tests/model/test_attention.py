import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.model.attention import (
    attend,
    attention_structure,
    choose_method,
)
from workbench.model.attention_twin import dense_attention, visible
from workbench.model.rotary import document_index, document_positions

CPU = torch.device("cpu")


def test_positions_restart_at_each_document() -> None:
    starts = torch.tensor([[0, 3, 5], [0, 5, 5]], dtype=torch.int32)
    assert document_positions(starts, 5).tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert document_index(starts, 5).tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_a_query_sees_its_document_up_to_itself_within_the_window() -> None:
    mask = visible(torch.tensor([[0, 4]]), 6, window=2)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("lengths", "window", "way"),
    [
        ([[300]], None, "causal"),
        ([[300]], 300, "causal"),
        ([[300]], 299, "documents"),
        ([[60, 40]], None, "documents"),
        ([[1, 1, 2, 33, 32, 64, 65, 2], [31, 169, 0, 0, 0, 0, 0, 0]], None, "documents"),
        ([[1, 1, 2, 33, 32, 64, 65, 2], [31, 169, 0, 0, 0, 0, 0, 0]], 40, "documents"),
        ([[200, 100], [150, 150]], None, "documents"),
        ([[200, 100], [150, 150]], 50, "documents"),
        ([[20, 20], [5, 35]], 7, "documents"),
    ],
)
def test_every_way_equals_the_dense_twin(
    lengths: list[list[int]], window: int | None, way: str
) -> None:
    row_length = sum(lengths[0])
    starts = torch.tensor([[0, *torch.tensor(row).cumsum(0)[:-1].tolist()] for row in lengths])
    structure = attention_structure(starts, row_length, window, "sdpa", CPU)
    assert structure.way == way
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(len(lengths), row_length, heads, 8, generator=generator) for heads in (4, 2, 2)
    ]
    results = []
    for chosen in (structure, attention_structure(starts, row_length, window, "dense", CPU)):
        q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
        out = attend(q, k, v, chosen)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 12),
)
def test_the_mask_is_the_rule_written_out(lengths: list[int], window: int | None) -> None:
    row_length = sum(lengths)
    starts = torch.tensor([[sum(lengths[:index]) for index in range(len(lengths))]])
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    expected = [
        [
            owner[query] == owner[key] and key <= query and (window is None or query - key < window)
            for key in range(row_length)
        ]
        for query in range(row_length)
    ]
    assert visible(starts, row_length, window)[0, 0].tolist() == expected


def test_the_dense_twin_is_a_mean_of_visible_values() -> None:
    mask = torch.tensor([[[[True, False], [True, True]]]])
    query = torch.zeros(1, 2, 2, 4)
    value = torch.tensor([[1.0] * 4, [3.0] * 4])[None, None]
    out = dense_attention(query, torch.zeros(1, 1, 2, 4), value, mask)
    assert out[0, 1, :, 0].tolist() == [1.0, 2.0]


def test_without_a_gpu_auto_is_sdpa_and_varlen_is_refused() -> None:
    assert choose_method("auto", CPU, torch.bfloat16) == "sdpa"
    with pytest.raises(
        ConfigError, match=r"model\.attention: varlen attention does not run on a CPU"
    ):
        choose_method("varlen", CPU, torch.bfloat16)
