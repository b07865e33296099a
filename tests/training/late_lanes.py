"""Time lines that copy as late as they may: whoever forgets to wait reads what was there before."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from workbench.training.engine.lanes import Mark


@dataclass(eq=False)
class Copy:
    """A copy that was asked for; marks of computing are copies that have happened."""

    into: Tensor | None = None
    source: Tensor | None = None
    after: list["Copy"] = field(default_factory=list)
    has_passed: bool = True

    def happen(self) -> None:
        """Copy, once all that it waits for has happened."""
        if self.has_passed:
            return
        for earlier in self.after:
            earlier.happen()
        assert self.into is not None
        assert self.source is not None
        self.into.copy_(self.source)
        self.has_passed = True


class LateLanes:
    """Copies happen when somebody waits for them, and at the latest when all are waited for.

    Each lane is in order, as a stream is. A copy whose source or goal is overwritten before it
    happened copies the wrong bytes, exactly as on a device that was busy.
    """

    def __init__(self) -> None:
        self._last: dict[str, Copy | None] = {"up": None, "down": None}
        self.num_copies = 0
        self.num_late = 0

    def mark(self) -> Copy:
        """Computing happens at once."""
        return Copy()

    def wait(self, mark: Mark | None) -> None:
        """Have it happen now."""
        if mark is not None:
            assert isinstance(mark, Copy)
            self.num_late += not mark.has_passed
            mark.happen()

    def up(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Copy:
        """Promise a copy."""
        return self._promise("up", into, source, after)

    def down(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Copy:
        """Promise a copy."""
        return self._promise("down", into, source, after)

    def join(self) -> None:
        """Have everything happen."""
        for copy in self._last.values():
            if copy is not None:
                copy.happen()

    def begin_sample(self) -> None:
        """There is no clock."""

    def end_sample(self) -> None:
        """There is no clock."""

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Count nothing."""
        yield

    def _promise(
        self, lane: str, into: Tensor, source: Tensor, after: Sequence[Mark | None]
    ) -> Copy:
        earlier = [mark for mark in (*after, self._last[lane]) if mark is not None]
        assert all(isinstance(mark, Copy) for mark in earlier)
        copy = Copy(into, source, earlier, has_passed=False)  # type: ignore[arg-type]
        self._last[lane] = copy
        self.num_copies += 1
        return copy
