"""The weights a run begins with, put where they live: from a model folder, or drawn by a seed.

Exact weights begin with all bits of their source: what bfloat16 does not hold goes to the low bits.
Invariant: beside the weights no more than one parameter in fp32 is in memory.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from workbench.model.families import Dimensions
from workbench.model.safetensors_reader import read_into
from workbench.model.weights import draw_into, load_into, random_into, stored_weights
from workbench.training.optimizer.exact import write_exact

_SPLIT_ELEMENTS = 4 << 20  # at a time: splitting takes several times what it splits


def load_first_weights(
    folder: Path, dims: Dimensions, weights: Mapping[str, Tensor], low_bits: Mapping[str, Tensor]
) -> None:
    """Fill weights from a model folder.

    Args:
        folder: with safetensors or ``.bin`` of any floating dtype.
        dims: what its config.json says.
        weights: every parameter by Hugging Face name, where it lives.
        low_bits: int16 of each parameter's shape where weights are exact, else empty.

    Raises:
        RunError: the folder holds other weights, or none; nothing was changed then. Or a weight is
            not finite.
    """
    if not low_bits:
        load_into(folder, dims, weights)
        return
    for name, stored in stored_weights(folder, dims).items():
        values = torch.empty(stored.shape, dtype=torch.float32)
        read_into([(stored, values)], must_be_finite=True)
        _write_exact(values, weights[name], low_bits[name])


def draw_first_weights(
    dims: Dimensions, seed: int, weights: Mapping[str, Tensor], low_bits: Mapping[str, Tensor]
) -> None:
    """Fill weights with random numbers, which depend on the seed and their names alone.

    Args:
        dims: of the model.
        seed: any whole number from 0.
        weights: every parameter by Hugging Face name, where it lives.
        low_bits: int16 of each parameter's shape where weights are exact, else empty.
    """
    if not low_bits:
        (dtype,) = {weight.dtype for weight in weights.values()}
        random_into(dims, seed, dtype, weights)
        return
    for name, weight in weights.items():
        values = torch.empty(weight.shape, dtype=torch.float32)
        draw_into(values, dims, seed=seed, name=name, dtype=torch.float32)
        _write_exact(values, weight, low_bits[name])


def _write_exact(values: Tensor, weight: Tensor, low: Tensor) -> None:
    flat, high, rest = values.view(-1), weight.view(-1), low.view(-1)
    for begin in range(0, flat.numel(), _SPLIT_ELEMENTS):
        part = slice(begin, begin + _SPLIT_ELEMENTS)
        write_exact(flat[part], high[part], rest[part])
