"""The optimizers on a GPU: Triton against its twins, rounding bit for bit, nothing waited for."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.waiting import waiting_is_an_error
from workbench.training.optimizer import adafactor, adamw
from workbench.training.optimizer.adafactor import new_statistics
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.exact import LOW, join_exact, split_exact
from workbench.training.optimizer.moments import FullMoments, SmallMoments
from workbench.training.optimizer.protocol import Optimizer, Rounding
from workbench.training.optimizer.rounding import noise_key, round_stochastically

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SHAPES = [(1,), (4097,), (33, 70), (1, 600), (300, 1), (257, 1031), (64, 4096), (5000, 48)]


def randn(shape: tuple[int, ...], seed: int, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    return size * torch.randn(shape, generator=generator, device=CUDA)


def ordered(values: torch.Tensor) -> torch.Tensor:
    """Number bfloat16 values in their order: neighbours differ by one."""
    bits = values.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "exact"])
@pytest.mark.parametrize("sum_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_adafactor_equals_its_twin(
    shape: tuple[int, ...], sum_dtype: torch.dtype, rounding: Rounding
) -> None:
    from workbench.training.optimizer.adafactor_triton import FusedUpdate

    fused = FusedUpdate([shape], CUDA)
    start = randn(shape, 0, 0.02)
    high, low = split_exact(start)
    weights, lows = [high.clone(), high.clone()], [low.clone(), low.clone()]
    kept = [new_statistics(shape, CUDA) for _ in range(2)]
    num_moved = 0
    for step in range(1, 8):
        gradient = randn(shape, step, 50.0 if step == 5 else 0.1)
        gradient[: len(gradient) // 9] = 0.0
        squares = [
            function(
                weight,
                gradient.to(sum_dtype),
                statistics,
                step=step,
                learning_rate=1e-3,
                weight_decay=0.1,
                noise=noise_key(3, step, "w") if rounding == "stochastic" else None,
                low=low_half if rounding == "exact" else None,
                scale=torch.tensor(0.3, device=CUDA) if step > 1 else None,
                ok=torch.tensor(True, device=CUDA) if step > 2 else None,
            )
            for function, weight, statistics, low_half in zip(
                (adafactor.update, fused), weights, kept, lows, strict=True
            )
        ]
        torch.testing.assert_close(squares[1], squares[0], rtol=1e-5, atol=0.0)
        for name, statistic in kept[0].named().items():
            torch.testing.assert_close(kept[1].named()[name], statistic, rtol=1e-5, atol=1e-35)
        # Each step is compared alone: what a rounding sets apart stays apart.
        if rounding == "exact":
            values = [join_exact(*pair) for pair in zip(weights, lows, strict=True)]
            torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-8)
            lows[1].copy_(lows[0])
        difference = (ordered(weights[1]) - ordered(weights[0])).abs()
        is_near_zero = weights[0].abs() < 1e-6  # where an fp32 error is more than a step
        assert int(difference.masked_fill(is_near_zero, 0).max()) <= 1
        assert float((difference > 0).float().mean()) < 0.01 or difference.numel() < 100
        num_moved += int((weights[0] != high).sum())
        weights[1].copy_(weights[0])
    assert num_moved > 0


@pytest.mark.parametrize("shape", [(300,), (200, 333)])
def test_fused_adafactor_of_fp32_weights_equals_its_twin_on_the_cpu(shape: tuple[int, ...]) -> None:
    optimizers = [
        new_optimizer(
            "adafactor",
            {"w": shape},
            dtype=torch.float32,
            device=device,
            seed=0,
            weight_decay=0.1,
            rounding="stochastic",
        )
        for device in (CPU, CUDA)
    ]
    weights = [randn(shape, 0).cpu(), randn(shape, 0)]
    for step in range(1, 6):
        gradient = randn(shape, step)
        for optimizer, weight in zip(optimizers, weights, strict=True):
            optimizer.update("w", weight, gradient.to(weight.device), step=step, learning_rate=0.01)
    torch.testing.assert_close(weights[1].cpu(), weights[0], rtol=1e-5, atol=1e-5)


def test_rounding_in_triton_gives_the_bits_of_the_twin() -> None:
    from workbench.training.optimizer import rounding_triton

    values = randn((100_003,), 0) * 10.0 ** (randn((100_003,), 1) * 8)
    values[:3] = torch.tensor([math.inf, -math.inf, math.nan])
    for seed in range(6):
        key = noise_key(seed, seed, f"w{seed}")  # half of the key words have their highest bit
        expected = torch.empty(values.shape, dtype=torch.bfloat16)
        round_stochastically(values.cpu(), expected, key)
        found = torch.empty_like(values, dtype=torch.bfloat16)
        rounding_triton.round_stochastically(values, found, key)
        assert found[2].isnan()
        bits = [tensor.cpu().view(torch.int16) for tensor in (found, expected)]
        assert torch.equal(bits[0][3:], bits[1][3:])
        assert torch.equal(bits[0][:2], bits[1][:2])


def companion_of(optimizer: Optimizer, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    parts = optimizer.companion(shape)
    return {name: torch.zeros(at, dtype=dtype, device=CUDA) for name, (at, dtype) in parts.items()}


def optimizer_for(
    name: OptimizerName,
    shape: tuple[int, ...],
    rounding: Rounding = "stochastic",
    device: torch.device = CUDA,
) -> Optimizer:
    if name in ("adamw_8bit", "adamw_4bit"):
        pytest.importorskip("torchao")
    return new_optimizer(
        name,
        {"w": shape},
        dtype=torch.bfloat16,
        device=device,
        seed=0,
        weight_decay=0.1,
        rounding=rounding,
    )


NAMES = ["adafactor", "adamw", "adamw_8bit", "adamw_4bit"]


@pytest.mark.parametrize("rounding", ["stochastic", "exact"])
@pytest.mark.parametrize("shape", [(512,), (96, 1024)])
@pytest.mark.parametrize("name", NAMES)
def test_what_may_not_move_keeps_every_bit_and_nothing_waits(
    name: OptimizerName, shape: tuple[int, ...], rounding: Rounding
) -> None:
    optimizer = optimizer_for(name, shape, rounding)
    companion = companion_of(optimizer, shape)
    weight = randn(shape, 0).bfloat16()
    gradient = randn(shape, 1).bfloat16()
    yes, no = torch.tensor(True, device=CUDA), torch.tensor(False, device=CUDA)
    scale = torch.tensor(0.5, device=CUDA)
    optimizer.update("w", weight, gradient, companion, step=1, learning_rate=0.01)

    def everything() -> list[torch.Tensor]:
        return [weight, *companion.values(), *optimizer.named_tensors().values()]

    before = [tensor.clone() for tensor in everything()]
    bad = []
    for odd in (math.nan, math.inf):
        bad.append(gradient.clone())
        bad[-1].view(-1)[-1] = odd
    torch.cuda.synchronize()
    with waiting_is_an_error():
        squares = [
            optimizer.update(
                "w", weight, spoilt, companion, step=2, learning_rate=0.01, scale=scale, ok=fine
            )
            for spoilt, fine in ((gradient, no), (bad[0], yes), (bad[1], yes), (bad[1], None))
        ]
    assert [bool(square.isfinite()) for square in squares] == [True, False, False, False]
    for old, new in zip(before, everything(), strict=True):
        assert torch.equal(old, new)
    optimizer.update("w", weight, gradient, companion, step=2, learning_rate=0.01, ok=yes)
    assert not torch.equal(before[0], weight)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_updates_give_the_same_bits(name: OptimizerName) -> None:
    shape = (300, 1024)
    runs = []
    for _ in range(2):
        optimizer = optimizer_for(name, shape)
        companion, weight = companion_of(optimizer, shape), randn(shape, 0).bfloat16()
        for step in range(1, 5):
            gradient = randn(shape, step).bfloat16()
            square = optimizer.update(
                "w", weight, gradient, companion, step=step, learning_rate=0.01
            )
        runs.append((weight, square, *companion.values(), *optimizer.named_tensors().values()))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adamw_4bit"])
@pytest.mark.parametrize("shape", [(100,), (40, 1024), (33, 1001)])
def test_adamw_on_the_gpu_equals_that_on_the_cpu(
    name: OptimizerName, shape: tuple[int, ...]
) -> None:
    optimizer, twin = (optimizer_for(name, shape, "exact", where) for where in (CUDA, CPU))
    companion = companion_of(optimizer, shape)
    high, low = split_exact(randn(shape, 0, 0.02))
    companion[LOW].copy_(low)
    on_cpu = {part: tensor.cpu() for part, tensor in companion.items()}
    weight, expected = high.clone(), high.cpu()
    for step in range(1, 5):
        gradient = randn(shape, step).bfloat16()
        optimizer.update("w", weight, gradient, companion, step=step, learning_rate=1e-3)
        twin.update("w", expected, gradient.cpu(), on_cpu, step=step, learning_rate=1e-3)
    # A code may round to its other side; most moments are the same.
    tolerance = {"adamw": 1e-6, "adamw_8bit": 1e-4, "adamw_4bit": 2e-3}[name]
    difference = join_exact(weight, companion[LOW]).cpu() - join_exact(expected, on_cpu[LOW])
    assert float(difference.abs().mean()) < tolerance * 0.1
    assert float(difference.abs().max()) < tolerance


STEPS = """
import sys
from pathlib import Path

