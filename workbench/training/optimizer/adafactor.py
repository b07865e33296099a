"""Adafactor without momentum: one explicit update of one tensor, in place.

A matrix keeps two fp32 vectors, the running sums of its squared gradient over rows and over
columns; a vector keeps its whole second moment. The rule and its constants: Shazeer and Stern,
"Adafactor" (2018), sections 4 to 6, with an external learning rate and no scaling by the weight.

This file knows one tensor at a time and no model; on a GPU ``adafactor_triton`` does the same in
four passes. Invariant: a weight is rounded once per update, decay included, and nothing is read
back from the device.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.training.optimizer.exact import LOW, join_exact, write_exact
from workbench.training.optimizer.protocol import NO_COMPANION, CompanionParts, Rounding
from workbench.training.optimizer.rounding import (
    NoiseKey,
    noise_key,
    round_stochastically,
    round_to_nearest,
)

DECAY_EXPONENT = -0.8
LARGEST_BETA2 = 0.999
ADDED_TO_SQUARE = 1e-30
CLIP_THRESHOLD = 1.0


@dataclass(frozen=True)
class Statistics:
    """fp32 second moments of one tensor, updated in place.

    Either ``row`` (rows,) and ``column`` (columns,) of a matrix, or ``full`` of a vector.
    """

    row: Tensor | None = None
    column: Tensor | None = None
    full: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Give the tensors that exist by their name; the same tensors, not copies."""
        tensors = {"row": self.row, "column": self.column, "full": self.full}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def new_statistics(shape: torch.Size | tuple[int, ...], device: torch.device) -> Statistics:
    """Make the zero statistics of a tensor that has not been updated yet.

    Raises:
        AssertionError: the tensor has more than two dimensions.
    """
    assert len(shape) in (1, 2), f"Adafactor factors matrices and vectors, not shape {shape}"
    if len(shape) == 1:
        return Statistics(full=torch.zeros(shape[0], dtype=torch.float32, device=device))
    return Statistics(
        row=torch.zeros(shape[0], dtype=torch.float32, device=device),
        column=torch.zeros(shape[1], dtype=torch.float32, device=device),
    )


def beta2(step: int) -> float:
    """Give the share of the old second moment that step ``step`` (from 1) keeps; 0 at first."""
    return min(1.0 - math.pow(step, DECAY_EXPONENT), LARGEST_BETA2)


def update(
    weight: Tensor,
    gradient: Tensor,
    statistics: Statistics,
    *,
    step: int,
    learning_rate: float,
    weight_decay: float,
    noise: NoiseKey | None,
    low: Tensor | None = None,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
) -> Tensor:
    """Move one tensor by one step: statistics and weight change in place.

    Where the gradient is not finite, or ``ok`` is false, neither changes; on a GPU that is decided
    on the device.

    Args:
        weight: vector or matrix, bfloat16 or fp32, contiguous.
        gradient: of the same shape, any floating dtype.
        statistics: what ``new_statistics`` made for this shape.
        step: optimizer step, counted from 1.
        learning_rate: rate of this very step.
        weight_decay: share of the weight taken off, times the rate.
        noise: key for stochastic rounding; None rounds to nearest. fp32 weights are not rounded.
        low: int16 low halves of exact weights, changed in place; None where there are none.
        scale: fp32 scalar on the device that multiplies the gradient first; None is one.
        ok: bool scalar on the device; None is true.

    Returns:
        () fp32 on the device: sum of squares of the gradient as given, before ``scale``.
    """
    gradient_32 = gradient.to(torch.float32)
    square = gradient_32 * gradient_32
    if weight.dim() == 1:
        return _update_vector(
            weight, gradient_32, square, statistics, step, learning_rate, weight_decay, noise,
            low, scale, ok,
        )  # fmt: skip
    row_sum = square.sum(dim=1)
    norm_square = row_sum.sum()
    healthy = norm_square.isfinite() if ok is None else norm_square.isfinite() & ok
    if weight.device.type == "cpu" and not healthy:
        return norm_square
    column_sum = square.sum(dim=0)
    rows, columns = weight.shape
    factor: Tensor | float = 1.0
    if scale is not None:
        factor = scale.square()
        row_sum *= factor
        column_sum *= factor
    kept = beta2(step)
    assert statistics.row is not None
    assert statistics.column is not None
    row = torch.lerp(row_sum + columns * ADDED_TO_SQUARE, statistics.row, kept)
    column = torch.lerp(column_sum + rows * ADDED_TO_SQUARE, statistics.column, kept)
    # Second moment of (i, j) is row i x column j / sum(row). Taken apart like this it neither
    # underflows nor overflows: rows without a gradient stand beside rows with a huge one.
    total = row.sum()
    row_factor = row.rsqrt().mul_(total.sqrt())
    column_factor = column.rsqrt()
    # Mean square of the update, from the squares that are at hand: one pass less over the matrix.
    mean_square = torch.dot(row.reciprocal(), square @ column.reciprocal())
    mean_square *= total * factor / (rows * columns)
    length = learning_rate / (mean_square.sqrt() / CLIP_THRESHOLD).clamp_(min=1.0)
    if scale is not None:
        length = length * scale
    change = torch.mul(gradient_32, (row_factor * length)[:, None], out=square)
    change *= column_factor
    del gradient_32  # of a large matrix it is the largest thing here
    _write(weight, change, learning_rate * weight_decay, noise, low, healthy)
    _keep(statistics.row, row, healthy)
    _keep(statistics.column, column, healthy)
    return norm_square


