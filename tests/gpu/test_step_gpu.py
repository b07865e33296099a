import dataclasses
import math

import pytest
import torch

from tests.gpu.waiting import waiting_is_an_error
from tests.training.tiny import TinyEngine, dimensions, step_rows, tiny_engine
from workbench.errors import RefusedError
from workbench.training.device import allow_deterministic_algorithms_only
from workbench.training.engine.plan import choose_plan, take_budget
from workbench.training.optimizer.adafactor import new_statistics, update
from workbench.training.optimizer.rounding import noise, noise_key, round_stochastically

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LEARNING_RATE = 3e-3


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


def losses(tiny: TinyEngine, num_steps: int = 6, num_microbatches: int = 2) -> list[float]:
    found = []
    for number in range(1, num_steps + 1):
        rows = step_rows(number, num_microbatches=num_microbatches)
        result = tiny.engine.step(rows, number, LEARNING_RATE)
        found.append(float(result.loss_sum) / rows.num_targets)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_fp32_steps_equal_those_on_the_cpu(num_microbatches: int, tied: bool) -> None:
    on_cpu = tiny_engine(dimensions(tied=tied))
    on_gpu = tiny_engine(dimensions(tied=tied), device=CUDA)
    expected = losses(on_cpu, num_microbatches=num_microbatches)
    assert losses(on_gpu, num_microbatches=num_microbatches) == pytest.approx(expected, rel=1e-5)
    for name, tensor in on_gpu.weights().items():
        torch.testing.assert_close(
            tensor.cpu(), on_cpu.weights()[name], rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("sum_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_steps_follow_the_fp32_losses(sum_dtype: torch.dtype) -> None:
    expected = losses(tiny_engine(dimensions()))
    tiny = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16, sum_dtype=sum_dtype)
    assert losses(tiny) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_inside_a_step_waits_for_the_device(dtype: torch.dtype) -> None:
    tiny = tiny_engine(dimensions(), device=CUDA, dtype=dtype, clip_norm=0.5)
    losses(tiny, num_steps=2)  # attention tests its kernel once
    rows = step_rows(9, num_microbatches=2)
    with waiting_is_an_error():
        result = tiny.engine.step(rows, 3, LEARNING_RATE)
        sums = tiny.engine.evaluate(rows.microbatches[0])
    assert math.isfinite(float(result.loss_sum))
    assert math.isfinite(float(sums.loss_sum))


def test_a_loss_that_is_not_finite_changes_nothing_without_being_looked_at() -> None:
    tiny = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16)
    losses(tiny, num_steps=2)
    dict(tiny.store.named_tensors())["model.layers.1.mlp.up_proj.weight"][3, 5] = math.inf
    before = tiny.weights()
    statistics = {name: kept.clone() for name, kept in tiny.optimizer.named_tensors().items()}
    with waiting_is_an_error():
        result = tiny.engine.step(step_rows(8), 3, LEARNING_RATE)
    assert not bool(result.ok)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.weights().items())
    now = tiny.optimizer.named_tensors()
    assert all(torch.equal(now[name], tensor) for name, tensor in statistics.items())


def test_random_bits_and_rounding_are_those_of_the_cpu() -> None:
    key = noise_key(5, 77, "model.embed_tokens.weight")
    assert torch.equal(noise(key, 10, 5000, CPU), noise(key, 10, 5000, CUDA).cpu())
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[:3] = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = [torch.empty(100_000, dtype=torch.bfloat16, device=where) for where in (CPU, CUDA)]
    round_stochastically(values, rounded[0], key)
    round_stochastically(values.cuda(), rounded[1], key)
    assert rounded[1][2].isnan()
    bits = [found.cpu().view(torch.int16)[torch.arange(100_000) != 2] for found in rounded]
    assert torch.equal(*bits)


@pytest.mark.parametrize("shape", [(300,), (200, 333)])
def test_updates_equal_those_on_the_cpu(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    on_gpu = weight.cuda()
    kept = [new_statistics(shape, where) for where in (CPU, CUDA)]
    for step in range(1, 6):
        gradient = torch.randn(shape, generator=generator)
        for target, statistics in ((weight, kept[0]), (on_gpu, kept[1])):
            update(
                target, gradient.to(target.device), statistics, step=step, learning_rate=0.01,
                weight_decay=0.1, noise=None,
            )  # fmt: skip
    torch.testing.assert_close(on_gpu.cpu(), weight, rtol=1e-5, atol=1e-5)


def test_the_same_steps_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    allow_deterministic_algorithms_only()
    try:
        runs = []
        for _ in range(2):
            tiny = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16)
            runs.append((losses(tiny), tiny.weights()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], tensor) for name, tensor in runs[1][1].items())


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_the_peak_is_what_the_plan_predicts(num_microbatches: int) -> None:
    dims = dataclasses.replace(
        dimensions(layers=8),
        hidden_size=1024,
        intermediate_size=2816,
        num_heads=16,
        head_dim=64,
        num_key_value_heads=4,
        vocabulary_size=32000,
        initializer_range=0.02,
    )
    rows = step_rows(1, num_rows=8, num_microbatches=num_microbatches, row_length=2048)
    plan = choose_plan(
        dims,
        dtype=torch.bfloat16,
        sum_dtype="auto",
        microbatches=num_microbatches,
        rows=8,
        row_length=2048,
        budget_bytes=None,
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tiny = tiny_engine(dims, device=CUDA, dtype=torch.bfloat16, sum_dtype=torch.bfloat16)
    for number in (1, 2):
        tiny.engine.step(rows, number, LEARNING_RATE)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured <= plan.predicted.peak * 1.05, (measured, plan.predicted)
    assert measured >= plan.predicted.peak * 0.90, (measured, plan.predicted)


def test_a_budget_that_is_too_small_ends_in_an_error_that_names_it() -> None:
    with pytest.raises(RefusedError, match=r"the budget is 0\.6 GiB"):
        choose_plan(
            dataclasses.replace(dimensions(layers=8), hidden_size=4096, intermediate_size=11008),
            dtype=torch.bfloat16,
            sum_dtype="auto",
            microbatches="auto",
            rows=4,
            row_length=4096,
            budget_bytes=take_budget(CUDA, 0.6),
        )
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
