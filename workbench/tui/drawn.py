"""Small records that a picture of a job gives and widgets draw."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LogLine:
    """A line for the eye: no control characters, what was overwritten is gone."""

    text: str
    kind: Literal["output", "note"] = "output"


@dataclass(frozen=True)
class Happening:
    """An event on the x-axis: E evaluation, S save, A new attempt, ! not finite."""

    x: float
    letter: str
