"""Which optimizer a name stands for, from plain values."""

import logging
from collections.abc import Callable, Mapping
from typing import Literal, assert_never

import torch
from torch import Tensor

from workbench.training.optimizer import adafactor, adamw
from workbench.training.optimizer.adafactor import Adafactor
from workbench.training.optimizer.adamw import AdamW
from workbench.training.optimizer.moments import FullMoments, Moments, SmallMoments
from workbench.training.optimizer.protocol import Optimizer, Rounding

logger = logging.getLogger(__name__)

OptimizerName = Literal["adafactor", "adamw", "adamw_8bit", "adamw_4bit"]


def new_optimizer(
    name: OptimizerName,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    weight_decay: float,
    rounding: Rounding,
) -> Optimizer:
    """Make the optimizer called ``name``, with the statistics of a run that has not begun.

    Args:
        name: ``optimizer.name``.
        shapes: of every parameter, by its Hugging Face name; tied weights once.
        dtype: of the weights.
        device: where updates happen.
        seed: ``training.seed``, from which the bits of stochastic rounding are made.
        weight_decay: share of a weight taken off per step, times the rate.
        rounding: how an updated bfloat16 weight becomes bfloat16 again.

    Raises:
        ConfigError: the optimizer needs torchao, which is not installed.
    """
    if name == "adafactor":
        return Adafactor(
            shapes,
            dtype=dtype,
            device=device,
            seed=seed,
            weight_decay=weight_decay,
            rounding=rounding,
            apply=_adafactor_on(device, shapes),
        )
    return AdamW(
        dtype=dtype,
        device=device,
        moments=_moments(name, device),
        seed=seed,
        weight_decay=weight_decay,
        rounding=rounding,
        apply=_adamw_on(device),
    )


def _adafactor_on(
    device: torch.device, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[..., Tensor]:
    """Give the twin, or what does the same faster on a GPU."""
    if device.type != "cuda":
        return adafactor.update
    try:
        from workbench.training.optimizer.adafactor_triton import FusedUpdate
    except ImportError:
        logger.warning("Triton is missing: Adafactor takes several times longer on this GPU")
        return adafactor.update
    return FusedUpdate(shapes.values(), device)


def _adamw_on(device: torch.device) -> Callable[..., Tensor]:
    """Give the twin, or what does the same faster on a GPU."""
    if device.type != "cuda":
        return adamw.update
    try:
        from workbench.training.optimizer.adamw_triton import FusedUpdate
    except ImportError:
        logger.warning("Triton is missing: AdamW takes several times longer on this GPU")
        return adamw.update
    return FusedUpdate(device)


def _moments(name: Literal["adamw", "adamw_8bit", "adamw_4bit"], device: torch.device) -> Moments:
    match name:
        case "adamw":
            return FullMoments()
        case "adamw_8bit":
            return SmallMoments(8, device)
        case "adamw_4bit":
            return SmallMoments(4, device)
        case _:
            assert_never(name)
