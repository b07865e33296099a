"""Time lines that know what happened before what, and find what nothing keeps apart.

Everything runs at once and in order, so results are right whatever is forgotten. But each piece of
work has a vector clock: how far it has seen each time line. Of two accesses to the same bytes, one
a write, the later must have seen the earlier: otherwise a device may swap them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.training.engine.lanes import Mark

Clock = dict[str, int]


@dataclass(frozen=True)
class Access:
    """Bytes of a storage that were read or written, by whom and when."""

    begin: int
    end: int
    writes: bool
    lane: str
    tick: int
    what: str


def _later(first: Clock, second: Clock) -> Clock:
    return {lane: max(first[lane], second[lane]) for lane in first}


@dataclass
class WatchedLanes:
    """Lanes whose every access is held against all earlier ones; ``with watch():`` sees computing.

    Attributes:
        num_copies: so far.
        races: in words, each pair that nothing kept apart.
    """

    num_copies: int = 0
    races: list[str] = field(default_factory=list)
    _clocks: dict[str, Clock] = field(
        default_factory=lambda: {
            lane: dict.fromkeys(("compute", "up", "down"), 0) for lane in ("compute", "up", "down")
        }
    )
    _accesses: dict[int, list[Access]] = field(default_factory=dict)
    _on_host: set[int] = field(default_factory=set)
    _is_copying: bool = False

    def mark(self) -> Clock:
        """Tell what computing has seen by now."""
        return dict(self._clocks["compute"])

    def wait(self, mark: Mark | None) -> None:
        """Have computing see what the mark has seen."""
        if mark is not None:
            self._see("compute", mark)

    def up(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Clock:
        """Copy now; the source is host memory, which computing cannot touch."""
        self._on_host.add(_storage(source))
        return self._copy("up", into, source, after)

    def down(self, into: Tensor, source: Tensor, *, after: Sequence[Mark | None]) -> Clock:
        """Copy now; ``into`` is host memory."""
        self._on_host.add(_storage(into))
        return self._copy("down", into, source, after)

    def join(self) -> None:
        """Whatever is asked for from here on comes after all copies."""
        for lane in ("up", "down"):
            self._see("compute", self._clocks[lane])

    def begin_sample(self) -> None:
        """There is no clock of seconds."""

    def end_sample(self) -> None:
        """There is no clock of seconds."""

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Count nothing."""
        yield

    def watch(self) -> TorchDispatchMode:
        """Give a context in which what torch computes is an access, too."""
        return _Computing(self)

    def computed(self, reads: Sequence[Tensor], writes: Sequence[Tensor], what: str) -> None:
        """Note an operation of computing."""
        if self._is_copying:
            return
        self._clocks["compute"]["compute"] += 1
        for tensors, is_write in ((reads, False), (writes, True)):
            for tensor in tensors:
                if _storage(tensor) not in self._on_host:
                    self._access("compute", tensor, is_write, what)

    def _see(self, lane: str, mark: Any) -> None:  # noqa: ANN401
        self._clocks[lane] = _later(self._clocks[lane], mark)

    def _copy(self, lane: str, into: Tensor, source: Tensor, after: Sequence[Any]) -> Clock:
        for mark in after:
            if mark is not None:
                self._see(lane, mark)
        self._clocks[lane][lane] += 1
        self.num_copies += 1
        for tensor, is_write in ((source, False), (into, True)):
            if _storage(tensor) in self._on_host:
                found = self._accesses.get(_storage(tensor), [])
                found[:] = [access for access in found if access.lane != "compute"]
            self._access(lane, tensor, is_write, f"a copy {lane}")
        self._is_copying = True
        into.copy_(source)
        self._is_copying = False
        return dict(self._clocks[lane])

    def _access(self, lane: str, tensor: Tensor, is_write: bool, what: str) -> None:
        begin = tensor.storage_offset() * tensor.element_size()
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (last + 1) * tensor.element_size()
        if tensor.numel() == 0:
            return
        clock = self._clocks[lane]
        earlier = self._accesses.setdefault(_storage(tensor), [])
        kept = []
        for access in earlier:
            overlaps = access.begin < end and begin < access.end
            if overlaps and (access.writes or is_write) and access.tick > clock[access.lane]:
                self.races.append(f"{what} has not seen {access.what} ({access.lane})")
            is_inside = begin <= access.begin and access.end <= end
            stands_for = is_write or (access.lane == lane and not access.writes)
            if not (is_inside and stands_for):
                kept.append(access)
        kept.append(Access(begin, end, is_write, lane, clock[lane], what))
        earlier[:] = kept


class _Computing(TorchDispatchMode):
    def __init__(self, lanes: WatchedLanes) -> None:
        super().__init__()
        self._lanes = lanes

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        reads, writes = [], _tensors(result)
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            (writes if is_written else reads).extend(_tensors(value))
        self._lanes.computed(reads, writes, str(func))
        return result


def _tensors(value: Any) -> list[Tensor]:  # noqa: ANN401
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
