"""Rows for attention tests: document starts, and queries, keys, values that share one buffer."""

import torch
from torch import Tensor

from workbench.model.attention_twin import dense_attention, visible


def starts_of(lengths: list[list[int]]) -> Tensor:
    """Give (rows, documents) int32 starts; a length of 0 is an empty document."""
    starts = [[sum(row[:number]) for number in range(len(row))] for row in lengths]
    return torch.tensor(starts, dtype=torch.int32)


def views_of_one_buffer(
    rows: int,
    length: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give q, k, v side by side in a (tokens, width) buffer, and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    widths = [heads[0] * head_dim, heads[1] * head_dim, heads[1] * head_dim]
    buffer = torch.randn(rows * length, sum(widths), generator=generator).to(device, dtype)
    q, k, v = (part.view(rows, length, -1, head_dim) for part in torch.split(buffer, widths, 1))
    gradient = torch.randn(rows, length, heads[0], head_dim, generator=generator)
    return q, k, v, gradient.to(device, dtype)


def twin_results(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, starts: Tensor, window: int | None
) -> tuple[Tensor, ...]:
    """Give out, dq, dk and dv of the dense twin in float64 by autograd."""
    mask = visible(starts.to(q.device), q.shape[1], window)
    leaves = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    by_head = [leaf.transpose(1, 2) for leaf in leaves]
    out = dense_attention(by_head[0], by_head[1], by_head[2], mask).transpose(1, 2)
    return (out.detach(), *torch.autograd.grad(out, leaves, gradient.double()))


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Give the norm of the difference over the norm of the reference."""
    return float((ours.double() - reference).norm() / reference.norm())
