import inspect
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.tiny import CPU, dimensions
from workbench.model.kernels import EagerKernels, rms_norm
from workbench.training.engine.head import HeadPass, HeadSums
from workbench.training.loss import target_rows

TOKENS, VOCABULARY = 50, 37
DIMS = replace(dimensions(), vocabulary_size=VOCABULARY, hidden_size=16)
EPSILON = DIMS.norm_epsilon


@dataclass
class Example:
    """Hidden states, every third of which predicts no target."""

    hidden: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    norm: torch.Tensor
    head: torch.Tensor


def example(dtype: torch.dtype = torch.float32) -> Example:
    generator = torch.Generator().manual_seed(2)
    positions = torch.tensor([place for place in range(TOKENS) if place % 3])
    return Example(
        hidden=torch.randn(TOKENS, 16, generator=generator).to(dtype),
        positions=positions,
        labels=torch.randint(0, VOCABULARY, positions.shape, generator=generator),
        norm=torch.rand(16, generator=generator).to(dtype) + 0.5,
        head=torch.randn(VOCABULARY, 16, generator=generator).to(dtype),
    )


def head_pass(chunk_rows: int, dtype: torch.dtype = torch.float32) -> HeadPass:
    return HeadPass(DIMS, chunk_rows=chunk_rows, dtype=dtype, device=CPU, kernels=EagerKernels())


def train(given: Example, chunk_rows: int, sums: HeadSums, scale: float = 0.25) -> torch.Tensor:
    return head_pass(chunk_rows, given.hidden.dtype).train(
        given.hidden, given.positions, given.labels, given.norm, given.head,
        scale=scale, sums=sums, spare_TD=torch.full_like(given.hidden, 7.0),
    )  # fmt: skip


def empty_sums(dtype: torch.dtype = torch.float32) -> HeadSums:
    """What lies in the sum of the head before is overwritten, not added to."""
    return HeadSums(torch.full((VOCABULARY, 16), torch.nan, dtype=dtype), torch.zeros(16))


@pytest.mark.parametrize("chunk_rows", [1, 7, 25, 33, 64])
def test_chunks_equal_full_logits_with_their_gradients(chunk_rows: int) -> None:
    given, sums = example(), empty_sums()
    hidden, norm, head = (
        tensor.double().requires_grad_() for tensor in (given.hidden, given.norm, given.head)
    )
    logits = rms_norm64(hidden[given.positions], norm) @ head.t()
    loss = F.cross_entropy(logits, given.labels, reduction="sum")
    (0.25 * loss).backward()
    found = train(given, chunk_rows, sums)
    assert float(found) == pytest.approx(loss.item(), rel=1e-6)
    for ours, expected in ((given.hidden, hidden), (sums.head, head), (sums.norm, norm)):
        assert expected.grad is not None
        torch.testing.assert_close(ours.double(), expected.grad, rtol=1e-5, atol=1e-6)
    unused = [place for place in range(TOKENS) if place % 3 == 0]
    assert not given.hidden[unused].any()


def rms_norm64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def test_evaluation_gives_the_same_loss_and_counts_what_is_predicted() -> None:
    given = example()
    loss, num_correct = head_pass(8).evaluate(
        given.hidden, given.positions, given.labels, given.norm, given.head
    )
    logits = rms_norm(given.hidden[given.positions], given.norm, EPSILON) @ given.head.t()
    assert int(num_correct) == int((logits.argmax(1) == given.labels).sum())
    assert float(loss) == float(train(given, 8, empty_sums()))


def test_head_gradients_add_up_over_microbatches() -> None:
    once, twice = empty_sums(), empty_sums()
    train(example(), 64, once)
    for _ in range(2):
        train(example(), 64, twice)
    torch.testing.assert_close(twice.head, 2 * once.head)
    torch.testing.assert_close(twice.norm, 2 * once.norm)


def test_a_microbatch_without_targets_has_no_loss_and_no_gradient() -> None:
    given, sums = example(), empty_sums()
    given.positions, given.labels = given.positions[:0], given.labels[:0]
    assert float(train(given, 8, sums)) == 0
    assert not given.hidden.any()
    assert sums.is_empty


def test_bfloat16_sums_into_fp32_follow_the_fp32_gradient() -> None:
    given, wide = example(torch.bfloat16), example(torch.bfloat16)
    for name in ("hidden", "norm", "head"):
        setattr(wide, name, getattr(wide, name).float())
    sums, exact = empty_sums(), empty_sums()
    found, expected = train(given, 16, sums), train(wide, 64, exact)
    assert float(found) == pytest.approx(float(expected), rel=5e-3)
    assert float((sums.head - exact.head).norm() / exact.head.norm()) < 0.02


def test_target_rows_name_the_token_before_each_target() -> None:
    ids = np.array([[5, 6, 7, 0], [8, 9, 3, 4]], dtype=np.int32)
    targets = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.bool_)
    positions, labels = target_rows(ids, targets)
    assert positions.tolist() == [0, 1, 6]
    assert labels.tolist() == [6, 7, 4]
    assert positions.dtype == labels.dtype == np.int64


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no such function"
)
def test_the_sum_equals_torchs_fused_head() -> None:
    given = example()
    assert "reduction" in inspect.signature(F.linear_cross_entropy).parameters
    normed = rms_norm(given.hidden[given.positions], given.norm, EPSILON)
    expected = F.linear_cross_entropy(normed, given.head, given.labels, reduction="sum")
    assert float(train(given, 16, empty_sums())) == pytest.approx(float(expected), rel=1e-5)
