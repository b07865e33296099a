"""What each pipeline schedule needs, keeps alive and wastes; nothing here runs one.

A schedule orders the forwards and backwards of m microbatches over p ranks with v stages each.
Sources: GPipe (2018), PipeDream's 1F1B as in Megatron-LM (2021), interleaving from the latter,
zero bubble and its V placement (Qi et al., 2023 and 2024), and the orders that
``torch.distributed.pipelining`` makes of them, which the tests walk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal[
    "auto",
    "gpipe",
    "1f1b",
    "interleaved_1f1b",
    "interleaved_zero_bubble",
    "zbv",
    "link_aware",
]

ASSUMED = "1f1b"
"""What a forecast takes ``auto`` to be, as long as no link was measured."""


@dataclass(frozen=True)
class Broken:
    """A rule that a pipeline breaks: the key below ``pipeline`` or ``batch``, what, remedy."""

    key: str
    what: str
    remedy: str


def stages_per_rank(schedule: ScheduleName, stated: Literal["auto"] | int) -> int:
    """Give the stages of a rank: what is stated, else what the schedule needs."""
    if stated != "auto":
        return stated
    return 1 if schedule in ("auto", "gpipe", "1f1b", "link_aware") else 2


def is_v_shaped(schedule: ScheduleName) -> bool:
    """Say whether rank 0 has the first and the last stage, rank 1 their neighbours, and so on."""
    return schedule == "zbv"


def broken_rules(
    schedule: ScheduleName,
    ranks: int,
    stages: Literal["auto"] | int,
    microbatches: Literal["auto"] | int,
) -> Iterator[Broken]:
    """Give what keeps a schedule from running with these numbers."""
    per_rank = stages_per_rank(schedule, stages)
    if schedule in ("gpipe", "1f1b", "link_aware") and per_rank != 1:
        yield Broken(
            "pipeline.stages_per_rank",
            f"{schedule} has one stage per rank, not {per_rank}",
            "set pipeline.stages_per_rank: auto, or pipeline.schedule: interleaved_1f1b",
        )
    elif schedule == "zbv" and per_rank != 2:
        yield Broken(
            "pipeline.stages_per_rank",
            f"zbv has two stages per rank, not {per_rank}",
            "set pipeline.stages_per_rank: auto",
        )
    elif schedule.startswith("interleaved") and per_rank < 2:
        yield Broken(
            "pipeline.stages_per_rank",
            f"{schedule} needs two stages per rank or more, not {per_rank}",
            "set pipeline.stages_per_rank: auto, or pipeline.schedule: 1f1b",
        )
    if microbatches == "auto":
        return
    if schedule in ("1f1b", "link_aware") and microbatches < ranks:
        yield Broken(
            "batch.microbatches",
            f"{schedule} over {ranks} ranks needs {ranks} microbatches or more, not {microbatches}",
            f"set batch.microbatches to {ranks} or more, or auto",
        )
    rounds = max(1, microbatches // ranks)
    if schedule.startswith("interleaved") and microbatches % rounds:
        below, above = microbatches // ranks * ranks, (microbatches // ranks + 1) * ranks
        yield Broken(
            "batch.microbatches",
            f"{schedule} passes {microbatches} microbatches over {ranks} ranks in {rounds} equal "
            f"rounds, which do not divide them",
            f"set batch.microbatches to {below} or {above}",
        )


def alive_passes(
    schedule: ScheduleName, *, ranks: int, rank: int, stages: int, microbatches: int
) -> int:
    """Count the passes whose activations a rank holds at its worst moment.

    A pass is one microbatch through one of the rank's stages, from its forward to the end of its
    backward; where backward comes in two halves, to the second, which makes weight gradients.

    Args:
        schedule: ``auto`` counts as 1f1b; link_aware as 1f1b with one extra warm-up per rank that
            follows.
        ranks: of the pipeline.
        rank: from 0, which has the first stage.
        stages: per rank.
        microbatches: of a step.
    """
    after, most = ranks - 1 - rank, microbatches * stages
    match schedule:
        case "gpipe":
            return most
        case "auto" | "1f1b":
            return min(most, after + 1)
        case "link_aware":
            return min(most, 2 * after + 1)
        case "zbv":
            return min(most, 2 * ranks)
        case "interleaved_1f1b" | "interleaved_zero_bubble":
            a_round = microbatches // max(1, microbatches // ranks)
            warm_up = (stages - 1) * a_round
            # A rank of the zero-bubble order puts its weight gradients off by as many passes as
            # there are ranks before it.
            if schedule == "interleaved_1f1b":
                return min(most, warm_up + 2 * after + 1)
            return min(most, warm_up + after + rank + 1)


def efficiency(
    schedule: ScheduleName, *, ranks: int, stages: int, microbatches: int, recompute: bool
) -> float:
    """Give the share of the ideal p-fold speed, on links that cost nothing.

    1F1B and GPipe m / (m + p - 1); interleaved m v / (m v + p - 1). A zero-bubble order idles for
    one forward per rank before the last, out of m x (forward + backward), where backward costs two
    forwards, three with recomputation.
    """
    if schedule in ("interleaved_zero_bubble", "zbv"):
        work = microbatches * (4 if recompute else 3)
        return work / (work + ranks - 1)
    passes = microbatches * (stages if schedule == "interleaved_1f1b" else 1)
    return passes / (passes + ranks - 1)
