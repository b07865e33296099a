"""The sums that a step's gradients are added to: one block's at a time, and the vocabulary's.

Head, blocks and embedding have theirs one after the other, so they share one region; that of a tied
head must outlive the blocks and has its own. Invariant: sums of vectors are fp32, always.
"""

import torch

from workbench.model.decoder import BLOCK_STACKS, block_parameters
from workbench.model.families import Dimensions
from workbench.training.engine.flat import flat_layout


class GradientSums:
    """Buffers of a step's gradients.

    Attributes:
        matrices: of the block that is at work, by relative name, stacks included.
        norms: of that block, fp32, by relative name.
        vocabulary: (V, D), the head's and later the embedding's; one and the same where tied.
        final_norm: (D,) fp32.
    """

    def __init__(self, dims: Dimensions, sum_dtype: torch.dtype, device: torch.device) -> None:
        shapes = block_parameters(dims)
        matrices = flat_layout(
            {name: (shape, sum_dtype) for name, shape in shapes.items() if len(shape) == 2},
            BLOCK_STACKS,
        )
        shape = (dims.vocabulary_size, dims.hidden_size)
        vocabulary = flat_layout({"vocabulary": (shape, sum_dtype)})
        sizes = matrices.num_bytes, vocabulary.num_bytes
        together = sum(sizes) if dims.tied else max(sizes)
        self._region = torch.zeros(together, dtype=torch.uint8, device=device)
        self.matrices = matrices.views(self._region)
        begin = matrices.num_bytes if dims.tied else 0
        self.vocabulary = vocabulary.views(self._region[begin:])["vocabulary"]
        norms = {name: shape for name, shape in shapes.items() if len(shape) == 1}
        self.norms = {
            name: torch.zeros(shape, dtype=torch.float32, device=device)
            for name, shape in norms.items()
        }
        self.final_norm = torch.zeros(dims.hidden_size, dtype=torch.float32, device=device)

    def device_bytes(self) -> int:
        """Count the bytes of all sums."""
        vectors = [*self.norms.values(), self.final_norm]
        return self._region.numel() + sum(4 * vector.numel() for vector in vectors)
