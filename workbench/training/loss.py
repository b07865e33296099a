"""Head and cross-entropy over the target rows alone, in chunks; sum and count, never a mean.

Rows whose next token is no target are dropped before the head. A chunk of logits is overwritten by
its own gradient, so logits never exist for all tokens x vocabulary. Nothing is read back from the
device. Invariant: the sum over chunks is the loss of the whole, whatever the chunk.

    target rows (N), chunk (C), hidden (D), vocabulary (V)
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.training.gradient import add_product


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


@dataclass(frozen=True)
class HeadLoss:
    """What the head found; every tensor is on the device.

    Attributes:
        loss_sum: () fp32, sum over target tokens.
        hidden_gradient: (N, D) of ``scale`` x loss_sum; None when it was not asked for.
        num_correct: () int64, tokens whose largest logit is the label; None when not asked for.
    """

    loss_sum: Tensor
    hidden_gradient: Tensor | None = None
    num_correct: Tensor | None = None


def head_loss(
    hidden_ND: Tensor,
    labels_N: Tensor,
    head_VD: Tensor,
    *,
    chunk: int,
    scale: float | None = None,
    head_gradient: Tensor | None = None,
    count_correct: bool = False,
) -> HeadLoss:
    """Compute the loss of target rows and, on the way, its gradients.

    Args:
        hidden_ND: normed hidden states of the target rows.
        labels_N: int64, the tokens to be predicted.
        head_VD: the head's matrix, of the same dtype.
        chunk: rows that pass the head together.
        scale: factor of the gradients, one over the target tokens of the step; None asks for none.
        head_gradient: (V, D) sum that the head's gradient is added to; None leaves it out.
        count_correct: count the tokens that the largest logit predicts.
    """
    loss_sum = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
    hidden_gradient = torch.empty_like(hidden_ND) if scale is not None else None
    for begin in range(0, hidden_ND.shape[0], chunk):
        rows_CD = hidden_ND[begin : begin + chunk]
        labels_C1 = labels_N[begin : begin + chunk, None]
        logits_CV = rows_CD @ head_VD.t()
        work_CV = logits_CV.to(torch.float32)
        log_sum_C1 = torch.logsumexp(work_CV, dim=1, keepdim=True)
        loss_sum += (log_sum_C1 - work_CV.gather(1, labels_C1)).sum()
        if count_correct:
            num_correct += (work_CV.argmax(dim=1, keepdim=True) == labels_C1).sum()
        if scale is None or hidden_gradient is None:
            continue
        work_CV.sub_(log_sum_C1).exp_().mul_(scale)
        work_CV.scatter_(1, labels_C1, work_CV.gather(1, labels_C1) - scale)
        if work_CV.dtype != logits_CV.dtype:
            logits_CV.copy_(work_CV)
        torch.mm(logits_CV, head_VD, out=hidden_gradient[begin : begin + chunk])
        if head_gradient is not None:
            add_product(head_gradient, logits_CV, rows_CD)
    return HeadLoss(loss_sum, hidden_gradient, num_correct if count_correct else None)