import torch

from workbench.training.optimizer.choice import new_optimizer

device, shapes = torch.device(sys.argv[3]), {"matrix": (96, 160), "vector": (48,)}
rule = new_optimizer(
    sys.argv[1], shapes, dtype=torch.bfloat16, device=device, seed=0, weight_decay=1e-3,
    rounding="stochastic",
)
tensors = {
    name: (
        torch.zeros(shape, dtype=torch.bfloat16, device=device),
        torch.ones(shape, dtype=torch.bfloat16, device=device),
        {
            part: torch.zeros(size, dtype=dtype, device=device)
            for part, (size, dtype) in rule.companion(shape).items()
        },
    )
    for name, shape in shapes.items()
}
for step in range(1, 65):
    for name, (weight, gradient, companion) in tensors.items():
        rate = (1e-3, 0.0, 1.0, 16.0)[step % 4]
        rule.update(name, weight, gradient, companion, step=step, learning_rate=rate)
    if step in (1, 64):
        print(len(list(Path(sys.argv[2]).glob("*"))))
"""


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_no_step_compiles_what_the_first_has_compiled(name: OptimizerName, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", STEPS, name, str(tmp_path), "cuda:0"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    # Keys of 64 steps hold ones and multiples of 16, of which Triton makes kernels of their own.
    after_first, after_all = map(int, found.stdout.split())
    assert 0 < after_first == after_all


def test_scratch_stays_small_and_no_update_makes_the_allocator_grow() -> None:
    from workbench.training.optimizer.adafactor_triton import FusedUpdate

    for shape in [(262_144, 8192), (32_000, 4096), (4096, 14_336), (8192, 28_672), (7, 300_000)]:
        assert FusedUpdate([shape], CUDA).scratch_bytes <= 32 << 20
    shape = (2048, 4096)
    fused, statistics = FusedUpdate([shape], CUDA), new_statistics(shape, CUDA)
    weight, gradient = randn(shape, 0).bfloat16(), randn(shape, 1).bfloat16()
    for step in range(1, 4):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(
            weight, gradient, statistics, step=step, learning_rate=1e-3, weight_decay=0.0,
            noise=noise_key(0, step, "w"),
        )  # fmt: skip
        assert torch.cuda.max_memory_allocated() - before <= 1024


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_temporaries_of_the_adamw_twin_stay_within_their_bound(bits: int) -> None:
    if bits < 32:
        pytest.importorskip("torchao")
    moments = FullMoments() if bits == 32 else SmallMoments(bits, CUDA)
    shape = (4096, 4096)
    companion = {
        part: torch.zeros(at, dtype=dtype, device=CUDA)
        for part, (at, dtype) in moments.parts(shape[0] * shape[1]).items()
    }
    weight, gradient = randn(shape, 0).bfloat16(), randn(shape, 1).bfloat16()
    for step in (1, 2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        adamw.update(
            weight, gradient, companion, moments, step=step, learning_rate=1e-3,
            weight_decay=0.1, noise=noise_key(0, step, "w"),
        )  # fmt: skip
    assert torch.cuda.max_memory_allocated() - before <= adamw.TEMPORARY_BYTES


def test_offsets_beyond_two_to_the_31_reach_the_last_element() -> None:
    free, _ = torch.cuda.mem_get_info()
    rows, columns = 262_144, 8320  # 2.18e9 elements
    if free < 16 * rows * columns:
        pytest.skip("needs 35 GB of free memory")
    from workbench.training.optimizer.adafactor_triton import FusedUpdate

    shape = (rows, columns)
    fused, statistics = FusedUpdate([shape], CUDA), new_statistics(shape, CUDA)
    weight = torch.ones(shape, dtype=torch.bfloat16, device=CUDA)
    gradient = torch.ones(shape, dtype=torch.bfloat16, device=CUDA)
    square = fused(
        weight, gradient, statistics, step=1, learning_rate=0.5, weight_decay=0.0, noise=None
    )
    assert float(square) == pytest.approx(rows * columns, rel=1e-5)
    assert statistics.row is not None
    assert float(statistics.row[-1]) == pytest.approx(columns, rel=1e-5)
    assert float(weight[-1, -1]) == 0.5
    assert float(weight.min()) == float(weight.max()) == 0.5
