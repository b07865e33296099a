"""Which optimizer a name stands for, from plain values."""

from collections.abc import Mapping
from typing import Literal

import torch

from workbench.training.optimizer.adafactor import Adafactor
from workbench.training.optimizer.protocol import Optimizer, Rounding

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
    """
    assert name == "adafactor", name
    return Adafactor(
        shapes,
        dtype=dtype,
        device=device,
        seed=seed,
        weight_decay=weight_decay,
        rounding=rounding,
    )
