"""What one microbatch is: three arrays, numpy until a training step moves them to its device.

Padding is a document of its own behind the last one, so attention never joins it to anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows that pass the model together.

    Attributes:
        ids: (rows, length) int32, padding filled with the padding id.
        targets: (rows, length) bool, True where the token is predicted from the one before it and
            counts in the loss. False at the first token of each document and in padding.
        document_starts: (rows, max_documents) int32, ascending from 0, the tail repeats
            ``length``; max_documents is the same for every batch of a loader. A row of 8 with two
            documents of 3 and 2 tokens: [0, 3, 5, 8, 8].
        num_tokens: tokens that are not padding.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    document_starts: NDArray[np.int32]
    num_tokens: int

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return int(self.targets.sum())

    @property
    def row_length(self) -> int:
        """Tokens of a row, padding included."""
        return int(self.ids.shape[1])
