"""AdamW with moments in fp32, 8 or 4 bits: one explicit update of one tensor, in place.

The rule is that of ``torch.optim.AdamW`` (Loshchilov and Hutter, "Decoupled Weight Decay
Regularization", 2019), worked out in fp32, with the decay joined to the change and one rounding of
the weight. The moments are companions: flat tensors that travel with the weight.

This file knows one tensor at a time and no model; on a GPU ``adamw_triton`` does the same in two
passes. Invariant: temporaries stay below ``TEMPORARY_BYTES`` on a GPU, whatever the shape, and
nothing is read back from the device.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from workbench.training.optimizer.exact import LOW, join_exact, write_exact
from workbench.training.optimizer.moments import FIRST, SECOND, Moments
from workbench.training.optimizer.protocol import NO_COMPANION, CompanionParts, Rounding
from workbench.training.optimizer.rounding import (
    NoiseKey,
    noise_key,
    round_stochastically,
    round_to_nearest,
)

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

TEMPORARY_BYTES = 64 << 20
# Elements of a piece. Quantizing to 8 bits needs about 70 bytes per element at its worst; on the
# CPU a piece stays in a core's cache.
_GPU_CHUNK, _CPU_CHUNK = 1 << 19, 1 << 15


def update(
    weight: Tensor,
    gradient: Tensor,
    companion: Mapping[str, Tensor],
    moments: Moments,
    *,
    step: int,
    learning_rate: float,
    weight_decay: float,
    noise: NoiseKey | None,
    low: Tensor | None = None,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
) -> Tensor:
    """Move one tensor by one step: moments and weight change in place.

    Args:
        weight: bfloat16 or fp32, contiguous.
        gradient: of the same shape, any floating dtype, contiguous.
        companion: the parts that ``moments`` names for this shape.
        moments: how the two moments are kept.
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
    is_cpu = weight.device.type == "cpu"
    chunk = _CPU_CHUNK if is_cpu else _GPU_CHUNK
    flat, flat_gradient = weight.view(-1), gradient.view(-1)
    pieces = [slice(begin, begin + chunk) for begin in range(0, flat.numel(), chunk)]
    norm_square = torch.stack(
        [flat_gradient[piece].to(torch.float32).square().sum() for piece in pieces]
    ).sum()
    healthy = norm_square.isfinite() if ok is None else norm_square.isfinite() & ok
    if is_cpu and not healthy:
        return norm_square
    for piece in pieces:
        gradient_32 = flat_gradient[piece].to(torch.float32)
        if scale is not None:
            gradient_32 = gradient_32 * scale
        first = moments.read(companion, FIRST, piece)
        second = moments.read(companion, SECOND, piece)
        new_first = torch.lerp(first, gradient_32, 1 - BETA1)
        new_second = torch.lerp(second, gradient_32.square(), 1 - BETA2)
        moments.write(companion, FIRST, piece, new_first, healthy)
        moments.write(companion, SECOND, piece, new_second, healthy)
        root = new_second.sqrt_().div_(math.sqrt(1 - BETA2**step)).add_(EPSILON)
        change = new_first.div_(root).mul_(learning_rate / (1 - BETA1**step))
        _write(
            flat[piece],
            change,
            learning_rate * weight_decay,
            noise,
            None if low is None else low.view(-1)[piece],
            healthy,
            piece.start,
        )
    return norm_square


def _write(
    weight: Tensor,
    change: Tensor,
    decay: float,
    noise: NoiseKey | None,
    low: Tensor | None,
    healthy: Tensor,
    begin: int,
) -> None:
    """Store weight - decay x weight - change, rounded once; ``change`` is used up."""
    old = weight if low is None else join_exact(weight, low)
    change.add_(old, alpha=decay)
    new = torch.sub(old, change, out=change)
    if weight.device.type != "cpu":
        torch.where(healthy, new, old, out=new)
    if low is not None:
        write_exact(new, weight, low)
    elif noise is not None and weight.dtype == torch.bfloat16:
        round_stochastically(new, weight, noise, begin)
    else:
        round_to_nearest(new, weight)


class AdamW:
    """The settings that all updates share; the moments travel with their weights.

    Args:
        dtype: of the weights.
        device: where updates happen.
        moments: how the two moments are kept.
        seed: from which the bits of stochastic rounding are made.
        weight_decay: share of a weight taken off per step, times the rate.
        rounding: of bfloat16 weights.
        apply: moves one tensor as ``update`` does; a GPU has a faster one.
    """

    def __init__(
        self,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device,
        moments: Moments,
        seed: int,
        weight_decay: float,
        rounding: Rounding,
        apply: Callable[..., Tensor] = update,
    ) -> None:
        self._moments = moments
        self._seed = seed
        self._weight_decay = weight_decay
        self._rounding = rounding if dtype == torch.bfloat16 else "nearest"
        self._apply = apply

    def companion(self, shape: tuple[int, ...]) -> CompanionParts:
        """Name both moments, and the low halves of exact weights."""
        parts = self._moments.parts(math.prod(shape))
        return {**parts, LOW: (shape, torch.int16)} if self._rounding == "exact" else parts

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
            companion,
            self._moments,
            step=step,
            learning_rate=learning_rate,
            weight_decay=self._weight_decay,
            noise=noise_key(self._seed, step, name) if is_stochastic else None,
            low=companion[LOW] if self._rounding == "exact" else None,
            scale=scale,
            ok=ok,
        )

    def named_tensors(self) -> dict[str, Tensor]:
        """Give nothing: all that AdamW remembers are companions."""
        return {}
