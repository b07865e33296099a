"""How many steps a run has, and what of its counters a checkpoint keeps."""

import pytest
import torch

from workbench.training.state import TrainingState, total_steps


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "max_steps", "expected"),
    [
        (1.0, 10, None, 10),
        (1.5, 10, None, 15),
        (0.25, 10, None, 3),  # a part of a step is a step
        (0.07, 100, None, 7),  # 0.07 x 100 is 7.000000000000001 in binary
        (0.001, 10, None, 1),
        (3.0, 10, 12, 12),
        (1.0, 10, 12, 10),
    ],
)
def test_epochs_and_the_bound_give_the_number_of_steps(
    epochs: float, steps_per_epoch: int, max_steps: int | None, expected: int
) -> None:
    assert total_steps(epochs, steps_per_epoch, max_steps) == expected


def test_what_was_saved_is_where_a_run_goes_on() -> None:
    state = TrainingState(step=7, tokens=900, target_tokens=400, epoch=0.7)
    saved = state.to_saved(steps_per_epoch=10, previous_norm=torch.tensor(1.5))
    assert TrainingState.from_saved(saved) == state
    assert (saved.data_position, saved.rounding_counter, saved.steps_per_epoch) == (7, 7, 10)
    assert saved.previous_gradient_norm == 1.5
    assert state.to_saved(steps_per_epoch=10, previous_norm=None).previous_gradient_norm is None
