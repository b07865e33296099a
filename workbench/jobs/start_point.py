"""What a start goes on from: a checkpoint and what of it is restored, or the first weights.

The rule is the worker's own, ``runs.checkpoints.resume_point``. Writes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from workbench.config.schema.config import Config
from workbench.runs.checkpoints import resume_point
from workbench.runs.create import PlannedRun
from workbench.runs.layout import step_of

RESTORED = "weights, optimizer state, place in the data, random states"
"""What a checkpoint gives back."""


@dataclass(frozen=True)
class StartPoint:
    """Where a start begins.

    Attributes:
        checkpoint: that it goes on from; None begins with the first weights.
        step: that it has behind it.
        is_own: the checkpoint is one of the run's own.
    """

    checkpoint: Path | None
    step: int
    is_own: bool


def start_point(config: Config, planned: PlannedRun) -> StartPoint:
    """Find where a start begins.

    Raises:
        RunError: the checkpoint that the config names is not there or not complete, or
            ``checkpoints.resume: no`` meets checkpoints of the run.
    """
    found = resume_point(planned.folder, config.checkpoints.resume)
    if found is None:
        return StartPoint(None, 0, is_own=False)
    is_own = found.parent == planned.folder.checkpoints
    return StartPoint(found, step_of(found.resolve()) or 0, is_own=is_own)


def start_words(point: StartPoint, config: Config) -> str:
    """Say where a start begins, and with what."""
    if point.checkpoint is None:
        seed = config.training.seed
        if config.model.weights == "random":
            return f"at step 0, with random weights of seed {seed}"
        return "at step 0, with the model's weights"
    name = point.checkpoint.name if point.is_own else str(point.checkpoint)
    return f"at step {point.step:,}, with all of {name}: {RESTORED}"
