import math
import sys
import warnings

import pytest
import torch

from tests.training.tiny import CPU
from workbench.errors import ConfigError
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.protocol import Optimizer, Rounding

# More than one piece of the update, and blocks of 256 in the second.
SHAPE = (96, 512)
RATE, DECAY = 1e-2, 0.1


def optimizer_of(
    name: OptimizerName,
    shape: tuple[int, ...] = SHAPE,
    *,
    dtype: torch.dtype = torch.float32,
    rounding: Rounding = "stochastic",
) -> tuple[Optimizer, dict[str, torch.Tensor]]:
    if name != "adamw":
        pytest.importorskip("torchao", exc_type=ImportError)
    optimizer = new_optimizer(
        name,
        {"w": shape},
        dtype=dtype,
        device=CPU,
        seed=0,
        weight_decay=DECAY,
        rounding=rounding,
    )
    parts = optimizer.companion(shape)
    return optimizer, {part: torch.zeros(at, dtype=kind) for part, (at, kind) in parts.items()}


def gradients(shape: tuple[int, ...], num: int) -> list[torch.Tensor]:
    """Gradients with a drift, whose elements differ in size."""
    generator = torch.Generator().manual_seed(2)
    sizes = torch.rand(shape, generator=generator)
    drift = torch.randn(shape, generator=generator)
    return [sizes * (drift + torch.randn(shape, generator=generator)) for _ in range(num)]


@pytest.mark.parametrize("shape", [(37,), SHAPE])
def test_adamw_equals_that_of_torch(shape: tuple[int, ...]) -> None:
    optimizer, companion = optimizer_of("adamw", shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(weight.double())
    reference = torch.optim.AdamW([parameter], lr=RATE, weight_decay=DECAY)
    for step, gradient in enumerate(gradients(shape, 30), start=1):
        parameter.grad = gradient.double()
        reference.step()
        square = optimizer.update("w", weight, gradient, companion, step=step, learning_rate=RATE)
        assert float(square) == pytest.approx(float(gradient.double().square().sum()), rel=1e-5)
        torch.testing.assert_close(weight.double(), parameter.data, rtol=1e-6, atol=2e-6)
    assert optimizer.named_tensors() == {}


@pytest.mark.parametrize(("name", "tolerance"), [("adamw_8bit", 0.1), ("adamw_4bit", 0.5)])
def test_small_moments_follow_those_in_fp32(name: OptimizerName, tolerance: float) -> None:
    small, companion = optimizer_of(name)
    full, full_companion = optimizer_of("adamw")
    assert sum(part.nbytes for part in companion.values()) < 0.3 * sum(
        part.nbytes for part in full_companion.values()
    )
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    weights = [start.clone(), start.clone()]
    for step, gradient in enumerate(gradients(SHAPE, 30), start=1):
        small.update("w", weights[0], gradient, companion, step=step, learning_rate=RATE)
        full.update("w", weights[1], gradient, full_companion, step=step, learning_rate=RATE)
    moved = (weights[1] - start).norm()
    assert float((weights[0] - weights[1]).norm() / moved) < tolerance


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_4bit"])
def test_small_moments_are_those_of_torchao(name: OptimizerName) -> None:
    optimizer, companion = optimizer_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.optim.adam import single_param_adam
        from torchao.optim.subclass_4bit import OptimState4bit
        from torchao.optim.subclass_8bit import OptimState8bit

    state = OptimState8bit if name == "adamw_8bit" else OptimState4bit
    block = 256 if name == "adamw_8bit" else 128
    first = state.zeros(SHAPE, True, block, dtype=torch.float32)
    second = state.zeros(SHAPE, False, block, dtype=torch.float32)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = weight.clone()
    for step, gradient in enumerate(gradients(SHAPE, 10), start=1):
        # Where a square would become zero theirs makes a huge step and ours does not.
        gradient = gradient.sign() * gradient.abs().clamp(min=0.05)
        optimizer.update("w", weight, gradient, companion, step=step, learning_rate=RATE)
        single_param_adam(
            expected, gradient, torch.tensor(float(step)), first, second, None,
            torch.tensor(RATE), 0.9, 0.999, DECAY, 1e-8, True, False,
        )  # fmt: skip
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-5)
    for part, theirs in (("first", first), ("second", second)):
        assert torch.equal(companion[f"{part}_scales"], theirs.scale)
        assert torch.equal(companion[f"{part}_codes"], theirs.codes.view(-1))


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_4bit"])
@pytest.mark.parametrize("shape", [(100,), (63, 67)])
def test_small_and_odd_tensors_keep_fp32_moments(
    name: OptimizerName, shape: tuple[int, ...]
) -> None:
    optimizer, companion = optimizer_of(name, shape)
    full, full_companion = optimizer_of("adamw", shape)
    assert companion.keys() == full_companion.keys()
    weights = [torch.ones(shape), torch.ones(shape)]
    for step, gradient in enumerate(gradients(shape, 3), start=1):
        optimizer.update("w", weights[0], gradient, companion, step=step, learning_rate=RATE)
        full.update("w", weights[1], gradient, full_companion, step=step, learning_rate=RATE)
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_4bit"])
def test_elements_with_tiny_gradients_make_no_huge_step(name: OptimizerName) -> None:
    optimizer, companion = optimizer_of(name)
    weight = torch.zeros(SHAPE)
    gradient = torch.ones(SHAPE)
    gradient[:, ::2] = 1e-5  # its square is far below the least code beside that of one
    for step in range(1, 11):
        # As rows of an embedding: a token seen once, then no more.
        seen = gradient if step == 1 else torch.zeros(SHAPE)
        optimizer.update("w", weight, seen, companion, step=step, learning_rate=RATE)
    assert 0.0 < float(weight.abs().max()) <= 10 * RATE


