"""The learning rate of a step: warm-up, constant, cool-down; a pure function of the step.

Nothing is stored, so a resumed run has the same rates by construction.
"""


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, cooldown_steps: int, max_steps: int
) -> float:
    """Give the rate that step ``step`` uses.

    Step k of the warm-up uses ``peak * k / warmup_steps``. The cool-down falls in equal parts over
    the last ``cooldown_steps`` steps and would reach zero one step after the last. With a peak of
    4, two steps of each and six steps in all: 2, 4, 4, 4, 2.67, 1.33.

    Args:
        step: optimizer step, counted from 1 to ``max_steps``.
        peak: rate between warm-up and cool-down.
        warmup_steps: steps of the warm-up; 0 begins at the peak.
        cooldown_steps: steps of the cool-down; 0 stays at the peak.
        max_steps: steps of the whole run.
    """
    assert step >= 1, f"steps are counted from 1, not {step}"
    rising = step / warmup_steps if step < warmup_steps else 1.0
    steps_left = max_steps - step + 1
    falling = steps_left / (cooldown_steps + 1) if steps_left <= cooldown_steps else 1.0
    return peak * max(0.0, min(rising, falling))
