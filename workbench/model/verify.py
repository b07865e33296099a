"""Our logits against the reference implementation's: a difference is an error.

Loads transformers, which nothing else in this package does.
"""

from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.model.decoder import forward, row_context
from workbench.model.families import Dimensions, read_dimensions
from workbench.model.weights import read_weights

# Relative to the norm of the reference's logits; fp32 sums in another order stay below.
TOLERANCE = 1e-5

# Rows are this long, and longer only where a window or scaled positions begin to show before the
# second number: beyond it a row of a 7B takes minutes on a CPU.
_LENGTH, _LONGEST = 64, 512
_ORIGINAL = ("original_max_position_embeddings", "max_position_embeddings")


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


def telling_length(dims: Dimensions) -> int:
    """Give the length of a row that shows all a model does, as far as that is cheap to find out.

    A window of 100 tokens shows from the 101st on, and dynamic positions made for 200 from the
    201st; windows of thousands are not waited for.
    """
    numbers = dict(dims.rotary.numbers)
    limits = [dims.sliding_window, *(numbers.get(name) for name in _ORIGINAL)]
    near = [int(limit) + _LENGTH // 2 for limit in limits if limit is not None]
    return max([_LENGTH, *(length for length in near if length <= _LONGEST)])


def verify_logits(folder: Path, *, seed: int = 0, length: int | None = None) -> float:
    """Prove that a folder gives the reference's logits on random ids.

    Args:
        folder: a model folder or checkpoint.
        seed: of the ids.
        length: of the two rows, tokens; None: as ``telling_length`` says.

    Returns:
        As ``logit_difference``.

    Raises:
        RunError: the difference exceeds ``TOLERANCE``, or the folder is not a model of ours.
    """
    dims = read_dimensions(folder)
    generator = torch.Generator().manual_seed(seed)
    length = telling_length(dims) if length is None else length
    ids = torch.randint(dims.vocabulary_size, (2, length), generator=generator)
    difference = logit_difference(folder, ids)
    check_difference(difference, folder)
    return difference


def check_difference(difference: float, folder: Path) -> None:
    """Accept what fp32 sums in another order may differ by, and nothing more.

    Raises:
        RunError: the difference exceeds ``TOLERANCE``, or is none because logits are not numbers.
    """
    if not difference <= TOLERANCE:
        raise RunError(
            f"logits differ from the reference by {difference:.1e}, allowed is {TOLERANCE:.0e}",
            where=str(folder),
            remedy="report it with the model's config.json; do not train from this folder",
        )