def test_the_scale_multiplies_the_gradient_and_not_the_reported_norm() -> None:
    found = []
    for scale, factor in ((torch.tensor(0.25), 1.0), (None, 0.25)):
        optimizer, companion = optimizer_of("adamw")
        weight = torch.ones(SHAPE)
        for step, gradient in enumerate(gradients(SHAPE, 3), start=1):
            square = optimizer.update(
                "w", weight, factor * gradient, companion, step=step, learning_rate=RATE,
                scale=scale,
            )  # fmt: skip
        found.append((weight, companion["first"], float(square)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == pytest.approx(16 * found[1][2], rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adamw_4bit"])
def test_what_may_not_move_keeps_every_bit(name: OptimizerName) -> None:
    optimizer, companion = optimizer_of(name, dtype=torch.bfloat16)
    weight = torch.ones(SHAPE, dtype=torch.bfloat16)
    good = gradients(SHAPE, 1)[0]
    optimizer.update("w", weight, good, companion, step=1, learning_rate=RATE)
    before = [weight.clone(), *(part.clone() for part in companion.values())]
    bad = good.clone()
    bad[-1, -1] = math.inf
    optimizer.update("w", weight, bad, companion, step=2, learning_rate=RATE)
    stopped = torch.tensor(False)
    optimizer.update("w", weight, good, companion, step=2, learning_rate=RATE, ok=stopped)
    for old, new in zip(before, (weight, *companion.values()), strict=True):
        assert torch.equal(old, new)


def test_changes_below_a_bfloat16_step_survive_stochastic_rounding_alone() -> None:
    moved = {}
    roundings: tuple[Rounding, ...] = ("stochastic", "nearest")
    for rounding in roundings:
        optimizer, companion = optimizer_of("adamw", dtype=torch.bfloat16, rounding=rounding)
        weight = torch.ones(SHAPE, dtype=torch.bfloat16)
        for step in range(1, 51):
            optimizer.update(
                "w", weight, torch.ones(SHAPE), companion, step=step, learning_rate=1e-5
            )
        moved[rounding] = float((1 - weight.double()).mean())
    # Each step takes 1e-5 x (1 + decay) off a weight of 1, whose step below is 0.0039.
    assert moved["stochastic"] == pytest.approx(50 * 1.1e-5, rel=0.1)
    assert moved["nearest"] == 0.0


def test_small_moments_without_torchao_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim.quant_utils", None)
    with pytest.raises(ConfigError, match=r"optimizer\.name.*pip install torchao"):
        new_optimizer(
            "adamw_8bit", {"w": SHAPE}, dtype=torch.bfloat16, device=CPU, seed=0,
            weight_decay=0.0, rounding="stochastic",
        )  # fmt: skip
