"""Time lines of a device: one computes, one copies up to it, one copies down from it.

A copy begins once the marks it is given have passed, and gives the mark of its own end; computing
waits for a mark where it says so, and nowhere else. On the CPU everything happens at once and in
order, so every mark has passed when it is made.

Knows tensors and marks, no weights. Invariant: no call here waits on the host, but ``Lanes.join``.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from workbench.training.engine.step_times import StepTimes

Kind = Literal["up", "down", "waiting", "optimizer"]


class Mark(Protocol):
    """A point on a time line."""


class Sample(Protocol):
    """Times of one step, to be read when the step is over on the device."""

    def read(self) -> StepTimes:
        """Give seconds; waits for the step's end."""


class Lanes(Protocol):
    """What stores of weights and records ask of a device."""

    def mark(self) -> Mark:
        """Mark what was computed so far."""

    def wait(self, mark: Mark | None) -> None:
        """Have computing wait for a mark; None has passed."""

    def up(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Mark:
        """Copy host memory to the device, beside computing."""

    def down(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Mark:
        """Copy device memory to the host, beside computing."""

    def join(self) -> None:
        """Wait on the host until every copy has ended."""

    def begin_sample(self) -> None:
        """Take times until ``end_sample``."""

    def end_sample(self) -> Sample | None:
        """Stop taking times; None where no sample was begun or the device has no clock."""

    def updating(self) -> AbstractContextManager[None]:
        """Count what is computed within as the optimizer's."""


def lanes_for(device: torch.device) -> Lanes:
    """Give the time lines of a device."""
    return CudaLanes(device) if device.type == "cuda" else HostLanes()


class HostLanes:
    """The CPU's: copies happen at once, nothing is waited for."""

    def mark(self) -> None:
        """Nothing is ever pending."""

    def wait(self, mark: Mark | None) -> None:
        """Nothing is ever pending."""

    def up(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> None:
        """Copy now."""
        into.copy_(source)

    def down(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> None:
        """Copy now."""
        into.copy_(source)

    def join(self) -> None:
        """Nothing is ever pending."""

    def begin_sample(self) -> None:
        """The CPU has no clock of its own."""

    def end_sample(self) -> None:
        """The CPU has no clock of its own."""

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Count nothing."""
        yield


@dataclass
class _Spans:
    """Pairs of events around what a sampled step did, by kind."""

    begin: torch.cuda.Event
    end: torch.cuda.Event | None = None
    pairs: dict[Kind, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = field(
        default_factory=lambda: {"up": [], "down": [], "waiting": [], "optimizer": []}
    )

    def read(self) -> StepTimes:
        """Give seconds; waits for the step's end and for its copies."""
        assert self.end is not None, "a sample is read after its end"
        self.end.synchronize()
        seconds = {}
        for kind, pairs in self.pairs.items():
            if pairs:
                pairs[-1][1].synchronize()
            seconds[kind] = sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3
        return StepTimes(
            step=self.begin.elapsed_time(self.end) / 1e3,
            up=seconds["up"],
            down=seconds["down"],
            waiting=seconds["waiting"],
            optimizer=seconds["optimizer"],
        )


class CudaLanes:
    """A GPU's: the current stream computes, two more copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._spans: _Spans | None = None

    def mark(self) -> torch.cuda.Event:
        """Mark what was computed so far."""
        return _record(torch.cuda.current_stream(self._device))

    def wait(self, mark: Mark | None) -> None:
        """Have the current stream wait."""
        if mark is None:
            return
        assert isinstance(mark, torch.cuda.Event)
        stream = torch.cuda.current_stream(self._device)
        with self._span("waiting", stream):
            stream.wait_event(mark)

    def up(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> torch.cuda.Event:
        """Copy on the stream of copies up."""
        return self._copy("up", self._up, into, source, after)

    def down(
        self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]
    ) -> torch.cuda.Event:
        """Copy on the stream of copies down."""
        return self._copy("down", self._down, into, source, after)

    def join(self) -> None:
        """Wait on the host for both streams of copies."""
        self._up.synchronize()
        self._down.synchronize()

    def begin_sample(self) -> None:
        """Take times from here on."""
        self._spans = _Spans(_record(torch.cuda.current_stream(self._device), timed=True))

    def end_sample(self) -> Sample | None:
        """Give what ``begin_sample`` began; None where it did not."""
        spans, self._spans = self._spans, None
        if spans is not None:
            spans.end = _record(torch.cuda.current_stream(self._device), timed=True)
        return spans

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Count what is computed within as the optimizer's."""
        with self._span("optimizer", torch.cuda.current_stream(self._device)):
            yield

    def _copy(
        self,
        kind: Kind,
        stream: torch.cuda.Stream,
        into: Tensor,
        source: Tensor,
        after: Sequence[Mark | None],
    ) -> torch.cuda.Event:
        for mark in after:
            if mark is not None:
                assert isinstance(mark, torch.cuda.Event)
                stream.wait_event(mark)
        with self._span(kind, stream), torch.cuda.stream(stream):
            into.copy_(source, non_blocking=True)
        return _record(stream)

    @contextmanager
    def _span(self, kind: Kind, stream: torch.cuda.Stream) -> Iterator[None]:
        if self._spans is None:
            yield
            return
        begin = _record(stream, timed=True)
        yield
        self._spans.pairs[kind].append((begin, _record(stream, timed=True)))


def _record(stream: torch.cuda.Stream, *, timed: bool = False) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
