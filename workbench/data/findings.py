"""What is wrong with a data set: the row, the cause, the remedy; each kind shown a few times.

Knows nothing of how a finding is shown. Invariant: nothing is counted twice and nothing is
swallowed: every finding is kept, and what is left out of a list is counted in its last line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from workbench.errors import DataError

Severity = Literal["error", "warning"]

SHOWN_PER_KIND = 10


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in the three parts of an error.

    Attributes:
        severity: an error keeps a run from starting, a warning does not.
        where: file, row and turn.
        what: is wrong there.
        remedy: what to do about it.
    """

    severity: Severity
    where: str
    what: str
    remedy: str


@dataclass
class Findings:
    """Findings in the order they were made, grouped by kind for showing."""

    _by_kind: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, kind: str, finding: Finding) -> None:
        """Keep a finding unless the very same is known.

        Args:
            kind: findings of one kind are shown a few times and then counted.
            finding: to keep.
        """
        known = self._by_kind.setdefault(kind, [])
        if finding not in known[-SHOWN_PER_KIND:]:
            known.append(finding)

    def update(self, others: "Findings") -> None:
        """Keep all of others' findings that are not known, under their kinds."""
        for kind, findings in others._by_kind.items():
            for finding in findings:
                self.add(kind, finding)

    @property
    def num_errors(self) -> int:
        """Findings that keep a run from starting."""
        return sum(finding.severity == "error" for finding in self)

    def __iter__(self) -> Iterator[Finding]:
        for findings in self._by_kind.values():
            yield from findings

    def shown(self, limit: int | None = SHOWN_PER_KIND) -> Iterator[Finding]:
        """Give the first findings of each kind, errors first, the last saying how many follow.

        Args:
            limit: findings of one kind that are given; None gives all.
        """
        for severity in ("error", "warning"):
            for findings in self._by_kind.values():
                of_severity = [found for found in findings if found.severity == severity]
                rest = 0 if limit is None else len(of_severity) - limit
                # One more is shown in place of being counted.
                yield from of_severity[: limit if rest > 1 else None]
                if rest > 1:
                    last = of_severity[-1]
                    says_same = all(found.what == last.what for found in of_severity)
                    yield Finding(
                        last.severity,
                        where=f"{rest:,} more, up to {last.where}",
                        what=last.what if says_same else "much the same",
                        remedy=last.remedy,
                    )

    def encode(self) -> bytes:
        """Give all findings with their kinds as JSON, for ``decode``."""
        return msgspec.json.encode(self._by_kind)

    @classmethod
    def decode(cls, content: bytes) -> "Findings":
        """Read what ``encode`` wrote.

        Raises:
            ValueError: it is something else.
        """
        return cls(msgspec.json.decode(content, type=dict[str, list[Finding]]))

    def raise_errors(self) -> None:
        """End here if there is an error.

        Raises:
            DataError: with the first error, and how many there are.
        """
        errors = [finding for finding in self if finding.severity == "error"]
        if not errors:
            return
        first = errors[0]
        others = _count_others(len(errors) - 1)
        raise DataError(first.what + others, where=first.where, remedy=first.remedy)


def _count_others(number: int) -> str:
    if not number:
        return ""
    return f" (and {number:,} more error{'s' if number > 1 else ''} in the data)"
