"""Many tensors in one region: what travels together lies together.

A layout says where each tensor of a group begins; views of any region follow it, on the device or
on the host. Matrices that one product can serve are stacked: they lie without a gap, and one more
view covers them all. Invariant: each tensor that stands alone, and each stack, begins at a multiple
of 256 bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 256

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a region: its first byte, shape and dtype."""

    begin: int
    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Count the bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Places by name, and the bytes of the whole region."""

    places: Mapping[str, Place]
    num_bytes: int

    def views(self, region: Tensor) -> dict[str, Tensor]:
        """Give the tensors of a region (bytes,) uint8; it may be longer than the layout."""
        return {
            name: region[place.begin : place.begin + place.num_bytes]
            .view(place.dtype)
            .view(place.shape)
            for name, place in self.places.items()
        }


def flat_layout(
    tensors: Mapping[str, tuple[Shape, torch.dtype]],
    stacks: Mapping[str, Sequence[str]] | None = None,
) -> Layout:
    """Lay tensors out one after the other.

    Args:
        tensors: shape and dtype by name, in the order they are to lie.
        stacks: name of a stack to the names of its matrices, which follow each other in
            ``tensors`` and have equal widths; the layout gets a place of that name too.
    """
    inner = {name for names in (stacks or {}).values() for name in names[1:]}
    places: dict[str, Place] = {}
    end = 0
    for name, (shape, dtype) in tensors.items():
        if name not in inner:
            end = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        places[name] = Place(end, shape, dtype)
        end += places[name].num_bytes
    for stack, names in (stacks or {}).items():
        first = places[names[0]]
        height = sum(places[name].shape[0] for name in names)
        places[stack] = Place(first.begin, (height, *first.shape[1:]), first.dtype)
    return Layout(places, -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
