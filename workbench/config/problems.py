"""A mistake in a config, and the error that shows every mistake of a config at once.

Knows nothing of YAML or keys. Invariant: each problem says where, what and what to do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake.

    Attributes:
        key: the key in question as ``section.key``, "" where the mistake is in no key.
        what: what is wrong with it.
        remedy: what to do, as an imperative.
        file: the file that states it, None where no file does.
        line: line in that file, from 1; None where the mistake is the file itself.
        source: what states it where no file does: ``flag --lr``, ``key=value``, ``default``.
        others: further keys a rule between keys has looked at.
    """

    key: str
    what: str
    remedy: str
    file: Path | None = None
    line: int | None = None
    source: str = ""
    others: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Give file:line as seen from the current folder, or what states the key otherwise."""
        if self.file is None:
            return self.source
        shown = seen_from_here(self.file)
        return shown if self.line is None else f"{shown}:{self.line}"

    @property
    def where(self) -> str:
        """Give the place and the key."""
        return " ".join(part for part in (self.place, self.key) if part) or "config"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


class ConfigProblems(ConfigError):  # noqa: N818 - it is several errors
    """Every mistake of one config, in file order.

    Args:
        problems: at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an error without a problem"
        first = problems[0]
        super().__init__(first.what, where=first.where, remedy=first.remedy)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Survive pickling."""
        return ConfigProblems, (self.problems,)


def seen_from_here(path: Path) -> str:
    """Shorten a path to what it is from the current folder, where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def in_file_order(problems: Iterable[Problem], files: Sequence[Path]) -> list[Problem]:
    """Sort problems by file, as ``files`` are ordered, then by line; those of no file come last."""
    order = {file: index for index, file in enumerate(files)}

    def position(problem: Problem) -> tuple[int, int]:
        if problem.file is None:
            return len(order) + 1, 0
        return order.get(problem.file, len(order)), problem.line or 0

    return sorted(dict.fromkeys(problems), key=position)
