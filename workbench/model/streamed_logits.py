"""Logits of a model folder with one block in memory at a time, so that any model fits.

For comparing folders, not for speed: every weight is read anew, in fp32, on the CPU. Invariant:
beside the activations of a few short rows no more than the largest block, or the head, is held.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    block_forward,
    block_parameters,
    block_prefix,
    embed,
    final_norm,
    row_context,
)
from workbench.model.families import Dimensions, read_dimensions
from workbench.model.safetensors_reader import StoredTensor, read_into
from workbench.model.weights import stored_weights

Tell = Callable[[int, int], None]
"""Told how many bytes of weights are done, and of how many."""


def probe_ids(dims: Dimensions, *, rows: int = 2, length: int = 32, seed: int = 0) -> Tensor:
    """Draw ids to compare models by: (rows, length) int64, each row one document."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(dims.vocabulary_size, (rows, length), generator=generator)


def streamed_logits(folder: Path, ids: Tensor, tell: Tell | None = None) -> Tensor:
    """Compute the logits of a model folder, block after block.

    Args:
        folder: a model folder or checkpoint.
        ids: (rows, length) int64, each row one document.
        tell: how far it is.

    Returns:
        (rows, length, vocabulary) fp32.

    Raises:
        RunError: the folder is not a model of ours.
    """
    dims = read_dimensions(folder)
    stored = stored_weights(folder, dims)
    total = sum(each.num_bytes for each in stored.values())
    done = 0

    def read(*names: str) -> list[Tensor]:
        nonlocal done
        tensors = [_read(stored[name]) for name in names]
        done += sum(stored[name].num_bytes for name in names)
        if tell is not None:
            tell(min(done, total), total)  # a tied head is read twice
        return tensors

    starts = torch.zeros((len(ids), 1), dtype=torch.int32)
    context = row_context(starts, ids.shape[1], dims, torch.float32, "dense")
    # No inference mode: threads of the reader fill these tensors, and it does not hold in them.
    with torch.no_grad():
        x = embed(read(EMBEDDING)[0], ids)
        for block in range(dims.num_layers):
            names = list(block_parameters(dims))
            tensors = read(*(block_prefix(block) + name for name in names))
            x = block_forward(dict(zip(names, tensors, strict=True)), x, context, dims, block)
            del tensors
        x = final_norm(read(FINAL_NORM)[0], x, dims)
        return F.linear(x, read(EMBEDDING if dims.tied else HEAD)[0])


def _read(stored: StoredTensor) -> Tensor:
    tensor = torch.empty(stored.shape, dtype=torch.float32)
    read_into([(stored, tensor)])
    return tensor


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Give the norm of the difference over the norm of the reference; infinite where NaN is."""
    difference = float((ours - reference).norm() / reference.norm())
    return difference if difference == difference else float("inf")


def reference_logits(folder: Path, ids: Tensor) -> Tensor:
    """Compute the logits of a model folder by transformers, the whole model in fp32 in memory.

    Raises:
        OSError, ValueError: transformers cannot load the folder.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: Tensor = model(ids).logits
    return logits


def num_fp32_bytes(folder: Path) -> int:
    """Count the bytes of a model's weights in fp32."""
    shapes = (each.shape for each in stored_weights(folder, read_dimensions(folder)).values())
    return 4 * sum(math.prod(shape) for shape in shapes)
