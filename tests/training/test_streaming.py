"""Where weights and records live, and how much is recomputed, changes no value."""

from typing import Any

import pytest
import torch

from tests.training.late_lanes import LateLanes
from tests.training.test_step import assert_same, copy_of
from tests.training.tiny import TinyEngine, dimensions, step_rows, tiny_engine

LEARNING_RATE = 3e-3
LAYERS = 5

PLACES: dict[str, dict[str, Any]] = {
    "all streamed, three slots": {"resident_blocks": 0},
    "all streamed, two slots": {"resident_blocks": 0, "slots": 2},
    "two of five resident": {"resident_blocks": 2},
    "vocabulary streamed": {"vocabulary_resident": False},
    "everything streamed": {"resident_blocks": 0, "slots": 2, "vocabulary_resident": False},
    "records pinned": {"pinned_records": True},
    "all elsewhere": {
        "resident_blocks": 0,
        "slots": 2,
        "vocabulary_resident": False,
        "pinned_records": True,
    },
}
RECOMPUTE = {
    "selective": ("selective",) * LAYERS,
    "none": ("none",) * LAYERS,
    "of every kind": ("full", "none", "selective", "full", "none"),
}


def train(tiny: TinyEngine, *, num_steps: int = 6, num_microbatches: int = 2) -> list[float]:
    """Losses; after step 3 an evaluation and a settling, as a save has it, come between."""
    losses = []
    for number in range(1, num_steps + 1):
        rows = step_rows(number, num_microbatches=num_microbatches)
        losses.append(float(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum))
        if number == 3:
            tiny.engine.evaluate(rows.microbatches[0])
            tiny.store.settle()
    return losses


def state(tiny: TinyEngine) -> dict[str, torch.Tensor]:
    return tiny.weights() | copy_of(tiny.optimizer.named_tensors()) | copy_of(
        dict(tiny.store.named_companions())
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("place", PLACES)
def test_where_weights_and_records_live_changes_no_bit(
    place: str, num_microbatches: int, tied: bool
) -> None:
    dims = dimensions(tied=tied, layers=LAYERS)
    at_home, lanes = tiny_engine(dims), LateLanes()
    elsewhere = tiny_engine(dims, lanes=lanes, **PLACES[place])
    losses = [train(tiny, num_microbatches=num_microbatches) for tiny in (at_home, elsewhere)]
    assert losses[0] == losses[1]
    assert_same(state(at_home), state(elsewhere))
    assert lanes.num_late > 0


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("levels", RECOMPUTE)
def test_how_much_is_recomputed_changes_no_bit(levels: str, pinned: bool) -> None:
    dims = dimensions(layers=LAYERS)
    full = tiny_engine(dims)
    kept = tiny_engine(dims, recompute=RECOMPUTE[levels], pinned_records=pinned, lanes=LateLanes())
    assert train(full) == train(kept)
    assert_same(state(full), state(kept))


@pytest.mark.parametrize("tile_rows", [1, 7, 24])
def test_tiles_of_the_mlp_change_losses_by_rounding_alone(tile_rows: int) -> None:
    whole, tiled = tiny_engine(dimensions()), tiny_engine(dimensions(), tile_rows=tile_rows)
    assert train(tiled) == pytest.approx(train(whole), rel=1e-6)


@pytest.mark.parametrize("head_rows", [1, 5, 17])
def test_chunks_of_the_head_change_losses_by_rounding_alone(head_rows: int) -> None:
    whole, chunked = tiny_engine(dimensions()), tiny_engine(dimensions(), head_rows=head_rows)
    assert train(chunked) == pytest.approx(train(whole), rel=1e-6)


@pytest.mark.parametrize("companions_resident", [False, True])
def test_exact_weights_equal_fp32_weights_that_forward_sees_rounded(
    companions_resident: bool,
) -> None:
    """Low halves travel with their blocks; where they live changes no bit either."""
    dims, lanes = dimensions(layers=LAYERS), LateLanes()
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "rounding": "exact"}
    at_home = tiny_engine(dims, companions_resident=True, **settings)
    elsewhere = tiny_engine(
        dims,
        lanes=lanes,
        companions_resident=companions_resident,
        **settings,
        **PLACES["all elsewhere"],
    )
    assert train(at_home) == train(elsewhere)
    assert_same(state(at_home), state(elsewhere))
    low = [tensor for name, tensor in at_home.store.named_companions() if name.endswith(":low")]
    assert len(low) == len(at_home.weights())
    assert all(tensor.any() for tensor in low)


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("place", ["all elsewhere", "records pinned", "vocabulary streamed"])
def test_a_step_that_is_skipped_leaves_no_trace(place: str, num_microbatches: int) -> None:
    """Not in the weights, and not in the buffers: records were on their way back at that time."""
    tiny = tiny_engine(dimensions(), lanes=LateLanes(), **PLACES[place])
    other = tiny_engine(dimensions())
    for each in (tiny, other):
        train(each, num_steps=2)
    masked = step_rows(0, masked_rows=frozenset(range(4)), num_microbatches=num_microbatches)
    assert tiny.engine.step(masked, 3, LEARNING_RATE).num_targets == 0
    for number in (3, 4):
        rows = step_rows(number, num_microbatches=num_microbatches)
        for each in (tiny, other):
            each.engine.step(rows, number, LEARNING_RATE)
    assert_same(state(tiny), state(other))


def test_rows_of_unequal_length_pass_the_same_buffers() -> None:
    short, long = (step_rows(3, row_length=length) for length in (18, 24))
    at_home = tiny_engine(dimensions())
    elsewhere = tiny_engine(
        dimensions(), lanes=LateLanes(), recompute=("none",) * 3, **PLACES["all elsewhere"]
    )
    for number, rows in enumerate((long, short, long, short), start=1):
        losses = [
            float(tiny.engine.step(rows, number, LEARNING_RATE).loss_sum)
            for tiny in (at_home, elsewhere)
        ]
        assert losses[0] == losses[1]


def test_a_block_goes_up_once_where_the_sweep_turns() -> None:
    lanes = LateLanes()
    tiny = tiny_engine(dimensions(layers=8), lanes=lanes, resident_blocks=0, slots=3)
    rows = step_rows(1)
    tiny.engine.step(rows, 1, LEARNING_RATE)
    before = lanes.num_copies
    tiny.engine.step(rows, 2, LEARNING_RATE)
    # Two sweeps of eight blocks up, less the three at each turn, and eight down.
    assert lanes.num_copies - before == 2 * (8 - 3) + 8
