"""How the tensors of one block lie in a region: those that share an input on top of each other.

Matrices come first, so that queries, keys and values are one matrix and gate and up another; their
biases follow as one vector likewise. Weights and the sums of their gradients lie the same way.
Invariant: the order of Hugging Face is kept among matrices and among vectors.
"""

from collections.abc import Mapping

import torch

from workbench.model.decoder import BLOCK_STACKS, block_parameters
from workbench.model.families import Dimensions
from workbench.training.engine.flat import Layout, Shape, flat_layout

PRODUCTS: Mapping[str, tuple[str, ...]] = BLOCK_STACKS | {
    name: (name,) for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
}
"""The products of a block by the name of their matrix, and the parameters that make it up."""


def weight_layout(dims: Dimensions, dtype: torch.dtype) -> Layout:
    """Lay out all parameters of a block, with stacks of matrices and of biases."""
    shapes = block_parameters(dims)
    ordered = _matrices(shapes) | _vectors(shapes)
    return flat_layout(
        {name: (shape, dtype) for name, shape in ordered.items()}, BLOCK_STACKS | _stacks(shapes)
    )


def matrix_layout(dims: Dimensions, dtype: torch.dtype) -> Layout:
    """Lay out the matrices of a block alone, stacks included."""
    matrices = _matrices(block_parameters(dims))
    return flat_layout({name: (shape, dtype) for name, shape in matrices.items()}, BLOCK_STACKS)


def vector_layout(dims: Dimensions, dtype: torch.dtype) -> Layout:
    """Lay out the vectors of a block alone, stacks of biases included."""
    shapes = block_parameters(dims)
    vectors = _vectors(shapes)
    return flat_layout({name: (shape, dtype) for name, shape in vectors.items()}, _stacks(shapes))


def bias_columns(dims: Dimensions) -> dict[str, list[tuple[str, slice]]]:
    """Say for each product which biases are added to which of its columns.

    Returns:
        By the name of the product's matrix: names in ``weight_layout`` and columns, a whole stack
        where all of it has biases. Of queries alone: ``{"self_attn.qkv": [("self_attn.q_proj.bias",
        slice(0, 32))], ...}``.
    """
    shapes = block_parameters(dims)
    stacks = _stacks(shapes)
    found: dict[str, list[tuple[str, slice]]] = {}
    for product, names in PRODUCTS.items():
        places, end = [], 0
        for name in names:
            begin, end = end, end + shapes[name][0]
            if _bias(name) in shapes:
                places.append((_bias(name), slice(begin, end)))
        found[product] = [(_bias(product), slice(0, end))] if _bias(product) in stacks else places
    return found


def _stacks(shapes: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """Name the stacks of biases that are whole: one vector serves one product."""
    biases = {
        _bias(stack): tuple(_bias(name) for name in names) for stack, names in BLOCK_STACKS.items()
    }
    return {stack: names for stack, names in biases.items() if set(names) <= shapes.keys()}


def _bias(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"


def _matrices(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}


def _vectors(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if len(shape) == 1}
