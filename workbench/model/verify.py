"""Our logits against the reference implementation's: a difference is an error.

Loads transformers, which nothing else in this package does.
"""

from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.model.decoder import forward, row_context
from workbench.model.families import read_dimensions
from workbench.model.weights import read_weights

# Relative to the norm of the reference's logits; fp32 sums in another order stay below.
TOLERANCE = 1e-5


def logit_difference(folder: Path, ids: Tensor, attention: str = "dense") -> float:
    """Measure how far our fp32 logits are from transformers' on the same rows.

    Args:
        folder: a model folder or checkpoint.
        ids: (rows, length) int64, each row one document.
        attention: ``model.attention`` for our side.

    Returns:
        Norm of the difference over the norm of the reference.

    Raises:
        RunError: the folder is not a model of ours.
    """
    from transformers import AutoModelForCausalLM

    dims = read_dimensions(folder)
    weights = read_weights(folder, dims, torch.float32)
    rows, length = ids.shape
    starts = torch.zeros((rows, 1), dtype=torch.int32)
    context = row_context(starts, length, dims, torch.float32, attention)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    with torch.inference_mode():
        ours = forward(weights, ids, context, dims)
        theirs = reference(ids).logits
    return float((ours - theirs).norm() / theirs.norm())


def verify_logits(folder: Path, *, seed: int = 0, length: int = 64) -> float:
    """Prove that a folder gives the reference's logits on random ids.

    Raises:
        RunError: the difference exceeds ``TOLERANCE``, or the folder is not a model of ours.
    """
    dims = read_dimensions(folder)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(dims.vocabulary_size, (2, length), generator=generator)
    difference = logit_difference(folder, ids)
    if not difference <= TOLERANCE:
        raise RunError(
            f"logits differ from the reference by {difference:.1e}, allowed is {TOLERANCE:.0e}",
            where=str(folder),
            remedy="report it with the model's config.json; do not train from this folder",
        )
    return difference
