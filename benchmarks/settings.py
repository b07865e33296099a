"""The named settings E1 to E11: what is run, what it is held against, and whether it was reached.

Each is run under its budget, by the plan that a rank would choose, and its peak is what torch
reserved. A target may bound the peak more tightly than the budget does: the planner takes no more
than makes it faster.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from our_step import Trial

from workbench.config.memory_parts import GIB


@dataclass(frozen=True)
class Target:
    """What must be reached; None asks for nothing.

    Attributes:
        tokens_per_second: at least.
        reserved_gib: torch's peak, at most.
        row_tokens: of the longest row, at least.
        seconds: at most.
    """

    tokens_per_second: float | None = None
    reserved_gib: float | None = None
    row_tokens: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.tokens_per_second:
            parts.append(f"≥ {self.tokens_per_second:,.0f} tok/s")
        if self.reserved_gib:
            parts.append(f"≤ {self.reserved_gib:.1f} GiB")
        if self.row_tokens:
            parts.append(f"≥ {self.row_tokens:,} tokens")
        if self.seconds:
            parts.append(f"≤ {self.seconds:g} s")
        return " at ".join(parts) if len(parts) < 3 else ", ".join(parts)


@dataclass(frozen=True)
class Setting:
    """One named measurement.

    Attributes:
        name: E1 to E11.
        title: what is run, in words.
        target: what decides.
        trials: the first is held against the target.
        probe: what the feasibility probe reached, from the reference.
        rival: the best of others, from the reference.
        beside: trials of the baseline in the same invocation.
        kind: which script runs it.
    """

    name: str
    title: str
    target: Target
    trials: tuple[Trial, ...] = ()
    probe: str = "–"
    rival: str = "–"
    beside: tuple[Trial, ...] = ()
    kind: str = "step"


# E11 holds the predictions of these trials against what they took, and those of its own points.
PREDICTED_TOO = ("E1.0", "E1.2", "E2.0", "E3.0", "E4.0", "E5.0", "E7.1", "E7.2", "E8.0")


def script_of(trial: Trial) -> tuple[str, ...]:
    """Say which script runs a trial of ours, and with which options."""
    searches = {"least": ("memory.py", "--least", "--child"),
                "longest": ("memory.py", "--longest", "--child")}  # fmt: skip
    return searches.get(trial.label, ("our_step.py",))


_7B = Trial(shapes="mistral-7b", row=4096, rows=4, warmup=2, steps=6)
_LONG = Trial(shapes="mistral-7b", row=131_072, rows=1, budget_gib=22.8, warmup=1, steps=1)
_BY_HAND = (
    replace(_7B, steps=4, label="4096 × 4"),
    replace(_7B, rows=1, label="4096 × 1"),
)

SETTINGS = {
    each.name: each
    for each in (
        Setting(
            "E1",
            "7B, rows of 4,096, 16k tokens a step, budget 22.8 GiB",
            Target(tokens_per_second=11_000, reserved_gib=18.0),
            (
                replace(_7B, budget_gib=22.8, ceilings=True, label="budget 22.8 GiB"),
                replace(
                    _7B,
                    budget_gib=22.8,
                    one_document=True,
                    steps=4,
                    label="budget 22.8 GiB, one document per row",
                ),
            ),
            probe="9,360 tok/s at 19.9 GiB",
            rival="7,760 tok/s at 21.7 GiB",
            beside=_BY_HAND,
        ),
        Setting(
            "E2",
            "7B, rows of 4,096, 16k tokens a step, budget 15.2 GiB",
            Target(tokens_per_second=10_500, reserved_gib=14.5),
            (replace(_7B, budget_gib=15.2, ceilings=True, label="budget 15.2 GiB"),),
            probe="9,215 tok/s at 13.9 GiB",
            rival="does not run",
        ),
        Setting(
            "E3",
            "7B, rows of 4,096, 16k tokens a step, budget 7.2 GiB, all streamed",
            Target(tokens_per_second=10_000, reserved_gib=5.0),
            (replace(_7B, budget_gib=7.2, ceilings=True, label="budget 7.2 GiB"),),
            probe="9,250 tok/s at 5.8 GiB",
            rival="does not run",
        ),
        Setting(
            "E4",
            "7B, smallest peak, rows of 2,048",
            Target(reserved_gib=3.0),
            (Trial(shapes="mistral-7b", row=2048, rows=16, warmup=1, steps=2, label="least"),),
            probe="4.6 GiB",
            rival="13.7 GiB (claimed)",
            kind="least",
        ),
        Setting(
            "E5",
            "30B, 16k tokens a step, budget 11 GiB",
            Target(tokens_per_second=2_350, reserved_gib=8.5),
            (
                Trial(
                    shapes="llama-30b",
                    row=4096,
                    rows=4,
                    budget_gib=11.0,
                    warmup=1,
                    steps=3,
                    ceilings=True,
                    label="budget 11 GiB",
                ),
            ),
            probe="2,146 tok/s at 9.8 GiB",
            rival="needs 4 GPUs",
        ),
        Setting(
            "E6",
            "70B shapes, 16k tokens a step, budget 22.8 GiB, as many blocks as host memory holds",
            Target(tokens_per_second=900, reserved_gib=16.0),
            (
                Trial(
                    shapes="llama-70b",
                    row=4096,
                    rows=4,
                    layers=0,
                    budget_gib=16.7,
                    warmup=1,
                    steps=2,
                    ceilings=True,
                    label="16.7 GiB of the budget",
                ),
            ),
        ),
        Setting(
            "E7",
            "longest row in 22.8 GiB, Mistral-7B shapes, batch 1",
            Target(row_tokens=131_072),
            (
                replace(_LONG, label="longest"),
                replace(_LONG, label="131,072 tokens, many documents"),
                replace(_LONG, shapes="llama-2-7b", label="131,072 tokens, many documents"),
                # Attention over all of it takes three times as long as everything else.
                replace(_LONG, warmup=0, one_document=True, label="131,072 tokens, one document"),
            ),
            rival="43k",
            kind="longest",
        ),
        Setting(
            "E8",
            "7B, rows of 4,096, 16k tokens a step, the whole card",
            Target(tokens_per_second=13_000),
            (replace(_7B, ceilings=True, label="no budget"),),
            rival="7,870 tok/s; 13,860 claimed on an H100 in C++",
        ),
        Setting(
            "E9",
            "launch to the end of the first step, 7B, weights in the page cache, no kernels cached",
            Target(seconds=60),
            probe="19 s of compilation",
            rival="> 100 s",
            kind="first step",
        ),
        Setting(
            "E10",
            "share of the step that optimizer, and telemetry and control, take",
            Target(),
            probe="3.5 % optimizer",
            kind="telemetry",
        ),
        Setting(
            "E11",
            "prediction of peak and step time on 12 settings",
            Target(),
            kind="grid",
        ),
    )
}


@dataclass(frozen=True)
class Verdict:
    """Whether a target was reached, and in words by how much it was missed or passed."""

    is_hit: bool
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{'hit' if self.is_hit else 'missed'}: {', '.join(self.words)}"


def judge(target: Target, record: dict[str, Any]) -> Verdict:
    """Hold a record against a target.

    ``missed: 10,450 tok/s is 5.0 % under 11,000, 17.20 GiB is 4.4 % under 18.0``.

    Args:
        target: what is asked for.
        record: with ``tokens_per_second``, ``reserved`` bytes, ``row``, ``seconds_to_first_step``.
    """
    if "failed" in record:
        return Verdict(False, [f"{record['failed']}: {record.get('message', '')[:200]}"])
    words, is_hit = [], True
    for bound, name, unit, scale, at_least in (
        (target.tokens_per_second, "tokens_per_second", " tok/s", 1, True),
        (target.reserved_gib, "reserved", " GiB", GIB, False),
        (target.row_tokens, "row", " tokens", 1, True),
        (target.seconds, "seconds_to_first_step", " s", 1, False),
    ):
        if bound is None:
            continue
        value = record[name] / scale
        reached = value >= bound if at_least else value <= bound
        is_hit = is_hit and reached
        side = "over" if value > bound else "under"
        shown = f"{value:,.0f}" if bound >= 100 else f"{value:.2f}"
        share = f"is {100 * abs(value / bound - 1):.1f} % {side} {bound:,g}"
        words.append(f"{shown}{unit} {share if value != bound else f'is {bound:,g}'}")
    return Verdict(is_hit, words)
