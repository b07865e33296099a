import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.tiny import CPU, dimensions, step_rows, tiny_engine
from workbench.data.loader import StepRows
from workbench.model import decoder
from workbench.model.families import Dimensions
from workbench.training.optimizer.adafactor import Adafactor
from workbench.training.optimizer.protocol import Optimizer

LEARNING_RATE = 3e-3
NUM_STEPS = 5


def train_by_autograd(
    dims: Dimensions, weights: dict[str, torch.Tensor], steps: list[StepRows]
) -> list[float]:
    """The slow and obvious way: full logits, whole backward, then one update per tensor."""
    optimizer = Adafactor(
        {name: tuple(tensor.shape) for name, tensor in weights.items()},
        device=CPU,
        seed=7,
        weight_decay=1e-3,
        rounding="nearest",
    )
    losses = []
    for number, rows in enumerate(steps, start=1):
        leaves = {
            name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()
        }
        total = torch.zeros(())
        for batch in rows.microbatches:
            length = batch.row_length
            context = decoder.row_context(
                torch.from_numpy(batch.document_starts), length, dims, torch.float32, "dense"
            )
            logits = decoder.forward(leaves, torch.from_numpy(batch.ids), context, dims)
            labels = torch.from_numpy(np.where(batch.targets, batch.ids, -100)).long()
            total = total + F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
        loss = total / rows.num_targets
        loss.backward()
        losses.append(loss.item())
        for name, leaf in leaves.items():
            gradient = leaf.grad
            assert gradient is not None
            optimizer.update(
                name, weights[name], gradient, step=number, learning_rate=LEARNING_RATE
            )
    return losses


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
def test_layer_major_steps_equal_autograd_over_the_whole_model(
    num_microbatches: int, tied: bool
) -> None:
    dims = dimensions(tied=tied)
    steps = [
        # Rows 2 and 3 lose all targets in one step: with 2 or 4 microbatches one is all masked.
        step_rows(
            seed,
            num_microbatches=num_microbatches,
            masked_rows=frozenset({2, 3}) if seed == 2 else frozenset(),
        )
        for seed in range(NUM_STEPS)
    ]
    counts = [batch.num_targets for batch in steps[2].microbatches]
    assert num_microbatches == 1 or (0 in counts and max(counts) > 0)
    assert len({batch.num_targets for rows in steps for batch in rows.microbatches}) > 1

    tiny = tiny_engine(dims)
    reference = tiny.weights()
    expected = train_by_autograd(dims, reference, steps)
    losses = []
    for number, rows in enumerate(steps, start=1):
        result = tiny.engine.step(rows, number, LEARNING_RATE)
        losses.append(float(result.loss_sum) / rows.num_targets)

    assert losses == pytest.approx(expected, rel=1e-6)
    moved = tiny.weights()
    for name, tensor in reference.items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


class Late:
    """In the place of an optimizer: notes its updates, and does them when it is told to."""

    def __init__(self, rule: Optimizer) -> None:
        self._rule = rule
        self._noted: list[Callable[[], torch.Tensor]] = []

    def update(
        self,
        name: str,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        companion: Mapping[str, torch.Tensor],
        **settings: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        kept = gradient.clone()
        self._noted.append(lambda: self._rule.update(name, weight, kept, companion, **settings))
        return kept.square().sum()

    def finish(self) -> int:
        for each in self._noted:
            each()
        num_updates = len(self._noted)
        self._noted.clear()
        return num_updates


@pytest.mark.parametrize("tied", [False, True])
def test_updates_at_once_equal_updates_after_the_whole_backward(tied: bool) -> None:
    dims = dimensions(tied=tied)
    at_once, afterwards = tiny_engine(dims), tiny_engine(dims)
    late = Late(afterwards.optimizer)
    afterwards.engine.optimizer = cast(Optimizer, late)
    before = at_once.weights()
    for number in range(1, NUM_STEPS + 1):
        rows = step_rows(seed=number, num_microbatches=2)
        results = [each.engine.step(rows, number, LEARNING_RATE) for each in (at_once, afterwards)]
        assert torch.equal(results[0].loss_sum, results[1].loss_sum)
        assert late.finish() == len(before), "one update per tensor and step"
    for name, weight in at_once.weights().items():
        assert torch.equal(weight, afterwards.weights()[name]), name
        assert not torch.equal(weight, before[name]), name


def test_microbatches_change_no_loss() -> None:
    losses = {}
    for num_microbatches in (1, 2, 4):
        tiny = tiny_engine(dimensions())
        losses[num_microbatches] = [
            float(
                tiny.engine.step(
                    step_rows(seed, num_microbatches=num_microbatches), seed + 1, LEARNING_RATE
                ).loss_sum
            )
            for seed in range(4)
        ]
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)
    assert losses[4] == pytest.approx(losses[1], rel=1e-6)


