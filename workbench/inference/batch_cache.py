"""Keys and values of several rows that end at the same column: what a batch remembers.

Rows of different lengths are padded on the left, so the newest token of each stands in the last
column. Room is taken ahead, so a token costs a copy of itself and not of everything before it.
All layers keep whole rows, also where attention looks back over a window only: the mask does that,
and rows can join and leave at any column. Invariant: every layer has the same rows and columns.

Shapes: R rows, H heads, C columns, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.cache_utils import Cache, CacheLayerMixin

# Columns taken ahead: few enough for small models, and a copy of all every so often is little.
_ROOM = 128


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, in buffers with room at the right."""

    is_sliding = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin without columns, for rows and heads as they come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys_RHCD = key_states[:, :, :0]
        self._values_RHCD = value_states[:, :, :0]
        self.num_columns = 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; give all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.num_columns, self.num_columns + key_states.shape[2]
        if end > self._keys_RHCD.shape[2]:
            self._keys_RHCD = self._with_room(self._keys_RHCD, end)
            self._values_RHCD = self._with_room(self._values_RHCD, end)
        self._keys_RHCD[:, :, begin:end] = key_states
        self._values_RHCD[:, :, begin:end] = value_states
        self.num_columns = end
        self.keys, self.values = self._keys_RHCD[:, :, :end], self._values_RHCD[:, :, :end]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Give the columns there will be, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Count the columns."""
        return self.num_columns if self.is_initialized else 0

    def get_max_length(self) -> int:
        """Say that there is no limit."""
        return -1

    def replace(self, keys_RHCD: torch.Tensor, values_RHCD: torch.Tensor) -> None:
        """Take other rows and columns in place of all."""
        self._keys_RHCD, self._values_RHCD = keys_RHCD, values_RHCD
        self.num_columns = keys_RHCD.shape[2]
        self.keys, self.values = keys_RHCD, values_RHCD

    def cut_to(self, num_columns: int) -> None:
        """Forget what lies behind so many columns."""
        self.num_columns = min(self.num_columns, num_columns)
        self.keys = self._keys_RHCD[:, :, : self.num_columns]
        self.values = self._values_RHCD[:, :, : self.num_columns]

    def _with_room(self, old_RHCD: torch.Tensor, num_columns: int) -> torch.Tensor:
        rows, heads, _, width = old_RHCD.shape
        room = max(_ROOM, num_columns // 4)
        new_RHCD = old_RHCD.new_empty((rows, heads, num_columns + room, width))
        new_RHCD[:, :, : self.num_columns] = old_RHCD[:, :, : self.num_columns]
        return new_RHCD


class BatchCache(Cache):
    """Keys and values of all layers."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    @property
    def num_columns(self) -> int:
        """Columns that every layer has."""
        return next((layer.get_seq_length() for layer in self._filled()), 0)

    def keep(self, rows: Sequence[int], first_column: int) -> None:
        """Forget all other rows, and the columns before the first.

        Args:
            rows: to keep, ascending, at least one.
            first_column: all rows that are kept have padding only before it.
        """
        for layer in self._filled():
            index = torch.tensor(rows, device=layer.keys.device)
            layer.replace(
                layer.keys[:, :, first_column:].index_select(0, index),
                layer.values[:, :, first_column:].index_select(0, index),
            )

    def append_rows(self, other: "BatchCache") -> None:
        """Put other rows below these; the narrower ones are padded on the left."""
        width = max(self.num_columns, other.num_columns)
        for layer, added in zip(self._filled(), other._filled(), strict=True):
            layer.replace(
                torch.cat([_widened(layer.keys, width), _widened(added.keys, width)]),
                torch.cat([_widened(layer.values, width), _widened(added.values, width)]),
            )

    def cut_to(self, num_columns: int) -> None:
        """Forget columns that only some layers have: a forward ended in the middle."""
        for layer in self._filled():
            layer.cut_to(num_columns)

    def _filled(self) -> list[Any]:
        layers: list[Any] = list(self.layers)
        return [layer for layer in layers if layer.is_initialized]


def _widened(states_RHCD: torch.Tensor, width: int) -> torch.Tensor:
    """Pad on the left, with zeros: what is masked must still be a number."""
    return functional.pad(states_RHCD, (0, 0, width - states_RHCD.shape[2], 0))
