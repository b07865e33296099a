import math

import pytest
import torch

from tests.training.tiny import CPU
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.exact import LOW, join_exact, split_exact, write_exact


def random_patterns(num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (num,), generator=generator, dtype=torch.int64)
    return bits.to(torch.int32).view(torch.float32)


def test_a_million_random_patterns_come_back_bit_for_bit() -> None:
    values = random_patterns(1_000_000)
    edges = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4028234e38, 1.00390625])
    values = torch.cat([values, edges])
    high, low = split_exact(values)
    found = join_exact(high, low)
    is_number = ~values.isnan()
    assert int(is_number.sum()) > 990_000
    assert torch.equal(found.view(torch.int32)[is_number], values.view(torch.int32)[is_number])
    assert found[~is_number].isnan().all()
    assert high[~is_number].isnan().all()


def test_the_high_half_is_the_nearest_bfloat16_with_halves_away_from_zero() -> None:
    values = random_patterns(200_000)
    values = values[values.abs() < 1e38]
    high, _ = split_exact(values)
    nearest = values.to(torch.bfloat16)
    is_half = (values.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(high[~is_half], nearest[~is_half])
    halves = torch.tensor([0x3F808000, 0x3F818000], dtype=torch.int32).view(torch.float32)
    halves = torch.cat([halves, -halves])
    high, low = split_exact(halves)
    assert (high.float().abs() > halves.abs()).all()
    assert (low == -0x8000).all()


def test_writing_halves_overwrites_both_in_place() -> None:
    values = random_patterns(60)
    values = values[~values.isnan()][:48]
    high, low = torch.empty(48, dtype=torch.bfloat16), torch.empty(48, dtype=torch.int16)
    write_exact(values.view(6, 8), high.view(6, 8), low)
    assert torch.equal(join_exact(high, low), values)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("shape", [(37,), (9, 130)])
def test_exact_weights_move_as_fp32_weights_whose_rounding_forward_sees(
    name: OptimizerName, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    full = 0.02 * torch.randn(shape, generator=generator)
    high, low = split_exact(full)
    optimizers = [
        new_optimizer(
            name, {"w": shape}, dtype=dtype, device=CPU, seed=0, weight_decay=0.1, rounding="exact"
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
    companions = [
        {part: torch.zeros(at, dtype=dtype) for part, (at, dtype) in found.companion(shape).items()}
        for found in optimizers
    ]
    assert LOW not in companions[0]
    companions[1][LOW].copy_(low)
    num_seen = 0
    for step in range(1, 40):
        gradient = torch.randn(shape, generator=generator)
        # Far below a bfloat16 step of the weights, most of them.
        for optimizer, weight, companion in zip(optimizers, (full, high), companions, strict=True):
            optimizer.update("w", weight, gradient, companion, step=step, learning_rate=2e-6)
        assert torch.equal(join_exact(high, companions[1][LOW]), full)
        assert torch.equal(high, split_exact(full)[0])
        num_seen += 1
    assert num_seen == 39


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_bad_gradient_leaves_both_halves_alone(name: OptimizerName) -> None:
    optimizer = new_optimizer(
        name, {"w": (3, 5)}, dtype=torch.bfloat16, device=CPU, seed=0, weight_decay=0.1,
        rounding="exact",
    )  # fmt: skip
    parts = optimizer.companion((3, 5))
    companion = {part: torch.zeros(at, dtype=dtype) for part, (at, dtype) in parts.items()}
    weight = torch.ones(3, 5, dtype=torch.bfloat16)
    optimizer.update("w", weight, torch.ones(3, 5), companion, step=1, learning_rate=1e-6)
    before = weight.clone(), {part: tensor.clone() for part, tensor in companion.items()}
    assert before[1][LOW].any()
    gradient = torch.full((3, 5), math.nan)
    optimizer.update("w", weight, gradient, companion, step=2, learning_rate=1e-6)
    gradient = torch.ones(3, 5)
    stopped = torch.tensor(False)
    optimizer.update("w", weight, gradient, companion, step=2, learning_rate=1e-6, ok=stopped)
    assert torch.equal(weight, before[0])
    assert all(torch.equal(companion[part], tensor) for part, tensor in before[1].items())
