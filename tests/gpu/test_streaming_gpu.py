"""On a GPU too, where weights and records live changes no bit, and no step waits for the device.

Copies run beside computing here, so a missing wait between them shows as other losses.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.engines import middling, middling_engine, shared_and_lone_rows
from tests.gpu.waiting import waiting_is_an_error
from tests.training.test_family_steps import SWITCHES
from tests.training.test_step import assert_same
from tests.training.test_streaming import PLACES, RECOMPUTE, state
from tests.training.tiny import TinyEngine
from workbench.training.device import allow_deterministic_algorithms_only

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LEARNING_RATE = 1e-3
NUM_STEPS = 10
EVERYWHERE: dict[str, dict[str, Any]] = {
    **PLACES,
    "selective, pinned": {"recompute": RECOMPUTE["selective"], "pinned_records": True},
    "nothing recomputed, all elsewhere": {
        "recompute": RECOMPUTE["none"],
        **PLACES["all elsewhere"],
    },
}


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    allow_deterministic_algorithms_only()
    yield
    torch.use_deterministic_algorithms(False)


def train(
    tiny: TinyEngine, *, num_steps: int = NUM_STEPS, num_microbatches: int = 2
) -> list[float]:
    """Losses, read at the end so that steps follow each other as closely as they can.

    After step 4 an evaluation and a settling, as a save has it, come between.
    """
    sums = []
    for number in range(1, num_steps + 1):
        rows = shared_and_lone_rows(number, num_microbatches=num_microbatches)
        sums.append(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum)
        if number == 4:
            tiny.engine.evaluate(rows.microbatches[0])
            tiny.store.settle()
    losses = torch.stack(sums).tolist()
    assert all(math.isfinite(loss) for loss in losses)
    assert len(set(losses)) == num_steps
    return losses


@pytest.fixture(scope="module")
def at_home() -> Iterator[dict[bool, tuple[list[float], dict[str, torch.Tensor]]]]:
    """Losses and the state of engines that keep all on the device, tied or not."""
    allow_deterministic_algorithms_only()
    found = {}
    for tied in (False, True):
        tiny = middling_engine(middling(tied=tied))
        found[tied] = train(tiny), {name: tensor.cpu() for name, tensor in state(tiny).items()}
    torch.use_deterministic_algorithms(False)
    yield found
    found.clear()


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("place", EVERYWHERE)
def test_where_weights_and_records_live_changes_no_bit(
    place: str, tied: bool, at_home: dict[bool, tuple[list[float], dict[str, torch.Tensor]]]
) -> None:
    losses, expected = at_home[tied]
    elsewhere = middling_engine(middling(tied=tied), **EVERYWHERE[place])
    assert train(elsewhere) == losses
    assert_same(expected, {name: tensor.cpu() for name, tensor in state(elsewhere).items()})


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("place", ["all elsewhere", "nothing recomputed, all elsewhere"])
@pytest.mark.parametrize("switches", ["qwen2", "qwen3", "everything"])
def test_where_weights_and_records_of_other_families_live_changes_no_bit(
    switches: str, place: str
) -> None:
    dims = replace(middling(), **SWITCHES[switches])
    at_home, elsewhere = middling_engine(dims), middling_engine(dims, **EVERYWHERE[place])
    assert train(at_home) == train(elsewhere)
    assert_same(state(at_home), state(elsewhere))


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("levels", RECOMPUTE)
def test_how_much_is_recomputed_changes_no_bit(
    levels: str, at_home: dict[bool, tuple[list[float], dict[str, torch.Tensor]]]
) -> None:
    losses, expected = at_home[False]
    kept = middling_engine(middling(), recompute=RECOMPUTE[levels])
    assert train(kept) == losses
    assert_same(expected, {name: tensor.cpu() for name, tensor in state(kept).items()})


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize(
    "settings", [{"rounding": "exact"}, {"optimizer": "adamw"}, {"optimizer": "adamw_8bit"}]
)
def test_what_travels_with_the_weights_changes_no_bit_either(settings: dict[str, Any]) -> None:
    if settings.get("optimizer") == "adamw_8bit":
        pytest.importorskip("torchao")
    dims = middling()
    at_home = middling_engine(dims, companions_resident=True, **settings)
    elsewhere = middling_engine(dims, **PLACES["all elsewhere"], **settings)
    assert train(at_home, num_steps=6) == train(elsewhere, num_steps=6)
    assert_same(
        {name: tensor.cpu() for name, tensor in state(at_home).items()},
        {name: tensor.cpu() for name, tensor in state(elsewhere).items()},
    )


@pytest.mark.parametrize("place", ["records pinned", "all elsewhere"])
def test_without_the_deterministic_mode_losses_differ_by_rounding_alone(place: str) -> None:
    at_home, elsewhere = (
        middling_engine(middling(), recompute=RECOMPUTE["of every kind"], **changes)
        for changes in ({}, PLACES[place])
    )
    assert train(elsewhere) == pytest.approx(train(at_home), rel=5e-3)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("levels", ["selective", "of every kind"])
@pytest.mark.parametrize("place", ["records pinned", "two of five resident", "all elsewhere"])
def test_nothing_inside_a_streamed_step_waits_for_the_device(
    place: str, levels: str, deterministic: bool
) -> None:
    if deterministic:
        allow_deterministic_algorithms_only()
    try:
        tiny = middling_engine(
            middling(), recompute=RECOMPUTE[levels], clip_norm=0.5, **PLACES[place]
        )
        train(tiny, num_steps=2)  # kernels are built and tested once
        rows = shared_and_lone_rows(9)
        with waiting_is_an_error():
            result = tiny.engine.step(rows, 3, LEARNING_RATE)
            sums = tiny.engine.evaluate(rows.microbatches[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert math.isfinite(float(result.loss_sum))
    assert math.isfinite(float(sums.loss_sum))


def test_a_loss_that_is_not_finite_changes_no_streamed_weight() -> None:
    tiny = middling_engine(middling(), **PLACES["all elsewhere"])
    train(tiny, num_steps=2)
    tiny.store.settle()
    dict(tiny.store.named_tensors())["model.layers.1.mlp.up_proj.weight"][3, 5] = math.inf
    before = {name: tensor.cpu() for name, tensor in state(tiny).items()}
    with waiting_is_an_error():
        result = tiny.engine.step(shared_and_lone_rows(8), 3, LEARNING_RATE)
    assert not bool(result.ok)
    assert_same(before, {name: tensor.cpu() for name, tensor in state(tiny).items()})


@pytest.mark.usefixtures("repeatable")
def test_a_step_without_targets_leaves_no_trace_in_the_buffers_of_records() -> None:
    """Records are on their way back when it is known that nobody needs them."""
    losses = []
    for changes in ({}, PLACES["records pinned"]):
        tiny = middling_engine(middling(), **changes)
        rows = shared_and_lone_rows(1)
        masked = tuple(
            replace(batch, targets=np.zeros_like(batch.targets)) for batch in rows.microbatches
        )
        tiny.engine.step(replace(rows, microbatches=masked, num_targets=0), 1, LEARNING_RATE)
        losses.append(train(tiny, num_steps=3))
    assert losses[0] == losses[1]
