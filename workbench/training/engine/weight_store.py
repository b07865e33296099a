"""Where weights live: on the device, or in host memory with slots that they pass through.

The model is cut into units: the embedding, each block, the head. A unit is one flat region with
views of Hugging Face names, so that one copy moves all of it. The engine acquires a unit, reads or
updates it in place, and releases it or writes it back; whether it had to travel is decided here.
What an optimizer keeps of a unit beside its weights (low bits, moments) is its companion and
travels for updates alone.

Invariant: a slot is overwritten only after what read or changed it has passed, and a unit goes up
only after its last copy down has ended.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    block_parameters,
    block_prefix,
    parameter_shapes,
)
from workbench.model.families import Dimensions
from workbench.training.engine.block_layout import weight_layout
from workbench.training.engine.flat import Layout, Shape, flat_layout
from workbench.training.engine.host_memory import check_host_memory, pinned_bytes
from workbench.training.engine.lanes import Lanes, Mark

Companion = Mapping[str, tuple[Shape, torch.dtype]]
"""What travels with one parameter: shape and dtype by part."""


@dataclass(eq=False)
class _Slot:
    """A region of the device that units pass through, and who is in it."""

    region: Tensor
    unit: str | None = None
    ready: Mark | None = None  # the copy up of the unit has ended
    free: Mark | None = None  # what was computed with it has passed
    drained: Mark | None = None  # the last copy down from it has ended
    in_use: bool = False
    acquired: int = 0  # turn of its last acquisition


@dataclass
class _Unit:
    """One flat region, on the device or on the host."""

    layout: Layout
    region: Tensor
    on_device: bool
    views: dict[str, Tensor] = field(init=False)
    written: Mark | None = None  # the last copy down has ended

    def __post_init__(self) -> None:
        self.views = self.layout.views(self.region)


class _Travels:
    """Units of one kind, and the slots that those on the host pass through.

    Args:
        layouts: by unit.
        on_device: units that stay on the device.
        slots: how many; 0 where nothing travels.
        device: of the slots.
        purpose: of the host memory, in words for errors.
        lanes: that copy.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        *,
        on_device: frozenset[str],
        slots: int,
        device: torch.device,
        purpose: str,
        lanes: Lanes,
    ) -> None:
        self._lanes = lanes
        self._turn = 0
        travelling = [name for name in layouts if name not in on_device]
        longest = max((layouts[name].num_bytes for name in travelling), default=0)
        if travelling:  # before the first is allocated: a machine without memory stands still
            check_host_memory(
                sum(layouts[name].num_bytes for name in travelling),
                f"{purpose} {len(travelling)} streamed parts",
            )
        self._slots = [
            # Free once its zeros are written: a copy up must not come before them.
            _Slot(torch.zeros(longest, dtype=torch.uint8, device=device), free=lanes.mark())
            for _ in range(slots if longest else 0)
        ]
        self.units: dict[str, _Unit] = {}
        for name, layout in layouts.items():
            stays = name in on_device
            self.units[name] = _Unit(
                layout,
                torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
                if stays
                else pinned_bytes(layout.num_bytes, purpose=f"{purpose} {name}", device=device),
                on_device=stays,
            )

    @property
    def slot_bytes(self) -> int:
        """Count the bytes of all slots."""
        return sum(slot.region.numel() for slot in self._slots)

    @property
    def resident_bytes(self) -> int:
        """Count the bytes of units that stay on the device."""
        return sum(unit.region.numel() for unit in self.units.values() if unit.on_device)

    def prefetch(self, ahead: Iterable[str]) -> None:
        """Begin to bring the first unit that travels, if a slot can be had."""
        for name in ahead:
            if not self.units[name].on_device:
                self._fetch(name)
                return

    def acquire(self, name: str, *, for_update: bool) -> dict[str, Tensor]:
        """Give a unit's views on the device, ready to be read, or to be changed too."""
        unit = self.units[name]
        if unit.on_device:
            return unit.views
        slot = self._fetch(name)
        assert slot is not None, f"no slot is free for {name}"
        self._turn += 1
        slot.acquired, slot.in_use = self._turn, True
        self._lanes.wait(slot.ready)
        if for_update:
            self._lanes.wait(slot.drained)  # a copy down may still read it
        return unit.layout.views(slot.region)

    def release(self, name: str) -> None:
        """Say that an unchanged unit is no longer read."""
        slot = self._holder(name)
        if slot is not None:
            slot.in_use, slot.free = False, self._lanes.mark()

    def write_back(self, name: str) -> None:
        """Say that a unit was changed and is no longer read; its host copy follows."""
        slot, unit = self._holder(name), self.units[name]
        if slot is None:
            return
        size = unit.layout.num_bytes
        unit.written = self._lanes.down(unit.region, slot.region[:size], after=[self._lanes.mark()])
        slot.in_use, slot.drained = False, unit.written

    def forget(self) -> None:
        """Take nothing in a slot for current any more."""
        for slot in self._slots:
            assert not slot.in_use, f"{slot.unit} is still in use"
            slot.unit = None

    def _holder(self, name: str) -> _Slot | None:
        return next((slot for slot in self._slots if slot.unit == name), None)

    def _fetch(self, name: str) -> _Slot | None:
        """Give the slot that a unit is in or on its way to; None where every slot is needed.

        The slot that was acquired longest ago gives way: at the turn from forward to backward, and
        from one step to the next, the units that come first are still there.
        """
        slot = self._holder(name)
        if slot is not None:
            return slot
        idle = [slot for slot in self._slots if not slot.in_use]
        if not idle:
            return None
        slot = min(idle, key=lambda slot: slot.acquired)
        unit = self.units[name]
        slot.ready = self._lanes.up(
            slot.region[: unit.layout.num_bytes],
            unit.region,
            after=[slot.free, slot.drained, unit.written],
        )
        self._turn += 1
        slot.unit, slot.acquired = name, self._turn
        return slot


