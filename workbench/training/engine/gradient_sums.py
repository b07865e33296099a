"""The sums that a step's gradients are added to: one block's at a time, and the vocabulary's.

Head, blocks and embedding have theirs one after the other, so they share one region; that of a tied
head must outlive the blocks and has its own. Invariant: sums of vectors are fp32, always.
"""

import torch

from workbench.model.families import Dimensions
from workbench.training.engine.block_layout import matrix_layout, vector_layout
from workbench.training.engine.flat import flat_layout


class GradientSums:
    """Buffers of a step's gradients.

    Attributes:
        matrices: of the block that is at work, by relative name, stacks included.
        vectors: of that block, fp32, by relative name: norms and biases, stacks included.
        vocabulary: (V, D), the head's and later the embedding's; one and the same where tied.
        final_norm: (D,) fp32.
    """

    def __init__(self, dims: Dimensions, sum_dtype: torch.dtype, device: torch.device) -> None:
        matrices = matrix_layout(dims, sum_dtype)
        shape = (dims.vocabulary_size, dims.hidden_size)
        vocabulary = flat_layout({"vocabulary": (shape, sum_dtype)})
        sizes = matrices.num_bytes, vocabulary.num_bytes
        together = sum(sizes) if dims.tied else max(sizes)
        self._region = torch.zeros(together, dtype=torch.uint8, device=device)
        self.matrices = matrices.views(self._region)
        begin = matrices.num_bytes if dims.tied else 0
        self.vocabulary = vocabulary.views(self._region[begin:])["vocabulary"]
        vectors = vector_layout(dims, torch.float32)
        self._vectors = torch.zeros(vectors.num_bytes, dtype=torch.uint8, device=device)
        self.vectors = vectors.views(self._vectors)
        self.final_norm = torch.zeros(dims.hidden_size, dtype=torch.float32, device=device)

    def clear_vectors(self) -> None:
        """Begin the sums of a block's vectors anew; those of matrices are overwritten instead."""
        self._vectors.zero_()

    def device_bytes(self) -> int:
        """Count the bytes of all sums."""
        return self._region.numel() + self._vectors.numel() + 4 * self.final_norm.numel()
