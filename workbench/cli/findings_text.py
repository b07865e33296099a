"""What is wrong with data, as lines for people and as JSON for machines.

Knows nothing of where findings come from. Invariant: no finding that is given is left out.
"""

import itertools
from collections.abc import Iterator, Sequence

from workbench.cli.paint import Paint, broken, visible
from workbench.jobs.data_worker import Finding


def finding_lines(findings: Sequence[Finding], paint: Paint, width: int) -> Iterator[str]:
    """Give findings: under one remedy all that have it, under one heading all that say the same."""
    for (severity, remedy), alike in itertools.groupby(
        findings, key=lambda found: (found.severity, found.remedy)
    ):
        yield ""
        mark = paint("✗", "bad") if severity == "error" else paint("!", "warn")
        for what, group in itertools.groupby(alike, key=lambda found: found.what):
            places = [visible(found.where) for found in group]
            said = visible(what) if len(places) > 1 else f"{places[0]}: {visible(what)}"
            first, *others = broken(said, width - 2)
            yield f"{mark} {first}"
            yield from (f"  {line}" for line in others)
            if len(places) > 1:
                yield from (f"    {place}" for place in places)
        first, *others = broken(visible(remedy), width - 4)
        yield paint(f"  → {first}", "quiet")
        yield from (paint(f"    {line}", "quiet") for line in others)


def finding_json(found: Finding) -> dict[str, str]:
    """Give a finding for machines."""
    return {
        "severity": found.severity,
        "where": found.where,
        "what": found.what,
        "remedy": found.remedy,
    }
