import math

import pytest
import torch

from tests.training.tiny import CPU
from workbench.training.optimizer.adafactor import (
    Adafactor,
    Statistics,
    beta2,
    new_statistics,
    update,
)
from workbench.training.optimizer.rounding import noise_key


def reference_update(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    row: torch.Tensor | None,
    column: torch.Tensor | None,
    full: torch.Tensor | None,
    step: int,
    rate: float,
    decay: float,
) -> tuple[torch.Tensor, ...]:
    """The rule as it is written down, in float64, with means in place of sums."""
    kept = min(1 - step**-0.8, 0.999)
    square = gradient**2 + 1e-30
    if weight.dim() == 1:
        assert full is not None
        full = kept * full + (1 - kept) * square
        estimate = full
        found: tuple[torch.Tensor, ...] = (full,)
    else:
        assert row is not None
        assert column is not None
        row = kept * row + (1 - kept) * square.mean(1)
        column = kept * column + (1 - kept) * square.mean(0)
        estimate = torch.outer(row, column) / row.mean()
        found = (row, column)
    change = gradient / estimate.sqrt()
    change /= max(1.0, float(change.pow(2).mean().sqrt()))
    return (weight - rate * decay * weight - rate * change, *found)


@pytest.mark.parametrize("shape", [(17,), (9, 31), (40, 6)])
def test_updates_equal_a_float64_reference(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    statistics = new_statistics(shape, CPU)
    expected = weight.double()
    row = torch.zeros(shape[0], dtype=torch.float64) if len(shape) == 2 else None
    column = torch.zeros(shape[1], dtype=torch.float64) if len(shape) == 2 else None
    full = torch.zeros(shape[0], dtype=torch.float64) if len(shape) == 1 else None
    was_clipped = False
    for step in range(1, 30):
        # A sudden large gradient makes the update longer than its bound.
        size = 50.0 if step == 20 else 0.1
        gradient = size * torch.randn(shape, generator=generator)
        gradient[0] = 0.0
        norm_square = update(
            weight,
            gradient,
            statistics,
            step=step,
            learning_rate=0.01,
            weight_decay=0.1,
            noise=None,
        )
        assert float(norm_square) == pytest.approx(float(gradient.double().pow(2).sum()), rel=1e-5)
        before = expected
        expected, *found = reference_update(
            expected, gradient.double(), row, column, full, step, 0.01, 0.1
        )
        length = float(((expected - before * (1 - 0.001)) / 0.01).pow(2).mean().sqrt())
        was_clipped |= step == 20 and length == pytest.approx(1.0, rel=1e-6)
        if len(shape) == 2:
            row, column = found
        else:
            (full,) = found
        torch.testing.assert_close(weight.double(), expected, rtol=2e-6, atol=2e-6)
    assert was_clipped


def test_the_first_step_uses_the_raw_square_and_later_ones_never_forget_all() -> None:
    assert beta2(1) == 0.0
    assert beta2(2) == pytest.approx(1 - 2**-0.8)
    assert beta2(100_000) == 0.999


def test_gradients_too_small_to_be_squared_still_give_a_finite_update() -> None:
    weight, statistics = torch.ones(4, 3), new_statistics((4, 3), CPU)
    update(
        weight, torch.full((4, 3), 1e-25), statistics,
        step=1, learning_rate=0.1, weight_decay=0.0, noise=None,
    )  # fmt: skip
    assert weight.isfinite().all()
    assert (weight <= 1).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(5,), (5, 7)])
def test_a_gradient_that_is_not_finite_moves_neither_weight_nor_statistics(
    shape: tuple[int, ...], bad: float
) -> None:
    weight, statistics = torch.ones(shape), new_statistics(shape, CPU)
    gradient = torch.ones(shape)
    update(weight, gradient, statistics, step=1, learning_rate=0.1, weight_decay=0.1, noise=None)
    before = weight.clone(), {name: kept.clone() for name, kept in statistics.named().items()}
    gradient[-1] = bad
    norm_square = update(
        weight, gradient, statistics, step=2, learning_rate=0.1, weight_decay=0.1, noise=None
    )
    assert not math.isfinite(float(norm_square))
    assert torch.equal(weight, before[0])
    assert all(torch.equal(statistics.named()[name], kept) for name, kept in before[1].items())


def test_weight_decay_below_a_bfloat16_step_is_not_lost() -> None:
    # 4e-6 x 1e-3 off a weight of 1 is far below half a step: rounded by itself it would vanish.
    weight = torch.ones(512, 512, dtype=torch.bfloat16)
    statistics = new_statistics((512, 512), CPU)
    rate, decay, num_steps = 1e-3, 1e-2, 100
    for step in range(1, num_steps + 1):
        update(
            weight, torch.zeros(512, 512), statistics, step=step, learning_rate=rate,
            weight_decay=decay, noise=noise_key(0, step, "w"),
        )  # fmt: skip
    moved = 1 - float(weight.double().mean())
    assert moved == pytest.approx(rate * decay * num_steps, rel=0.1)


def test_weight_decay_below_a_float32_step_is_not_lost() -> None:
    # The shipped 5e-6 x 1e-3: 1 - 5e-9 is 1 in fp32, so the decay may not be made a factor first.
    moved = []
    for decay in (0.0, 1e-3):
        generator = torch.Generator().manual_seed(0)
        weight = 1 + torch.rand(512, 512, generator=generator)
        statistics = new_statistics((512, 512), CPU)
        gradient = torch.randn(512, 512, generator=generator)
        update(
            weight, gradient, statistics,
            step=1, learning_rate=5e-6, weight_decay=decay, noise=None,
        )  # fmt: skip
        moved.append(weight.double())
    assert float((moved[0] - moved[1]).mean()) == pytest.approx(1.5 * 5e-9, rel=0.1)


@pytest.mark.parametrize("size", [1e5, 1e12])
def test_rows_without_a_gradient_stay_finite_beside_rows_with_a_huge_one(size: float) -> None:
    # An embedding in a step that goes astray: most tokens do not occur in it.
    weight, statistics = torch.ones(8, 64), new_statistics((8, 64), CPU)
    gradient = torch.full((8, 64), size)
    gradient[3] = 0.0
    update(weight, gradient, statistics, step=1, learning_rate=0.1, weight_decay=0.0, noise=None)
    assert bool((weight[3] == 1).all())
    torch.testing.assert_close(weight[0], torch.full((64,), 0.9), rtol=0.1, atol=0.0)


def test_statistics_are_named_after_their_parameters() -> None:
    optimizer = Adafactor(
        {"a.weight": (2, 3), "b.weight": (4,)},
        device=CPU,
        seed=0,
        weight_decay=0.0,
        rounding="stochastic",
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in optimizer.named_tensors().items()}
    assert shapes == {"a.weight:row": (2,), "a.weight:column": (3,), "b.weight:full": (4,)}
    assert isinstance(optimizer.statistics["a.weight"], Statistics)


def test_a_tensor_of_three_dimensions_is_refused() -> None:
    with pytest.raises(AssertionError, match="matrices and vectors"):
        new_statistics((2, 2, 2), CPU)
