"""The states of a job, who says them, and the commands each allows."""

from typing import Literal, get_args

RunningState = Literal[
    "loading", "compiling", "training", "evaluating", "saving", "paused", "stopping"
]
"""Said by rank 0."""

EndState = Literal["finished", "stopped", "aborted", "failed", "lost"]
"""Written to outcome.json; lost is what readers conclude without outcome and supervisor."""

JobState = Literal[
    "starting",
    "loading",
    "compiling",
    "training",
    "evaluating",
    "saving",
    "paused",
    "stopping",
    "finished",
    "stopped",
    "aborted",
    "failed",
    "lost",
]

END_STATES: frozenset[str] = frozenset(get_args(EndState))
BEFORE_FIRST_STEP: frozenset[str] = frozenset({"starting", "loading", "compiling"})


def refusal(command: str, state: JobState) -> tuple[str, str] | None:
    """Say why ``command`` is refused in ``state``, or None where it is allowed.

    Args:
        command: save, evaluate, pause, resume, stop or abort.
        state: what the supervisor last said of the job.

    Returns:
        (reason, sentence); the reason is one of ``messages.Refusal``.
    """
    if state in END_STATES:
        return "ended", f"the job has ended: {state}"
    if state == "stopping" and command != "abort":
        return "stopping", "the job is stopping"
    if command == "resume" and state != "paused":
        return "not_paused", f"the job is not paused, it is {state}"
    return None


def when_acted_on(command: str, state: JobState) -> Literal["now", "next step", "first step"]:
    """Say when an accepted command takes effect."""
    if command == "abort" or state == "paused":
        return "now"
    # Before the first step there is nothing to save: the supervisor ends the job by itself.
    if command == "stop" and state in BEFORE_FIRST_STEP:
        return "now"
    return "first step" if state in BEFORE_FIRST_STEP else "next step"
