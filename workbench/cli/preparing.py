"""How far preparing data is: one moving line on a terminal, at most a few lines elsewhere.

Invariant: what is told meanwhile is never joined to the moving line, and none is left behind.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from workbench.cli import output
from workbench.cli.narration import progress_line
from workbench.jobs.data_worker import AnyRecord, Progress

_BAR_CELLS = 24
# Fewer are done before anyone has read a line.
_MIN_TOTAL_FOR_LINES = 10_000


class Preparing:
    """Shows progress on stderr, and tells lines between.

    Args:
        is_quiet: without a terminal, tell nothing of progress.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._told: tuple[str, int] = ("", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        output.passing("")

    def show(self, progress: Progress) -> None:
        """Show how far it is; without a terminal tell each stage once, and each half of it."""
        output.passing(f"◌ {_bar(progress)}{progress_line(progress)}")
        half = 2 * progress.done // progress.total if progress.total else 0
        if (
            output.is_watched()
            or self._is_quiet
            or progress.total < _MIN_TOTAL_FOR_LINES
            or (progress.stage, half) == self._told
        ):
            return
        self._told = (progress.stage, half)
        output.narrate(f"◌ {progress_line(progress)}")

    def tell(self, line: str) -> None:
        """Tell a line that stays."""
        output.passing("")
        output.narrate(line)


def take_progress(records: Iterator[AnyRecord]) -> Iterator[AnyRecord]:
    """Show how far preparing is, and give the other records."""
    with Preparing() as preparing:
        for record in records:
            if isinstance(record, Progress):
                preparing.show(record)
            else:
                output.passing("")
                yield record


def _bar(progress: Progress) -> str:
    if not progress.total:
        return ""
    full = _BAR_CELLS * progress.done // progress.total
    return "━" * full + "┄" * (_BAR_CELLS - full) + " "
