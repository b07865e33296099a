"""What the engine asks of an optimizer, and the words that its parts share.

An optimizer knows parameters by name and moves one tensor at a time. Invariant: what must travel
with a weight is a companion that the caller keeps; what stays on the device the optimizer keeps.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

Rounding = Literal["stochastic", "nearest", "exact"]
"""How an updated bfloat16 weight becomes bfloat16 again; fp32 weights are not rounded at all."""

CompanionParts = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor that travels with a parameter, by the name of the part."""

NO_COMPANION: Mapping[str, Tensor] = MappingProxyType({})
"""The companion of a parameter that needs none."""


class Optimizer(Protocol):
    """Moves one tensor at a time, in place; nothing waits for the device."""

    def companion(self, shape: tuple[int, ...]) -> CompanionParts:
        """Name the tensors that travel with a parameter of ``shape``; empty where none do.

        All of them begin as zeros, except ``low`` where the weights come from fp32: see
        ``exact.split_exact``.
        """
        ...

    def update(
        self,
        name: str,
        weight: Tensor,
        gradient: Tensor,
        companion: Mapping[str, Tensor] = NO_COMPANION,
        *,
        step: int,
        learning_rate: float,
        scale: Tensor | None = None,
        ok: Tensor | None = None,
    ) -> Tensor:
        """Move the parameter ``name`` by one step: weight, companion and statistics change.

        Where the gradient is not finite, or ``ok`` is false, none of them does; on a GPU that is
        decided on the device.

        Args:
            name: Hugging Face name of the parameter.
            weight: vector or matrix, bfloat16 or fp32, contiguous.
            gradient: of the same shape and device, bfloat16 or fp32, contiguous; left as it is.
            companion: the parts that ``companion`` names for this shape, on the same device.
            step: optimizer step, counted from 1.
            learning_rate: rate of this very step.
            scale: fp32 scalar on the device that multiplies the gradient first; None is one.
            ok: bool scalar on the device; None is true.

        Returns:
            () fp32 on the device: sum of squares of the gradient as given, before ``scale``.
        """
        ...

    def named_tensors(self) -> dict[str, Tensor]:
        """Give what stays on the device as ``<parameter>:<part>``; not copies."""
        ...
