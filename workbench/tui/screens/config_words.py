"""What the configs screen says of a config: a line or a few of its needs, its facts, its mistakes.

Knows no widget. Invariant: every problem of a broken config can be read whole in its lines.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

from workbench.tui import words
from workbench.tui.widgets.origin_table import value_text

if TYPE_CHECKING:
    from workbench.config.load import ConfigListing, ResolvedConfig
    from workbench.config.problems import Problem


def needs(listing: "ConfigListing") -> str:
    """Say what a config runs on and how long its rows are, in columns."""
    if listing.num_gpus is None or listing.context is None:
        return ""
    gpus = words.number_of(listing.num_gpus, "GPU") if listing.num_gpus else "CPU"
    return f"{gpus:>6} {listing.context:>7,}"


def brief_problem(listing: "ConfigListing") -> str | None:
    """Give the mistake of a broken config; its own file is named by its line alone."""
    if listing.problem is None:
        return None
    _, found, rest = listing.problem.partition(f"{listing.path.name}:")
    return f"line {rest}" if found else listing.problem


def has_key(resolved: "ResolvedConfig", word: str) -> bool:
    """Say whether a config states a key (``key:rate``), or has a value (``set:adamw``)."""
    kind, _, wanted = word.partition(":")
    if kind == "key":
        return any(
            wanted in key and leaf.origin.source != "default"
            for key, leaf in resolved.leaves.items()
        )
    return any(value_text(leaf.value) == wanted for leaf in resolved.leaves.values())


def lineage(resolved: "ResolvedConfig") -> str:
    """Name the config and what it extends, nearest first."""
    names: list[str] = []
    waiting = [resolved.files]
    while waiting:
        node = waiting.pop(0)
        name = node.path.stem if not names else f"{node.path.parent.name}/{node.path.stem}"
        if name not in names:
            names.append(name)
        waiting.extend(node.parents)
    return " ← ".join(names)


def config_facts(resolved: "ResolvedConfig") -> list[Content]:
    """Give what a config amounts to, a line each."""
    config = resolved.config
    num_stated = sum(leaf.origin.source != "default" for leaf in resolved.leaves.values())
    num_shadowed = _shadowed(resolved)
    gpus = "CPU" if config.training.device == "cpu" else f"GPUs {config.pipeline.ranks}"
    model = words.last_parts(config.model.path) if config.model.path else "no model"
    offers = "  ".join(flag.short or flag.name for flag in resolved.flags)
    length = (
        f"{config.training.max_steps} steps"
        if config.training.max_steps
        else (words.number_of(config.training.epochs, "epoch"))
    )
    return [
        Content(
            f"{len(resolved.leaves)} keys · {num_stated} stated · {num_shadowed} shadowed"
            " · 0 unknown"
        ),
        Content(
            f"{gpus} · model {model} · context {config.data.max_length:,} · "
            f"batch {config.batch.train} · {length}"
        ),
        Content.assemble(("offers ", "$quiet"), offers or "no flags"),
    ]


def _shadowed(resolved: "ResolvedConfig") -> int:
    total, waiting = 0, [resolved.files]
    while waiting:
        node = waiting.pop()
        total += node.num_shadowed
        waiting.extend(node.parents)
    return total


def problem_lines(problems: "Sequence[Problem]", project: Path, width: int) -> list[Content]:
    """Give every problem whole: where, what, and what to do, in lines of at most ``width``."""
    lines: list[Content] = []
    for problem in problems:
        where = words.from_project(problem.where, project)
        lines += _wrapped(("! ", "bold $bad"), where, width)
        lines += _wrapped(("  ", ""), problem.what, width)
        lines += _wrapped(("  → ", "$primary"), problem.remedy, width)
    return lines


def first_problem(problems: "Sequence[Problem]", project: Path, width: int) -> list[Content]:
    """Give the first problem, each of its parts cut to a line."""
    problem = problems[0]
    parts = (
        (("! ", "bold $bad"), words.from_project(problem.where, project)),
        (("  ", ""), problem.what),
        (("  → ", "$primary"), problem.remedy),
    )
    return [Content.assemble(mark, words.shorten(text, width)) for mark, text in parts]


def _wrapped(mark: tuple[str, str], text: str, width: int) -> list[Content]:
    """Break a text into lines, the first behind a mark, the others as far from the border."""
    lead, _ = mark
    rest = max(width - len(lead), 8)
    lines = [
        line
        for part in text.splitlines() or [""]
        for line in textwrap.wrap(part, rest, break_on_hyphens=False) or [""]
    ]
    return [
        Content.assemble(mark if number == 0 else " " * len(lead), line)
        for number, line in enumerate(lines)
    ]
