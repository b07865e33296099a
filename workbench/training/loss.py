"""Which hidden states predict a target, and which token each must predict.

Knows ids and masks, no model. Invariant: a step's loss is the sum over these rows, divided by their
number in the whole step.
"""

import numpy as np
from numpy.typing import NDArray


def target_rows(
    ids: NDArray[np.int32], targets: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Say which hidden states predict a target, and which token each must predict.

    Args:
        ids: (rows, length) int32.
        targets: (rows, length), True where the token is predicted from the one before it and
            counts; never in the first column.

    Returns:
        positions and labels, (targets,) int64 each; positions count through all rows. Ids
        [[5, 6, 7]] with targets [[0, 1, 1]] give positions [0, 1] and labels [6, 7].
    """
    tokens = np.flatnonzero(targets)
    return tokens.astype(np.int64) - 1, ids.reshape(-1)[tokens].astype(np.int64)
