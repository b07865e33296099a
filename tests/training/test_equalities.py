"""What must be equal: our steps and those of others, and steps over the same tokens cut otherwise.

Rows of documents at the borders too: one token, as long as a window and one longer, all of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.tiny import WINDOW, dimensions_of, reference_model
from tests.training.late_lanes import LateLanes
from tests.training.test_step import assert_same, train_by_autograd
from tests.training.test_streaming import PLACES, state
from tests.training.tiny import (
    CPU,
    LENGTH,
    VOCABULARY,
    TinyEngine,
    dimensions,
    rows_of,
    step_rows,
    tiny_engine,
)
from workbench.data.batch import Batch
from workbench.data.loader import Loader, StepRows, make_batch
from workbench.data.packing import Row
from workbench.training.evaluate import evaluate_batches, total
from workbench.training.optimizer.adafactor import Adafactor
from workbench.training.optimizer.protocol import NO_COMPANION, CompanionParts, Optimizer

LEARNING_RATE = 3e-3
NUM_STEPS = 20


def row_of(seed: int, lengths: Sequence[int], *, has_targets: Sequence[bool] | None = None) -> Row:
    """A row of documents of these lengths; all but first tokens are targets."""
    generator = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    targets = np.repeat(has_targets or [True] * len(lengths), lengths)
    targets[starts] = False
    ids = generator.integers(0, VOCABULARY, size=sum(lengths)).astype(np.int32)
    return Row(ids=ids, targets=targets, document_starts=starts)


def batch_of(rows: Sequence[Row]) -> Batch:
    return make_batch(
        list(rows), num_rows=len(rows), row_length=LENGTH, max_documents=LENGTH, pad_id=0
    )


def step_of(*batches: Batch) -> StepRows:
    return StepRows(
        batches,
        num_targets=sum(batch.num_targets for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        epoch=0.0,
    )


def losses_of(tiny: TinyEngine, steps: Sequence[StepRows]) -> list[float]:
    return [
        float(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum) / rows.num_targets
        for number, rows in enumerate(steps, start=1)
    ]


# Not of dynamic positions: transformers takes a row and its padding for the document.
@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "llama, tied",
        "llama, biases",
        "llama, yarn",
        "mistral, window",
        "ministral, mixed",
        "qwen2",
        "qwen2, last blocks slide",
        "qwen3, tied, biases",
        "qwen3, mixed and llama3",
        "seed_oss, all biases",
    ],
)
def test_twenty_steps_equal_those_of_transformers_by_autograd(kind: str) -> None:
    """One update per tensor after the whole backward there, one per block on the way here."""
    model = reference_model(kind)
    dims = dimensions_of(model)
    assert dims.sliding_window in (None, WINDOW)
    assert LENGTH > WINDOW + 1
    steps = []
    for seed in range(NUM_STEPS):
        alone = [row_of(10 * seed + row, [length]) for row, length in enumerate((24, 24, 17, 5))]
        steps.append(step_of(batch_of(alone[:2]), batch_of(alone[2:])))
    tiny = tiny_engine(dims, rounding="nearest")
    tiny.store.load(dict(model.named_parameters()))
    weights = dict(model.named_parameters())
    rule = Adafactor(
        {name: tuple(tensor.shape) for name, tensor in weights.items()},
        device=CPU,
        seed=7,
        weight_decay=1e-3,
        rounding="nearest",
    )
    expected = []
    for number, rows in enumerate(steps, start=1):
        model.zero_grad()
        total = torch.zeros(())
        for batch in rows.microbatches:
            logits = model(torch.from_numpy(batch.ids).long()).logits
            labels = torch.from_numpy(np.where(batch.targets, batch.ids, -100)).long()
            total = total + F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
        loss = total / rows.num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        expected.append(loss.item())
        for name, weight in weights.items():
            assert weight.grad is not None
            rule.update(name, weight.data, weight.grad, step=number, learning_rate=LEARNING_RATE)
    assert losses_of(tiny, steps) == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 5},
        {"num_layers": 1},
        {"num_heads": 3, "num_key_value_heads": 1, "head_dim": 80},
        {"num_heads": 2, "num_key_value_heads": 2, "head_dim": 96},
        {"num_heads": 2, "num_key_value_heads": 1, "head_dim": 256},
    ],
    ids=str,
)
def test_steps_at_the_borders_of_shapes_equal_autograd(changes: dict[str, Any]) -> None:
    dims = replace(dimensions(), **changes)
    lengths = [[1, 1, 22], [5, 6, 7, 6], [24], [23, 1], [4, 20], [1] * 24, [12], [10, 3]]
    steps = [
        step_of(
            *(
                batch_of([row_of(seed + index, lengths[index]) for index in part])
                for part in ((0, 1), (2, 3), (4, 5), (6, 7))
            )
        )
        for seed in (10, 20, 30)
    ]
    tiny = tiny_engine(dims, rounding="nearest")
    reference = tiny.weights()
    expected = train_by_autograd(dims, reference, steps)
    assert losses_of(tiny, steps) == pytest.approx(expected, rel=2e-6)


def test_how_many_microbatches_share_a_step_changes_losses_by_rounding_alone() -> None:
    losses = {}
    for number in (1, 4, 8):
        steps = [
            step_rows(
                seed,
                num_rows=8,
                num_microbatches=number,
                masked_rows=frozenset({2, 3}) if seed % 3 == 0 else frozenset(),
            )
            for seed in range(NUM_STEPS)
        ]
        counts = {batch.num_targets for batch in steps[0].microbatches}
        assert number == 1 or (0 in counts and len(counts) > 2)
        tiny = tiny_engine(
            dimensions(), microbatch_tokens=8 // number * LENGTH, microbatches=number
        )
        losses[number] = losses_of(tiny, steps)
    assert losses[4] == pytest.approx(losses[1], rel=1e-6)
    assert losses[8] == pytest.approx(losses[1], rel=1e-6)


@dataclass
class LateUpdates:
    """An optimizer that keeps what it is asked for, and does it when the step is over."""

    rule: Optimizer
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def companion(self, shape: tuple[int, ...]) -> CompanionParts:
        return self.rule.companion(shape)

    def update(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        companion: Mapping[str, Tensor] = NO_COMPANION,
        **rest: Any,  # noqa: ANN401
    ) -> Tensor:
        self.asked.append(((name, weight, gradient.clone(), companion), rest))
        return gradient.float().square().sum()

    def named_tensors(self) -> dict[str, Tensor]:
        return self.rule.named_tensors()

    def catch_up(self) -> None:
        for given, rest in self.asked:
            self.rule.update(*given, **rest)
        self.asked.clear()


@pytest.mark.parametrize("tied", [False, True])
def test_an_update_after_each_block_equals_all_updates_after_the_backward(tied: bool) -> None:
    dims = dimensions(tied=tied)
    early, late = tiny_engine(dims), tiny_engine(dims)
    deferred = late.engine.optimizer = LateUpdates(late.optimizer)
    for number in range(1, NUM_STEPS + 1):
        rows = step_rows(number, num_microbatches=2)
        losses = [
            float(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum) for tiny in (early, late)
        ]
        assert losses[0] == losses[1]
        names = [given[0] for given, _ in deferred.asked]
        assert sorted(names) == sorted(early.weights())  # each once, a tied one too
        deferred.catch_up()
    assert_same(state(early), state(late))


@pytest.mark.parametrize("place", ["two of five resident", "all elsewhere"])
def test_evaluations_before_between_and_after_steps_change_no_bit(place: str) -> None:
    dims = dimensions(layers=5)
    quiet, watched = (tiny_engine(dims, lanes=LateLanes(), **PLACES[place]) for _ in range(2))
    at_home = tiny_engine(dims)
    held_out = step_rows(99).microbatches[0]

    def evaluate(tiny: TinyEngine) -> tuple[float, int]:
        sums = tiny.engine.evaluate(held_out)
        return float(sums.loss_sum), int(sums.num_correct)

    for number in range(1, 7):
        assert evaluate(watched) == evaluate(at_home)
        rows = step_rows(number, num_microbatches=2)
        for tiny in (quiet, watched, at_home):
            tiny.engine.step(rows, number, LEARNING_RATE)
    evaluate(watched)
    assert_same(state(quiet), state(watched))


@pytest.mark.parametrize("num_microbatches", [2, 3])
def test_what_is_evaluated_together_travels_once_and_is_the_same(num_microbatches: int) -> None:
    """Batches of more microbatches than training has are cut; loss and accuracy stay."""
    lanes = LateLanes()
    tiny = tiny_engine(dimensions(layers=5), lanes=lanes, microbatches=2, **PLACES["all elsewhere"])
    loader = Loader(
        rows_of(2, 11), rows_per_step=6, num_microbatches=num_microbatches, shuffle=False, seed=3,
        pad_id=0, row_length=None,
    )  # fmt: skip
    apart = [
        tiny.engine.evaluate(batch)
        for index in range(loader.steps_per_epoch)
        for batch in loader.step(index).microbatches
    ]
    before = lanes.num_copies
    together = list(evaluate_batches(tiny.engine, loader, None))
    sweeps = loader.steps_per_epoch * -(-num_microbatches // 2)
    assert len(together) == sweeps
    # Five blocks through two slots, embedding and head through one.
    assert lanes.num_copies - before == sweeps * (5 + 2)
    assert total(together) == total(apart)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_blocks_than_slots_change_no_bit(layers: int, place: str) -> None:
    dims = dimensions(layers=layers)
    changes = PLACES[place] | ({"resident_blocks": 0} if "resident_blocks" in PLACES[place] else {})
    at_home, elsewhere = tiny_engine(dims), tiny_engine(dims, lanes=LateLanes(), **changes)
    steps = [step_rows(seed) for seed in range(5)]
    assert losses_of(at_home, steps) == losses_of(elsewhere, steps)
    assert_same(state(at_home), state(elsewhere))


@pytest.mark.parametrize("window", [None, 5])
def test_a_packed_document_has_the_loss_that_it_has_alone(window: int | None) -> None:
    tiny = tiny_engine(replace(dimensions(), sliding_window=window))
    lengths = [1, 5, 6, 9, 2]
    packed = row_of(3, lengths)
    alone = []
    for begin, length in zip(packed.document_starts, lengths, strict=True):
        tokens = slice(begin, begin + length)
        start = np.zeros(1, dtype=np.int32)
        alone.append(Row(packed.ids[tokens], packed.targets[tokens], start))
    together = float(tiny.engine.evaluate(batch_of([packed])).loss_sum)
    apart = [float(tiny.engine.evaluate(batch_of([row])).loss_sum) for row in alone]
    assert apart[0] == 0
    assert min(apart[1:]) > 1
    assert together == pytest.approx(sum(apart), rel=1e-6)


@pytest.mark.parametrize("window", [None, 5])
def test_a_document_without_targets_leaves_no_trace_in_its_neighbours_or_the_weights(
    window: int | None,
) -> None:
    """Its text may be any: other documents' losses, and what a step makes of them, stay."""
    dims = replace(dimensions(), sliding_window=window)
    row = row_of(5, [7, 9, 8], has_targets=[True, False, True])
    ids = row.ids.copy()
    ids[7:16] = (ids[7:16] + 1 + np.arange(9)) % VOCABULARY
    other = row_of(6, [24])
    results = []
    for first in (row, Row(ids, row.targets, row.document_starts)):
        tiny = tiny_engine(dims)
        losses = losses_of(tiny, [step_of(batch_of([first, other]))] * 3)
        results.append((losses, state(tiny)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])
