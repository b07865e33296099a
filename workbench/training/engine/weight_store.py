"""Where weights live: per block one flat buffer with views of Hugging Face names.

The engine acquires a block, reads or updates the views, and releases it; whether the block stayed
on the device or travelled there is the store's affair. This form keeps every block resident.
Invariant: each tensor begins at a multiple of 256 bytes of its buffer.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

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

_ALIGNMENT_BYTES = 256


def flat_views(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make one zeroed buffer and a view of it per name, in order.

    Returns:
        The buffer (elements,) and the views, each at a multiple of 256 bytes.
    """
    align = _ALIGNMENT_BYTES // dtype.itemsize
    begins: dict[str, int] = {}
    length = 0
    for name, shape in shapes.items():
        begins[name] = length
        length += -(-torch.Size(shape).numel() // align) * align
    buffer = torch.zeros(length, dtype=dtype, device=device)
    views = {
        name: buffer[begins[name] : begins[name] + torch.Size(shape).numel()].view(shape)
        for name, shape in shapes.items()
    }
    return buffer, views


class WeightStore(Protocol):
    """What the engine asks of a store; a streaming form answers the same calls."""

    embedding: Tensor
    final_norm: Tensor
    head: Tensor

    def acquire(self, block: int) -> Mapping[str, Tensor]:
        """Give a block's weights by relative name, ready on the device."""

    def prefetch(self, block: int) -> None:
        """Begin to bring a block that is acquired next; out of range asks for nothing."""

    def release(self, block: int) -> None:
        """Say that an unchanged block is no longer read."""

    def write_back(self, block: int) -> None:
        """Say that a block's weights were changed in place and are no longer read."""

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give every parameter once, by full name, in Hugging Face order."""


class ResidentStore:
    """A store whose weights never leave the device.

    ``head`` is ``embedding`` itself where the model ties them.
    """

    def __init__(self, dims: Dimensions, dtype: torch.dtype, device: torch.device) -> None:
        self._dims = dims
        self._blocks = [
            flat_views(block_parameters(dims), dtype, device)[1] for _ in range(dims.num_layers)
        ]
        vocabulary = (dims.vocabulary_size, dims.hidden_size)
        self.embedding = torch.zeros(vocabulary, dtype=dtype, device=device)
        self.final_norm = torch.zeros(dims.hidden_size, dtype=dtype, device=device)
        self.head = (
            self.embedding if dims.tied else torch.zeros(vocabulary, dtype=dtype, device=device)
        )

    def acquire(self, block: int) -> Mapping[str, Tensor]:
        """Give a block's weights by relative name; always the same tensors."""
        return self._blocks[block]

    def prefetch(self, block: int) -> None:
        """Nothing to bring: every block is here."""

    def release(self, block: int) -> None:
        """Nothing to give up: every block stays."""

    def write_back(self, block: int) -> None:
        """Nothing to write: the update changed the only copy."""

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give every parameter once, by full name, in Hugging Face order."""
        outside = {EMBEDDING: self.embedding, FINAL_NORM: self.final_norm, HEAD: self.head}
        inside = {
            block_prefix(block) + name: tensor
            for block, views in enumerate(self._blocks)
            for name, tensor in views.items()
        }
        tensors = outside | inside
        for name in parameter_shapes(self._dims):
            yield name, tensors[name]

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in by full name; as ``load_each``."""
        self.load_each(weights.items())

    def load_each(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights in one at a time, so that no second copy of the model exists.

        Raises:
            RunError: a name is missing or unknown, or a shape differs.
        """
        ours = dict(self.named_tensors())
        unknown: list[str] = []
        missing = set(ours)
        for name, tensor in weights:
            if name not in ours:
                unknown.append(name)
            elif ours[name].shape != tensor.shape:
                raise _do_not_fit(f"{name} is {tuple(tensor.shape)}, not {tuple(ours[name].shape)}")
            else:
                ours[name].copy_(tensor)
                missing.discard(name)
        if missing or unknown:
            raise _do_not_fit(f"missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}")


def _do_not_fit(what: str) -> RunError:
    return RunError(
        f"weights do not fit the model: {what}",
        where="model weights",
        remedy="give model.path a folder whose weights belong to its config.json",
    )
