"""What schedules need and keep alive, against the orders that torch makes of them."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from workbench.config.schedule_facts import (
    ScheduleName,
    alive_passes,
    broken_rules,
    efficiency,
    stages_per_rank,
)

CLASSES = {
    "interleaved_1f1b": "ScheduleInterleaved1F1B",
    "interleaved_zero_bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
}


def order_of(schedule: str, ranks: int, rank: int, stages: int, microbatches: int) -> list[Any]:
    """Give the actions of a rank as torch orders them, without processes."""
    from torch.distributed.pipelining import schedules

    kind = getattr(schedules, CLASSES[schedule])
    rounds = max(1, microbatches // ranks)
    bare = SimpleNamespace(
        pp_group_size=ranks,
        n_local_stages=stages,
        num_stages=ranks * stages,
        _n_microbatches=microbatches,
        number_of_rounds=rounds,
        microbatches_per_round=microbatches // rounds,
    )
    actions = kind._calculate_single_rank_operations(bare, rank)
    return [action for action in actions if action is not None]


def most_alive(actions: list[Any]) -> int:
    """Walk an order: a forward adds a pass, its (weight) backward takes it away."""
    alive: set[tuple[int, int]] = set()
    most = 0
    for action in actions:
        name, at = action.computation_type.name, (action.stage_index, action.microbatch_index)
        if name == "FORWARD":
            alive.add(at)
            most = max(most, len(alive))
        elif name in ("BACKWARD_WEIGHT", "FULL_BACKWARD"):
            alive.remove(at)
    assert not alive
    return most


SETTINGS = [(2, 2, 4), (2, 2, 8), (2, 2, 16), (4, 2, 4), (4, 2, 8), (4, 2, 16), (6, 2, 12)]
"""Ranks, stages per rank, microbatches."""


@pytest.mark.parametrize(
    ("schedule", "ranks", "stages", "microbatches"),
    [(name, *setting) for name in CLASSES for setting in SETTINGS]
    + [(name, 4, 3, 8) for name in CLASSES if name != "zbv"],  # zbv has two stages per rank
)
def test_passes_alive_are_those_of_the_order(
    schedule: ScheduleName, ranks: int, stages: int, microbatches: int
) -> None:
    for rank in range(ranks):
        walked = most_alive(order_of(schedule, ranks, rank, stages, microbatches))
        counted = alive_passes(
            schedule, ranks=ranks, rank=rank, stages=stages, microbatches=microbatches
        )
        assert walked <= counted, (rank, walked, counted)
        # A V needs 2 p - 1 microbatches to fill; with fewer it keeps less than it could.
        if schedule != "zbv" or microbatches >= 2 * ranks - 1:
            assert counted <= walked + 1, (rank, walked, counted)


def test_the_simple_orders_keep_what_their_papers_say() -> None:
    def alive(schedule: ScheduleName) -> list[int]:
        return [
            alive_passes(schedule, ranks=4, rank=rank, stages=1, microbatches=8)
            for rank in range(4)
        ]

    assert alive("gpipe") == [8, 8, 8, 8]
    assert alive("1f1b") == alive("auto") == [4, 3, 2, 1]
    assert alive("link_aware") == [7, 5, 3, 1]


@pytest.mark.parametrize(
    ("schedule", "ranks", "microbatches", "simulated"),
    [
        ("1f1b", 2, 16, 0.941),
        ("1f1b", 2, 4, 0.800),
        ("gpipe", 4, 16, 0.842),
        ("interleaved_1f1b", 2, 16, 0.970),
        ("interleaved_1f1b", 2, 4, 0.889),
        ("interleaved_1f1b", 4, 16, 0.914),
        ("interleaved_zero_bubble", 4, 16, 0.955),
        ("zbv", 2, 16, 0.985),
        ("zbv", 2, 4, 0.941),
    ],
)
def test_idle_shares_are_those_of_a_simulation(
    schedule: ScheduleName, ranks: int, microbatches: int, simulated: float
) -> None:
    stages = stages_per_rank(schedule, "auto")
    found = efficiency(
        schedule, ranks=ranks, stages=stages, microbatches=microbatches, recompute=True
    )
    assert found == pytest.approx(simulated, abs=6e-4)


@pytest.mark.parametrize(
    ("schedule", "ranks", "stages", "microbatches", "key"),
    [
        ("1f1b", 4, "auto", 3, "batch.microbatches"),
        ("1f1b", 4, 2, 8, "pipeline.stages_per_rank"),
        ("gpipe", 4, 2, 8, "pipeline.stages_per_rank"),
        ("interleaved_1f1b", 4, 1, 8, "pipeline.stages_per_rank"),
        ("interleaved_1f1b", 4, 2, 10, None),
        ("interleaved_1f1b", 4, 2, 9, "batch.microbatches"),
        ("interleaved_zero_bubble", 2, 2, 7, "batch.microbatches"),
        ("interleaved_1f1b", 4, 2, 3, None),
        ("zbv", 4, 3, 8, "pipeline.stages_per_rank"),
        ("zbv", 4, "auto", 8, None),
        ("gpipe", 4, "auto", 1, None),
        ("1f1b", 4, "auto", "auto", None),
    ],
)
def test_numbers_a_schedule_cannot_take_are_named(
    schedule: ScheduleName,
    ranks: int,
    stages: Literal["auto"] | int,
    microbatches: Literal["auto"] | int,
    key: str | None,
) -> None:
    found = [broken.key for broken in broken_rules(schedule, ranks, stages, microbatches)]
    assert found == ([key] if key else [])


def test_torch_refuses_the_same_numbers_of_microbatches() -> None:
    num_refused = 0
    for ranks in (2, 3, 4):
        for microbatches in range(1, 20):
            refused = bool(list(broken_rules("interleaved_1f1b", ranks, 2, microbatches)))
            # The rule of its constructor.
            assert refused == (microbatches % max(1, microbatches // ranks) != 0)
            num_refused += refused
    assert num_refused > 10
