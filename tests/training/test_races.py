"""Nothing that computes or copies meets bytes that another time line is still at work with."""

from typing import Any

import pytest
import torch

from tests.training.tiny import dimensions, step_rows, tiny_engine
from tests.training.watched_lanes import WatchedLanes

LAYERS = 4
ELSEWHERE = {"resident_blocks": 0, "vocabulary_resident": False, "pinned_records": True}
PLACES: dict[str, dict[str, Any]] = {
    "all blocks streamed": {"resident_blocks": 0},
    "two of four resident, two slots": {"resident_blocks": 2, "slots": 2},
    "records pinned": {"pinned_records": True},
    "all elsewhere": ELSEWHERE | {"recompute": ("full", "none", "selective", "none")},
}


def races_of(*, layers: int = LAYERS, num_microbatches: int = 1, **changes: Any) -> list[str]:  # noqa: ANN401
    """Take three steps, with one that is skipped, an evaluation and a settling among them."""
    lanes = WatchedLanes()
    with lanes.watch():
        tiny = tiny_engine(dimensions(layers=layers), lanes=lanes, **changes)
        for number in range(1, 4):
            rows = step_rows(number, num_rows=2, num_microbatches=num_microbatches)
            tiny.engine.step(rows, number, 1e-3)
            if number == 1:
                masked = step_rows(
                    0,
                    num_rows=2,
                    num_microbatches=num_microbatches,
                    masked_rows=frozenset(range(2)),
                )
                tiny.engine.step(masked, 2, 1e-3)
                tiny.engine.evaluate(*masked.microbatches)
            if number == 2:
                tiny.store.settle()
    assert lanes.num_copies > 0
    return lanes.races


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_no_copy_meets_what_is_still_at_work(place: str, num_microbatches: int) -> None:
    assert races_of(num_microbatches=num_microbatches, **PLACES[place]) == []


@pytest.mark.parametrize("layers", [1, 2])
def test_blocks_that_stay_in_their_slots_are_not_changed_while_they_are_written_back(
    layers: int,
) -> None:
    assert races_of(layers=layers, **ELSEWHERE) == []


@pytest.mark.parametrize(
    "settings", [{"rounding": "exact", "dtype": torch.bfloat16}, {"optimizer": "adamw"}], ids=str
)
def test_no_copy_of_what_travels_beside_weights_meets_it_either(settings: dict[str, Any]) -> None:
    assert races_of(**settings, **ELSEWHERE) == []
