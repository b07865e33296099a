import pytest

from workbench.training.optimizer.learning_rate import learning_rate


def rates(warmup: int, cooldown: int, max_steps: int) -> list[float]:
    return [
        learning_rate(
            step, peak=4.0, warmup_steps=warmup, cooldown_steps=cooldown, max_steps=max_steps
        )
        for step in range(1, max_steps + 1)
    ]


def test_warm_up_counts_from_one_and_reaches_the_peak_at_its_last_step() -> None:
    assert rates(4, 0, 6) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(0, 0, 3) == [4.0, 4.0, 4.0]


def test_the_cool_down_falls_in_equal_parts_and_no_step_is_wasted() -> None:
    assert rates(2, 3, 7) == [2.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0]


def test_where_warm_up_and_cool_down_overlap_the_lower_one_counts() -> None:
    found = rates(4, 4, 4)
    assert found == pytest.approx([1.0, 2.0, 1.6, 0.8])