class WeightStore:
    """The weights of a model, by units, wherever they live.

    Args:
        dims: of the model.
        dtype: of the weights.
        device: that computes.
        resident_blocks: whose weights stay on the device.
        vocabulary_resident: embedding and head stay there too.
        slots: of the blocks that travel; two or three.
        companion: gives what travels with a parameter of a shape; empty for most optimizers.
        companions_resident: companions stay on the device.
        lanes: that copy.

    Raises:
        WorkbenchError: host memory does not hold what travels.
    """

    def __init__(
        self,
        dims: Dimensions,
        dtype: torch.dtype,
        device: torch.device,
        *,
        lanes: Lanes,
        resident_blocks: frozenset[int] | None = None,
        vocabulary_resident: bool = True,
        slots: int = 3,
        companion: Callable[[Shape], Companion] = lambda _: {},
        companions_resident: bool = False,
    ) -> None:
        self._dims, self._dtype, self._device, self._lanes = dims, dtype, device, lanes
        if resident_blocks is None:
            resident_blocks = frozenset(range(dims.num_layers))
        vocabulary = {EMBEDDING: (dims.vocabulary_size, dims.hidden_size)}
        if not dims.tied:
            vocabulary[HEAD] = (dims.vocabulary_size, dims.hidden_size)
        inside = block_parameters(dims)
        block = weight_layout(dims, dtype)
        block_beside = _companion_layout(inside, companion)
        block_names = [block_name(block) for block in range(dims.num_layers)]

        def travels(
            layouts: Mapping[str, Layout], on_device: Iterable[str], slots: int, purpose: str
        ) -> _Travels:
            return _Travels(
                layouts, on_device=frozenset(on_device), slots=slots, device=device,
                purpose=purpose, lanes=lanes,
            )  # fmt: skip

        self._blocks = travels(
            dict.fromkeys(block_names, block),
            (block_name(block) for block in resident_blocks),
            slots,
            "the weights of",
        )
        self._vocabulary = travels(
            {name: flat_layout({name: (shape, dtype)}) for name, shape in vocabulary.items()},
            vocabulary if vocabulary_resident else (),
            1,
            "the weights of",
        )
        self._block_companions = travels(
            dict.fromkeys(block_names, block_beside),
            block_names if companions_resident else (),
            2,
            "what the optimizer keeps of",
        )
        self._vocabulary_companions = travels(
            {
                name: _companion_layout({name: shape}, companion)
                for name, shape in vocabulary.items()
            },
            vocabulary if companions_resident else (),
            1,
            "what the optimizer keeps of",
        )
        self.final_norm = torch.zeros(dims.hidden_size, dtype=dtype, device=device)
        beside = _companion_layout({FINAL_NORM: (dims.hidden_size,)}, companion)
        region = torch.zeros(beside.num_bytes, dtype=torch.uint8, device=device)
        self.final_norm_companion = _by_parameter(beside.views(region)).get(FINAL_NORM, {})

    # ---- what the engine asks ----

    def acquire(
        self, block: int, *, ahead: Iterable[int] = (), for_update: bool = False
    ) -> dict[str, Tensor]:
        """Give a block's weights by relative name, stacks included, ready on the device.

        Args:
            block: from 0.
            ahead: blocks in the order they will be acquired after it; the first of them that
                travels begins to.
            for_update: the weights will be changed in place.
        """
        views = self._blocks.acquire(block_name(block), for_update=for_update)
        ahead = list(ahead)
        self._blocks.prefetch(block_name(other) for other in ahead)
        if for_update and self._has_companions:
            self._block_companions.prefetch([block_name(block)])
            self._block_companions.prefetch(block_name(other) for other in ahead)
        return views

    def companion(self, block: int) -> dict[str, dict[str, Tensor]]:
        """Give what travels with a block for its update, by relative name and part."""
        if not self._has_companions:
            return {}
        name = block_name(block)
        return _by_parameter(self._block_companions.acquire(name, for_update=True))

    def release(self, block: int) -> None:
        """Say that an unchanged block is no longer read."""
        self._blocks.release(block_name(block))

    def write_back(self, block: int) -> None:
        """Say that a block and its companion were changed in place and are no longer read."""
        self._blocks.write_back(block_name(block))
        if self._has_companions:
            self._block_companions.write_back(block_name(block))

    def acquire_vocabulary(self, name: str, *, for_update: bool = False) -> Tensor:
        """Give the embedding or the head (V, D); where they are tied both are the embedding."""
        name = self._stored(name)
        matrix = self._vocabulary.acquire(name, for_update=for_update)[name]
        self.prefetch_vocabulary(name, for_update=for_update)
        return matrix

    def prefetch_vocabulary(self, name: str, *, for_update: bool = False) -> None:
        """Begin to bring the embedding or the head, and for an update its companion too."""
        name = self._stored(name)
        self._vocabulary.prefetch([name])
        if for_update and self._has_companions:
            self._vocabulary_companions.prefetch([name])

    def vocabulary_companion(self, name: str) -> dict[str, Tensor]:
        """Give what travels with the embedding or the head for its update, by part."""
        if not self._has_companions:
            return {}
        name = self._stored(name)
        found = _by_parameter(self._vocabulary_companions.acquire(name, for_update=True))
        return found[name]

    def release_vocabulary(self, name: str) -> None:
        """Say that the unchanged embedding or head is no longer read."""
        self._vocabulary.release(self._stored(name))

    def write_back_vocabulary(self, name: str) -> None:
        """Say that the embedding or head was changed and is no longer read."""
        name = self._stored(name)
        self._vocabulary.write_back(name)
        if self._has_companions:
            self._vocabulary_companions.write_back(name)

    def settle(self) -> None:
        """Wait until every host copy is current; host copies may then be read and be changed."""
        self._lanes.join()
        for kind in self._kinds:
            kind.forget()

    # ---- what loading and saving ask ----

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give every parameter once, by full name, in Hugging Face order, where it lives.

        After ``settle`` these are the current values; what is written to them counts.
        """
        tensors = {FINAL_NORM: self.final_norm}
        for name, unit in self._vocabulary.units.items():
            tensors[name] = unit.views[name]
        inside = list(block_parameters(self._dims))
        for block in range(self._dims.num_layers):
            views = self._blocks.units[block_name(block)].views
            tensors |= {block_prefix(block) + name: views[name] for name in inside}
        for name in parameter_shapes(self._dims):
            yield name, tensors[name]

    def named_companions(self) -> Iterator[tuple[str, Tensor]]:
        """Give what travels with the parameters as ``<parameter>:<part>``, where it lives."""
        if not self._has_companions:
            return
        beside: dict[str, dict[str, Tensor]] = {FINAL_NORM: self.final_norm_companion}
        for name, unit in self._vocabulary_companions.units.items():
            beside[name] = _by_parameter(unit.views)[name]
        for block in range(self._dims.num_layers):
            found = _by_parameter(self._block_companions.units[block_name(block)].views)
            beside |= {block_prefix(block) + name: parts for name, parts in found.items()}
        for name in parameter_shapes(self._dims):
            for part, tensor in beside[name].items():
                yield f"{name}:{part}", tensor

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in by full name.

        Raises:
            RunError: a name is missing or unknown, or a shape differs.
        """
        self.settle()
        ours = dict(self.named_tensors())
        missing, unknown = sorted(set(ours) - set(weights)), sorted(set(weights) - set(ours))
        if missing or unknown:
            raise _do_not_fit(f"missing {missing[:5]}, unknown {unknown[:5]}")
        for name, tensor in weights.items():
            if ours[name].shape != tensor.shape:
                raise _do_not_fit(f"{name} is {tuple(tensor.shape)}, not {tuple(ours[name].shape)}")
            ours[name].copy_(tensor)

    def device_bytes(self) -> dict[str, int]:
        """Count what lies on the device: weights, slots, resident companions."""
        outside = self.final_norm.numel() * self.final_norm.element_size()
        companions = (self._block_companions, self._vocabulary_companions)
        return {
            "weights": self._blocks.resident_bytes + self._vocabulary.resident_bytes + outside,
            "slots": sum(kind.slot_bytes for kind in self._kinds),
            "companions": sum(kind.resident_bytes for kind in companions),
        }

    @property
    def _kinds(self) -> tuple[_Travels, ...]:
        return self._blocks, self._vocabulary, self._block_companions, self._vocabulary_companions

    @property
    def _has_companions(self) -> bool:
        return bool(self.final_norm_companion)

    def _stored(self, name: str) -> str:
        return EMBEDDING if self._dims.tied else name


def block_name(block: int) -> str:
    """Name the unit of a block."""
    return f"block {block}"


def _companion_layout(
    shapes: Mapping[str, Shape], companion: Callable[[Shape], Companion]
) -> Layout:
    return flat_layout(
        {
            f"{name}:{part}": place
            for name, shape in shapes.items()
            for part, place in companion(shape).items()
        }
    )


def _by_parameter(views: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in views.items():
        parameter, _, part = name.rpartition(":")
        found.setdefault(parameter, {})[part] = tensor
    return found


def _do_not_fit(what: str) -> RunError:
    return RunError(
        f"weights do not fit the model: {what}",
        where="model weights",
        remedy="give model.path a folder whose weights belong to its config.json",
    )
