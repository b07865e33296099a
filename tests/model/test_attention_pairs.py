"""Attention as an explicit forward and backward, every way that a CPU has."""

import pytest
import torch

from tests.model.attention_rows import (
    relative_difference,
    starts_of,
    twin_results,
    views_of_one_buffer,
)
from workbench.model.attention import (
    Attended,
    Method,
    attend,
    attend_backward,
    attend_forward,
    attention_structure,
    keeps_log_sum,
)
from workbench.model.attention_kernels import kernel_works

CPU = torch.device("cpu")
ALONE = [[65], [65]]
SHARED = [[1, 1, 2, 33, 0, 28], [31, 34, 0, 0, 0, 0]]


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize(
    ("lengths", "window", "method", "dtype", "way", "keeps"),
    [
        (ALONE, None, "sdpa", torch.float32, "causal", True),
        (ALONE, None, "sdpa", torch.float64, "causal", False),
        (ALONE, 9, "sdpa", torch.float32, "documents", False),
        (SHARED, None, "sdpa", torch.float32, "documents", True),
        (SHARED, None, "sdpa", torch.float64, "documents", False),
        (SHARED, 9, "sdpa", torch.float32, "documents", False),
        (SHARED, 34, "sdpa", torch.float32, "documents", True),
        (ALONE, None, "dense", torch.float32, "dense", False),
        (SHARED, 9, "dense", torch.float32, "dense", False),
    ],
)
def test_forward_and_backward_equal_autograd_of_the_twin_in_float64(
    lengths: list[list[int]],
    window: int | None,
    method: Method,
    dtype: torch.dtype,
    way: str,
    keeps: bool,
    heads: tuple[int, int],
) -> None:
    starts = starts_of(lengths)
    structure = attention_structure(starts, 65, window, method, CPU, dtype=dtype, head_dim=16)
    assert (structure.way, keeps_log_sum(structure)) == (way, keeps)
    q, k, v, gradient = views_of_one_buffer(2, 65, heads, 16, dtype, CPU)
    attended = attend_forward(q, k, v, structure)
    assert (attended.log_sum is not None) == keeps
    ours = (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))
    for found, expected in zip(ours, twin_results(q, k, v, gradient, starts, window), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == dtype
        assert not found.requires_grad
        assert relative_difference(found, expected) < 1e-6


def test_in_16_bits_the_cpu_is_as_near_as_16_bits_are() -> None:
    starts = starts_of(ALONE)
    structure = attention_structure(starts, 65, None, "sdpa", CPU, dtype=torch.bfloat16)
    assert keeps_log_sum(structure)
    q, k, v, gradient = views_of_one_buffer(2, 65, (4, 2), 64, torch.bfloat16, CPU)
    attended = attend_forward(q, k, v, structure)
    ours = (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))
    for found, expected in zip(ours, twin_results(q, k, v, gradient, starts, None), strict=True):
        assert relative_difference(found, expected) < 1e-2


def test_the_log_sum_is_one_fp32_number_for_each_token_and_head() -> None:
    structure = attention_structure(starts_of(ALONE), 65, None, "sdpa", CPU)
    q, k, v, _ = views_of_one_buffer(2, 65, (4, 2), 64, torch.bfloat16, CPU)
    log_sum = attend_forward(q, k, v, structure).log_sum
    assert log_sum is not None
    assert (log_sum.shape, log_sum.dtype) == ((2 * 65 * 4,), torch.float32)


@pytest.mark.parametrize("lengths", [ALONE, SHARED])
def test_a_record_may_lie_elsewhere_until_the_backward(lengths: list[list[int]]) -> None:
    structure = attention_structure(starts_of(lengths), 65, None, "sdpa", CPU)
    q, k, v, gradient = views_of_one_buffer(2, 65, (4, 2), 16, torch.float32, CPU)
    attended = attend_forward(q, k, v, structure)
    expected = attend_backward(gradient, q, k, v, attended, structure)
    assert attended.log_sum is not None
    region = torch.empty(attended.out_BTHD.numel() + attended.log_sum.numel())
    kept = Attended(
        region[: attended.out_BTHD.numel()].view(attended.out_BTHD.shape),
        region[attended.out_BTHD.numel() :],
    )
    assert kept.log_sum is not None
    kept.out_BTHD.copy_(attended.out_BTHD)
    kept.log_sum.copy_(attended.log_sum)
    attended.out_BTHD.fill_(torch.nan)
    found = attend_backward(gradient, q, k, v, kept, structure)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", ["sdpa", "dense"])
@pytest.mark.parametrize("window", [None, 9])
def test_an_altered_document_changes_no_bit_of_its_neighbours(
    method: Method, window: int | None
) -> None:
    starts = starts_of(SHARED)
    structure = attention_structure(starts, 65, window, method, CPU, head_dim=16)
    q, k, v, gradient = views_of_one_buffer(2, 65, (4, 2), 16, torch.float32, CPU)
    altered = torch.zeros(2, 65, dtype=torch.bool)
    altered[0, 4:37] = True
    results = []
    for factor in (1.0, -3.0):
        for tensor in (q, k, v, gradient):
            tensor[altered] *= factor
        attended = attend_forward(q, k, v, structure)
        results.append(
            (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))
        )
    for before, after in zip(*results, strict=True):
        assert torch.equal(before[~altered], after[~altered])
        assert not torch.equal(before[altered], after[altered])


def test_a_row_of_one_token_passes_its_value_on() -> None:
    structure = attention_structure(starts_of([[1], [1]]), 1, None, "sdpa", CPU)
    q, k, v, gradient = views_of_one_buffer(2, 1, (4, 2), 16, torch.float32, CPU)
    attended = attend_forward(q, k, v, structure)
    assert torch.equal(attended.out_BTHD, v.repeat_interleave(2, 2))
    dq, dk, dv = attend_backward(gradient, q, k, v, attended, structure)
    assert dq.abs().max() < 1e-6
    assert dk.abs().max() < 1e-6
    torch.testing.assert_close(dv, gradient.unflatten(2, (2, 2)).sum(3))


def test_attending_with_a_graph_and_without_give_the_same_result() -> None:
    structure = attention_structure(starts_of(SHARED), 65, None, "sdpa", CPU)
    q, k, v, _ = views_of_one_buffer(2, 65, (4, 2), 16, torch.float32, CPU)
    assert torch.equal(attend(q, k, v, structure), attend_forward(q, k, v, structure).out_BTHD)


def test_a_kernel_of_another_device_or_dtype_does_not_work() -> None:
    assert kernel_works("cpu", CPU, torch.float32, 16)
    assert not kernel_works("cpu", CPU, torch.float64, 16)
    assert not kernel_works("flash", CPU, torch.bfloat16, 64)
    assert not kernel_works("cudnn", CPU, torch.bfloat16, 64)
