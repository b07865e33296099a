"""States as a mark, a word and a colour, in that order; pure.

Invariant: no mark or colour stands without its word where a state is told.
"""

from typing import Literal

from workbench.control.states import JobState

Mark = Literal["●", "◐", "◌", "‖", "✓", "■", "✗", "?", "!"]

_MARKS: dict[str, tuple[Mark, str]] = {
    "training": ("●", "$good"),
    "evaluating": ("●", "$good"),
    "saving": ("◐", "$busy"),
    "stopping": ("◐", "$busy"),
    "starting": ("◌", "$busy"),
    "loading": ("◌", "$busy"),
    "compiling": ("◌", "$busy"),
    "paused": ("‖", "$note"),
    "finished": ("✓", "$good"),
    "stopped": ("■", "$quiet"),
    "aborted": ("■", "$bad"),
    "failed": ("✗", "$bad"),
    "lost": ("?", "$bad"),
    "silent": ("?", "$note"),
}


def mark_of(state: JobState | Literal["silent"]) -> tuple[Mark, str]:
    """Give (mark, colour) of a state; a silent job has the mark of one that is not known."""
    return _MARKS[state]


CHECK_MARKS: dict[str, tuple[Mark, str]] = {
    "ok": ("✓", "$good"),
    "warning": ("!", "$note"),
    "error": ("✗", "$bad"),
}
