import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.config.memory_parts import chunk_rows
from workbench.training.loss import head_loss, target_rows

ROWS, WIDTH, VOCABULARY = 50, 16, 37


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return hidden, labels, head


@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 64])
def test_chunks_equal_full_logits_with_their_gradients(chunk: int) -> None:
    hidden, labels, head = example()
    head_gradient = torch.zeros_like(head)
    found = head_loss(
        hidden,
        labels,
        head,
        chunk=chunk,
        scale=0.25,
        head_gradient=head_gradient,
        count_correct=True,
    )
    h, w = hidden.double().requires_grad_(), head.double().requires_grad_()
    logits = h @ w.t()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    (0.25 * loss).backward()
    assert float(found.loss_sum) == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(found.hidden_gradient.double(), h.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head_gradient.double(), w.grad, rtol=1e-5, atol=1e-6)
    assert int(found.num_correct) == int((logits.argmax(1) == labels).sum())


def test_head_gradients_add_up_over_calls() -> None:
    hidden, labels, head = example()
    once, twice = torch.zeros_like(head), torch.zeros_like(head)
    head_loss(hidden, labels, head, chunk=64, scale=1.0, head_gradient=once)
    for _ in range(2):
        head_loss(hidden, labels, head, chunk=64, scale=1.0, head_gradient=twice)
    torch.testing.assert_close(twice, 2 * once)


def test_bfloat16_sums_into_fp32_follow_the_fp32_gradient() -> None:
    hidden, labels, head = example(torch.bfloat16)
    head_gradient = torch.zeros(VOCABULARY, WIDTH)
    found = head_loss(hidden, labels, head, chunk=16, scale=1 / ROWS, head_gradient=head_gradient)
    exact = torch.zeros(VOCABULARY, WIDTH)
    expected = head_loss(
        hidden.float(), labels, head.float(), chunk=64, scale=1 / ROWS, head_gradient=exact
    )
    assert float(found.loss_sum) == pytest.approx(float(expected.loss_sum), rel=5e-3)
    assert float((head_gradient - exact).norm() / exact.norm()) < 0.02


def test_without_a_scale_no_gradient_is_made() -> None:
    hidden, labels, head = example()
    assert head_loss(hidden, labels, head, chunk=64).hidden_gradient is None


def test_target_rows_name_the_token_before_each_target() -> None:
    ids = np.array([[5, 6, 7, 0], [8, 9, 3, 4]], dtype=np.int32)
    targets = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.bool_)
    positions, labels = target_rows(ids, targets)
    assert positions.tolist() == [0, 1, 6]
    assert labels.tolist() == [6, 7, 4]
    assert positions.dtype == labels.dtype == np.int64


def test_chunks_shrink_with_the_vocabulary_but_stay_large_enough() -> None:
    assert chunk_rows(1_000) == 4096
    assert chunk_rows(16_000) == 2097
    assert chunk_rows(256_000) == 1024


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no such function"
)
def test_the_sum_equals_torchs_fused_head() -> None:
    hidden, labels, head = example()
    assert "reduction" in inspect.signature(F.linear_cross_entropy).parameters
    expected = F.linear_cross_entropy(hidden, head, labels, reduction="sum")
    found = head_loss(hidden, labels, head, chunk=16)
    assert float(found.loss_sum) == pytest.approx(float(expected), rel=1e-5)
