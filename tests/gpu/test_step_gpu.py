import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch

from tests.gpu.engines import CUDA, middling_engine, shared_and_lone_rows
from tests.gpu.waiting import waiting_is_an_error
from tests.training.test_family_steps import SWITCHES, engine_of, family
from tests.training.tiny import TinyEngine, dimensions, step_rows, tiny_engine
from workbench.errors import RefusedError
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.training.device import allow_deterministic_algorithms_only
from workbench.training.engine.assemble import assemble
from workbench.training.engine.plan import choose_plan, take_budget
from workbench.training.optimizer.choice import new_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEARNING_RATE = 3e-3
GIB = 1 << 30


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


@pytest.mark.parametrize("sum_dtype", ["bfloat16", "float32"])
def test_bfloat16_steps_follow_the_fp32_losses(
    sum_dtype: Literal["bfloat16", "float32"],
) -> None:
    expected = losses(tiny_engine(dimensions()))
    tiny = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16, sum_dtype=sum_dtype)
    assert losses(tiny) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("switches", SWITCHES)
def test_steps_of_every_family_are_those_on_the_cpu(switches: str) -> None:
    dims = family(switches)
    on_cpu, on_gpu = engine_of(dims), engine_of(dims, device=CUDA)
    narrow = engine_of(dims, device=CUDA, dtype=torch.bfloat16)
    expected = losses(on_cpu)
    assert losses(on_gpu) == pytest.approx(expected, rel=1e-5)
    assert losses(narrow) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("dtype", "switches"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        *((torch.bfloat16, switches) for switches in SWITCHES),
    ],
)
def test_nothing_inside_a_step_waits_for_the_device(
    dtype: torch.dtype, switches: str | None
) -> None:
    dims = dimensions() if switches is None else family(switches)
    tiny = tiny_engine(dims, device=CUDA, dtype=dtype, clip_norm=0.5)
    losses(tiny, num_steps=2)  # kernels are built and tested once
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


@pytest.mark.parametrize("attention", ["sdpa", "dense"])
def test_other_ways_to_attend_give_the_losses_of_the_kernels(attention: str) -> None:
    expected = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16)
    other = tiny_engine(dimensions(), device=CUDA, dtype=torch.bfloat16, attention=attention)
    assert losses(other) == pytest.approx(losses(expected), rel=0.02)


@pytest.fixture
def growing_segments() -> Iterator[None]:
    """Have torch's allocator grow one region, as ranks do, so that reserved is what was needed."""
    torch.cuda.empty_cache()
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    yield
    torch.cuda.empty_cache()
    torch.cuda.memory._set_allocator_settings("expandable_segments:False")


def larger(*, tied: bool = False) -> Dimensions:
    return dataclasses.replace(
        dimensions(layers=8, tied=tied),
        hidden_size=1024,
        intermediate_size=2816,
        num_heads=16,
        head_dim=64,
        num_key_value_heads=4,
        vocabulary_size=32000,
        initializer_range=0.02,
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("growing_segments")
@pytest.mark.parametrize(
    "settings",
    [
        {"microbatches": 1},
        {"microbatches": 4},
        {"microbatches": 4, "resident_fraction": 0.0, "block_inputs": "pinned"},
        {"microbatches": 2, "resident_fraction": 0.5, "recompute": "selective"},
        {"microbatches": 4, "resident_fraction": 1.0, "recompute": "none"},
        {"microbatches": 2, "recompute": "full", "family": "everything"},
        {"microbatches": 2, "recompute": "selective", "family": "everything"},
    ],
)
def test_the_reserved_peak_is_at_most_what_the_plan_predicts(settings: dict[str, Any]) -> None:
    settings = dict(settings)
    switches = SWITCHES[settings.pop("family")] if "family" in settings else {}
    dims = dataclasses.replace(larger(), **switches)
    if dims.sliding_blocks is not None:
        blocks = tuple(block % 2 == 0 for block in range(dims.num_layers))
        dims = dataclasses.replace(
            dims, sliding_window=700, sliding_blocks=blocks, turned_blocks=blocks[::-1]
        )
    rows = step_rows(1, num_rows=8, num_microbatches=settings["microbatches"], row_length=2048)
    plan = choose_plan(
        dims,
        dtype=torch.bfloat16,
        sum_dtype="auto",
        rows=8,
        row_length=2048,
        budget_bytes=24 * GIB,
        host_bytes=64 * GIB,
        **settings,
    )
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    rule = new_optimizer(
        "adafactor",
        parameter_shapes(dims),
        dtype=torch.bfloat16,
        device=CUDA,
        seed=7,
        weight_decay=0.0,
        rounding="stochastic",
    )
    engine = assemble(
        plan,
        dims,
        rule,
        microbatch_tokens=8 // plan.microbatches * 2048,
        dtype=torch.bfloat16,
        device=CUDA,
    )
    engine.store.load(random_weights(dims, 7, torch.bfloat16))
    for number in (1, 2, 3):
        result = engine.step(rows, number, LEARNING_RATE)
    assert bool(result.ok)
    measured = torch.cuda.max_memory_reserved() - before
    assert measured <= plan.predicted.reserved * 1.05, (measured, plan.predicted)
    assert measured >= plan.predicted.reserved * 0.75, (measured, plan.predicted)


def test_a_budget_that_is_too_small_ends_in_an_error_that_names_it() -> None:
    try:
        with pytest.raises(RefusedError, match=r"budget_gib: .*there are 0\.60 GiB"):
            choose_plan(
                dataclasses.replace(
                    dimensions(layers=8), hidden_size=4096, intermediate_size=11008
                ),
                dtype=torch.bfloat16,
                sum_dtype="auto",
                microbatches="auto",
                rows=4,
                row_length=4096,
                budget_bytes=take_budget(CUDA, 0.6),
            )
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_timed_step_tells_where_its_seconds_went() -> None:
    tiny = middling_engine(
        dataclasses.replace(larger(), num_layers=4), resident_blocks=0, slots=2, pinned_records=True
    )
    result = tiny.engine.step(shared_and_lone_rows(1), 10, LEARNING_RATE)
    assert result.times is not None
    torch.cuda.synchronize()
    times = result.times.read()
    assert times.step is not None
    assert times.optimizer is not None
    assert 0 < times.optimizer < times.step
    assert times.up is not None
    assert times.up > 0
    assert times.down is not None
    assert times.down > 0
