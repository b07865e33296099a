import math

import pytest
import torch

from tests.training.tiny import CPU
from workbench.training.optimizer.rounding import (
    noise,
    noise_key,
    round_stochastically,
    round_to_nearest,
)


def neighbours(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bfloat16 values towards zero and away from zero, as fp32."""
    towards = values.view(torch.int32) & -65536
    exact = towards.view(torch.float32) == values
    away = torch.where(exact, towards, towards + 65536)
    return towards.view(torch.float32), away.view(torch.float32)


def draws(values: torch.Tensor, num_draws: int) -> torch.Tensor:
    rounded = torch.empty(num_draws, values.numel(), dtype=torch.bfloat16)
    for draw in range(num_draws):
        round_stochastically(values, rounded[draw], noise_key(1, draw + 1, "weight"))
    return rounded.float()


def test_the_mean_of_many_draws_is_the_value() -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 0.02
    low, high = neighbours(values)
    found = draws(values, 4096).double()
    up = ((values - low) / (high - low)).double()
    # Four standard errors of a draw between two neighbours.
    error = (high - low).abs().double() * (up * (1 - up) / 4096).sqrt()
    assert ((found.mean(0) - values.double()).abs() <= 4 * error + 1e-12).all()


def test_no_draw_lies_outside_the_two_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.cat(
        [torch.randn(500, generator=generator) * 10.0**power for power in range(-30, 30, 6)]
    )
    low, high = neighbours(values)
    found = draws(values, 64)
    assert ((found == low) | (found == high)).all()
    assert (found != low).any()
    assert (found != high).any()


def test_the_bits_depend_on_seed_step_name_and_element_and_on_nothing_else() -> None:
    def bits(seed: int, step: int, name: str) -> torch.Tensor:
        return noise(noise_key(seed, step, name), 0, 1000, CPU)

    first = bits(1, 2, "a")
    assert torch.equal(first, bits(1, 2, "a"))
    assert torch.equal(first[300:500], noise(noise_key(1, 2, "a"), 300, 500, CPU))
    for other in (bits(2, 2, "a"), bits(1, 3, "a"), bits(1, 2, "b")):
        assert (first == other).float().mean() < 0.01
    assert first.unique().numel() > 950


def test_the_bits_are_those_of_a_32_bit_mix() -> None:
    key = noise_key(3, 4, "weight")
    expected = []
    for index in (0, 1, 65_535, 2**31 + 5):
        word = index ^ key.first
        word ^= word >> 16
        word = (word * 0x21F0AAAD + key.second) % 2**32
        word ^= word >> 15
        word = word * 0x735A2D97 % 2**32
        word ^= word >> 15
        expected.append(word % 2**16)
    found = [int(noise(key, index, index + 1, CPU)) for index in (0, 1, 65_535, 2**31 + 5)]
    assert found == expected


def test_the_bits_are_uniform() -> None:
    drawn = noise(noise_key(0, 1, "weight"), 0, 1 << 18, CPU)
    for bit in range(16):
        share = float(((drawn >> bit) & 1).double().mean())
        assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1 << 18))
    # Chi-square over 256 classes: mean 255, standard deviation about 22.6.
    counts = torch.bincount(drawn >> 8, minlength=256).double()
    statistic = float(((counts - 1024) ** 2 / 1024).sum())
    assert 255 - 5 * 22.6 < statistic < 255 + 5 * 22.6


def test_what_is_bfloat16_already_infinite_or_no_number_stays() -> None:
    odd = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -3.0]
    values = torch.tensor(odd)
    # NaN patterns whose payload lies in the low half alone must not become infinity.
    values = torch.cat(
        [values, torch.tensor([0x7F800001, -1], dtype=torch.int32).view(torch.float32)]
    )
    for step in range(1, 200):
        rounded = torch.empty(values.numel(), dtype=torch.bfloat16)
        round_stochastically(values, rounded, noise_key(0, step, "weight"))
        assert torch.equal(rounded[[0, 1, 3, 4, 5, 6]].float(), values[[0, 1, 3, 4, 5, 6]])
        assert rounded[[2, 7, 8]].isnan().all()


def test_nearest_rounding_is_that_of_torch() -> None:
    values = torch.randn(100)
    rounded = torch.empty(100, dtype=torch.bfloat16)
    round_to_nearest(values, rounded)
    assert torch.equal(rounded, values.to(torch.bfloat16))