def _update_vector(
    weight: Tensor,
    gradient_32: Tensor,
    square: Tensor,
    statistics: Statistics,
    step: int,
    learning_rate: float,
    weight_decay: float,
    noise: NoiseKey | None,
    low: Tensor | None,
    scale: Tensor | None,
    ok: Tensor | None,
) -> Tensor:
    norm_square = square.sum()
    healthy = norm_square.isfinite() if ok is None else norm_square.isfinite() & ok
    if weight.device.type == "cpu" and not healthy:
        return norm_square
    if scale is not None:
        gradient_32 = gradient_32 * scale
        square *= scale.square()
    assert statistics.full is not None
    full = torch.lerp(square + ADDED_TO_SQUARE, statistics.full, beta2(step))
    change = gradient_32 * full.rsqrt()
    root_mean_square = change.square().mean().sqrt_()
    change *= learning_rate / (root_mean_square / CLIP_THRESHOLD).clamp_(min=1.0)
    _write(weight, change, learning_rate * weight_decay, noise, low, healthy)
    _keep(statistics.full, full, healthy)
    return norm_square


def _write(
    weight: Tensor,
    change: Tensor,
    decay: float,
    noise: NoiseKey | None,
    low: Tensor | None,
    healthy: Tensor,
) -> None:
    """Store weight - decay x weight - change, rounded once; ``change`` is used up."""
    old = weight if low is None else join_exact(weight, low)
    # The decay joins the small change first: a factor of 1 - decay is 1 in fp32 below 3e-8.
    change.add_(old, alpha=decay)
    if weight.dtype == torch.float32 and weight.device.type == "cpu":
        weight.sub_(change)
        return
    new = torch.sub(old, change, out=change)
    if weight.device.type != "cpu":
        torch.where(healthy, new, old, out=new)
    if low is not None:
        write_exact(new, weight, low)
    elif noise is not None and weight.dtype == torch.bfloat16:
        # A value that is a bfloat16 already is left alone by rounding: a skipped update is exact.
        round_stochastically(new, weight, noise)
    else:
        round_to_nearest(new, weight)


def _keep(old: Tensor, new: Tensor, healthy: Tensor) -> None:
    old.copy_(new if old.device.type == "cpu" else torch.where(healthy, new, old))


class Adafactor:
    """The statistics of all tensors by name, and the settings their updates share.

    Args:
        shapes: of every parameter, by its name.
        dtype: of the weights.
        device: of the statistics, and of every update.
        seed: from which the bits of stochastic rounding are made.
        weight_decay: share of a weight taken off per step, times the rate.
        rounding: of bfloat16 weights.
        apply: moves one tensor as ``update`` does; a GPU has a faster one.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device,
        seed: int,
        weight_decay: float,
        rounding: Rounding,
        apply: Callable[..., Tensor] = update,
    ) -> None:
        self.statistics = {name: new_statistics(shape, device) for name, shape in shapes.items()}
        self._seed = seed
        self._weight_decay = weight_decay
        self._rounding = rounding if dtype == torch.bfloat16 else "nearest"
        self._apply = apply

    def companion(self, shape: tuple[int, ...]) -> CompanionParts:
        """Name the low halves of exact weights, or nothing."""
        return {LOW: (shape, torch.int16)} if self._rounding == "exact" else {}

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
        """Move the parameter ``name``; arguments and result as of ``Optimizer.update``."""
        is_stochastic = self._rounding == "stochastic"
        return self._apply(
            weight,
            gradient,
            self.statistics[name],
            step=step,
            learning_rate=learning_rate,
            weight_decay=self._weight_decay,
            noise=noise_key(self._seed, step, name) if is_stochastic else None,
            low=companion[LOW] if self._rounding == "exact" else None,
            scale=scale,
            ok=ok,
        )

    def named_tensors(self) -> dict[str, Tensor]:
        """Give every statistic as ``<parameter>:<row, column or full>``; not copies."""
        return {
            f"{name}:{part}": tensor
            for name, statistics in self.statistics.items()
            for part, tensor in statistics.named().items()
        }
