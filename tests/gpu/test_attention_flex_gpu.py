"""Flex attention against the twin; most of its time is torch's compiler."""

import pytest
import torch

from tests.gpu.waiting import waiting_is_an_error
from tests.model.attention_rows import (
    relative_difference,
    starts_of,
    twin_results,
    views_of_one_buffer,
)
from workbench.model.attention import (
    attend_backward,
    attend_forward,
    attention_structure,
    choose_method,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
LENGTHS = [[700, 4, 120, 176], [1000, 0, 0, 0], [1, 1, 510, 488]]


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_flex_attention_equals_the_twin_and_waits_for_nothing_once_compiled() -> None:
    assert choose_method("flex", CUDA, BF16) == "flex"
    starts = starts_of(LENGTHS)
    q, k, v, gradient = views_of_one_buffer(3, 1000, (8, 2), 64, BF16, CUDA)
    for window in (None, 65):
        structure = attention_structure(starts, 1000, window, "flex", CUDA, dtype=BF16)
        attended = attend_forward(q, k, v, structure)
        ours = (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))
        expected = twin_results(q, k, v, gradient, starts, window)
        for found, reference in zip(ours, expected, strict=True):
            assert relative_difference(found, reference) < 5e-3
    other = starts_of([[999, 1, 0, 0], [500, 500, 0, 0], [1, 2, 3, 994]])
    torch.cuda.synchronize()
    with waiting_is_an_error():
        structure = attention_structure(other, 1000, 65, "flex", CUDA, dtype=BF16)
        attended = attend_forward(q, k, v, structure)
        ours = (attended.out_BTHD, *attend_backward(gradient, q, k, v, attended, structure))
    for found, reference in zip(ours, twin_results(q, k, v, gradient, other, 65), strict=True):
        assert relative_difference(found, reference) < 5e-3
