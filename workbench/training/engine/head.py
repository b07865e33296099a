"""Final norm, head and loss over the target rows alone, in chunks; sum and count, never a mean.

Rows whose next token is no target are dropped before the head. A chunk of logits is overwritten by
its own gradient, so logits never exist for all tokens x vocabulary. Nothing is read back from the
device. Invariant: the sum over chunks is the loss of the whole, whatever the chunk.

    tokens of a microbatch (T), target rows (N), chunk (C), hidden (D), vocabulary (V)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.families import Dimensions
from workbench.model.kernels import Kernels
from workbench.training.gradient import add_product


@dataclass
class HeadSums:
    """Where the gradients of head and final norm are added.

    Attributes:
        head: (V, D).
        norm: (D,) fp32.
        is_empty: the first product overwrites ``head``; false from then on.
    """

    head: Tensor
    norm: Tensor
    is_empty: bool = True


class HeadPass:
    """Takes hidden states through final norm, head and loss, and back.

    Args:
        dims: of the model.
        chunk_rows: target rows that pass the head together.
        dtype: of activations.
        device: that computes.
        kernels: for what lies between products.
    """

    def __init__(
        self,
        dims: Dimensions,
        *,
        chunk_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._epsilon, self._kernels, self._chunk_rows = dims.norm_epsilon, kernels, chunk_rows
        width = dims.hidden_size
        self._picked, self._normed, self._moved = (
            torch.zeros(chunk_rows, width, dtype=dtype, device=device) for _ in range(3)
        )
        self._logits = torch.zeros(chunk_rows * dims.vocabulary_size, dtype=dtype, device=device)
        self._losses = torch.zeros(chunk_rows, dtype=torch.float32, device=device)
        self._correct = torch.zeros(chunk_rows, dtype=torch.bool, device=device)
        self._vocabulary_size = dims.vocabulary_size

    def device_bytes(self) -> int:
        """Count the bytes of all buffers."""
        buffers = self._picked, self._normed, self._moved, self._logits, self._losses, self._correct
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def train(
        self,
        hidden_TD: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        norm_D: Tensor,
        head_VD: Tensor,
        *,
        scale: float,
        sums: HeadSums,
        spare_TD: Tensor,
    ) -> Tensor:
        """Give the loss and leave the gradient of ``scale`` x loss where the hidden states were.

        Args:
            hidden_TD: of the last block; becomes the gradient.
            positions_N: int64, of the rows that predict a target.
            labels_N: int64, the tokens to be predicted.
            norm_D: weight of the final norm.
            head_VD: the head's matrix.
            scale: factor of the gradients, one over the target tokens of the step.
            sums: that the weights' gradients are added to.
            spare_TD: a buffer; overwritten.

        Returns:
            () fp32, the sum of the loss over target tokens.
        """
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        spare_TD.zero_()
        for positions_C, labels_C in self._chunks(positions_N, labels_N):
            rows_CD, normed_CD, logits_CV = self._logits_of(hidden_TD, positions_C, norm_D, head_VD)
            losses_C = self._losses[: len(labels_C)]
            self._kernels.cross_entropy(logits_CV, labels_C, scale, losses_C=losses_C)
            loss_sum += losses_C.sum()
            add_product(sums.head, logits_CV, normed_CD, is_empty=sums.is_empty)
            sums.is_empty = False
            torch.mm(logits_CV, head_VD, out=normed_CD)
            moved_CD = self._moved[: len(labels_C)].zero_()
            self._kernels.norm_backward(
                normed_CD, rows_CD, norm_D, self._epsilon, onto_TD=moved_CD, weight_sum_D=sums.norm
            )
            spare_TD.index_copy_(0, positions_C, moved_CD)
        hidden_TD.copy_(spare_TD)
        return loss_sum

    def evaluate(
        self,
        hidden_TD: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        norm_D: Tensor,
        head_VD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Give the sum of the loss, () fp32, and the tokens predicted, () int64.

        A token is predicted when its logit is the largest. Arguments as for ``train``.
        """
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden_TD.device)
        for positions_C, labels_C in self._chunks(positions_N, labels_N):
            _, _, logits_CV = self._logits_of(hidden_TD, positions_C, norm_D, head_VD)
            losses_C, correct_C = self._losses[: len(labels_C)], self._correct[: len(labels_C)]
            self._kernels.cross_entropy(
                logits_CV, labels_C, None, losses_C=losses_C, correct_C=correct_C
            )
            loss_sum += losses_C.sum()
            num_correct += correct_C.sum()
        return loss_sum, num_correct

    def logits(
        self, hidden_TD: Tensor, positions_N: Tensor, norm_D: Tensor, head_VD: Tensor
    ) -> Tensor:
        """Give what the model makes of every token behind these rows: (N, V) fp32.

        Arguments as for ``train``; the result is a copy, all of it at once.
        """
        parts = [
            self._logits_of(hidden_TD, positions_C, norm_D, head_VD)[2].float().clone()
            for positions_C, _ in self._chunks(positions_N, positions_N)
        ]
        return torch.cat(parts)

    def _chunks(self, positions_N: Tensor, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(0, len(positions_N), self._chunk_rows):
            chunk = slice(begin, begin + self._chunk_rows)
            yield positions_N[chunk], labels_N[chunk]

    def _logits_of(
        self, hidden_TD: Tensor, positions_C: Tensor, norm_D: Tensor, head_VD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the picked rows (C, D), the same normed, and their logits (C, V)."""
        num_rows = len(positions_C)
        rows_CD, normed_CD = self._picked[:num_rows], self._normed[:num_rows]
        torch.index_select(hidden_TD, 0, positions_C, out=rows_CD)
        self._kernels.norm(rows_CD, norm_D, self._epsilon, out_TD=normed_CD)
        logits_CV = self._logits[: num_rows * self._vocabulary_size].view(num_rows, -1)
        torch.mm(normed_CD, head_VD.t(), out=logits_CV)
        return rows_CD, normed_CD, logits_CV