def test_a_step_reports_the_norm_of_every_gradient_once() -> None:
    tiny = tiny_engine(dimensions())
    before = tiny.weights()
    rows = step_rows(0)
    result = tiny.engine.step(rows, 1, LEARNING_RATE)
    assert result.names == tuple(before)
    leaves = {name: tensor.requires_grad_() for name, tensor in before.items()}
    batch = rows.microbatches[0]
    context = decoder.row_context(
        torch.from_numpy(batch.document_starts), batch.row_length, dimensions(), torch.float32
    )
    logits = decoder.forward(leaves, torch.from_numpy(batch.ids), context, dimensions())
    labels = torch.from_numpy(np.where(batch.targets, batch.ids, -100)).long()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, square in zip(result.names, result.square_norms.tolist(), strict=True):
        gradient = leaves[name].grad
        assert gradient is not None
        assert square == pytest.approx(float(gradient.square().sum()), rel=1e-4), name


def test_a_step_without_any_target_changes_nothing() -> None:
    tiny = tiny_engine(dimensions())
    before = tiny.weights()
    result = tiny.engine.step(step_rows(0, masked_rows=frozenset(range(4))), 1, LEARNING_RATE)
    assert result.num_targets == 0
    assert_same(before, tiny.weights())


def test_a_loss_that_is_not_finite_leaves_weights_and_statistics_untouched() -> None:
    tiny = tiny_engine(dimensions())
    tiny.engine.step(step_rows(0), 1, LEARNING_RATE)
    name = "model.layers.1.mlp.up_proj.weight"
    dict(tiny.store.named_tensors())[name][3, 5] = math.inf
    before, statistics = tiny.weights(), copy_of(tiny.optimizer.named_tensors())
    result = tiny.engine.step(step_rows(1), 2, LEARNING_RATE)
    assert not bool(result.ok)
    assert_same(before, tiny.weights())
    assert_same(statistics, tiny.optimizer.named_tensors())


def test_clipping_by_the_previous_norm_scales_every_gradient_alike() -> None:
    free, clipped = tiny_engine(dimensions()), tiny_engine(dimensions(), clip_norm=1e-4)
    first = [tiny.engine.step(step_rows(0), 1, LEARNING_RATE) for tiny in (free, clipped)]
    # There is no earlier norm at the first step: nothing is clipped.
    assert_same(free.weights(), clipped.weights())
    norm = float(first[0].square_norms.sum().sqrt())
    assert norm > 1e-4
    before = {name: tensor.clone() for name, tensor in clipped.optimizer.named_tensors().items()}
    for tiny in (free, clipped):
        tiny.engine.step(step_rows(1), 2, LEARNING_RATE)
    scale = 1e-4 / norm
    kept = 1 - 2**-0.8
    for name, old in before.items():
        plain, scaled = (tiny.optimizer.named_tensors()[name] for tiny in (free, clipped))
        # Statistics move by the square of the scaled gradient.
        grown, small = plain - kept * old, scaled - kept * old
        torch.testing.assert_close(small, grown * scale**2, rtol=1e-2, atol=1e-6, msg=name)


@pytest.mark.parametrize("sum_dtype", ["bfloat16", "float32"])
def test_bfloat16_steps_follow_the_fp32_losses(
    sum_dtype: Literal["bfloat16", "float32"],
) -> None:
    fp32 = tiny_engine(dimensions())
    bf16 = tiny_engine(dimensions(), dtype=torch.bfloat16, sum_dtype=sum_dtype)
    for number in range(1, 7):
        rows = step_rows(number, num_microbatches=2)
        losses = [
            float(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum) / rows.num_targets
            for tiny in (fp32, bf16)
        ]
        assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_evaluation_changes_nothing_and_equals_the_loss_of_a_step() -> None:
    tiny = tiny_engine(dimensions())
    rows = step_rows(3)
    before = tiny.weights()
    sums = tiny.engine.evaluate(rows.microbatches[0])
    assert_same(before, tiny.weights())
    assert sums.num_targets == rows.num_targets
    result = tiny.engine.step(rows, 1, LEARNING_RATE)
    assert float(sums.loss_sum) == float(result.loss_sum)


def copy_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert differing == []
