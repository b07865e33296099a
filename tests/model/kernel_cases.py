"""Inputs for kernels, what float64 and autograd make of them, and what kernels make of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.kernels import Kernels, gated_product, rotate

EPSILON = 1e-5
# Rows, then widths: alone, odd, a block exactly, and one more than a block.
SIZES = ((1, 8), (3, 33), (37, 128), (5, 1025))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Give |found - expected| / |expected| in float64; NaN where either has one."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def wide(tensor: Tensor) -> Tensor:
    """Give a float64 leaf of autograd."""
    return tensor.detach().double().clone().requires_grad_()


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give a tensor that betrays each element that nothing was written to."""
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def norm_results(
    kernels: Kernels, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Run the norm forward and backward; give name, result, and what float64 finds."""
    x = random(rows, width, dtype=dtype, device=device)
    weight, gradient, onto = (
        random(*shape, dtype=dtype, device=device) for shape in ((width,), x.shape, x.shape)
    )
    weight_sum = random(width, dtype=torch.float32, device=device)
    wide_x, wide_weight = wide(x), wide(weight)
    out = F.rms_norm(wide_x, (width,), wide_weight, EPSILON)
    out.backward(gradient.double())
    expected_onto = onto.double() + wide_x.grad
    expected_sum = weight_sum.double() + wide_weight.grad
    found = poisoned(rows, width, dtype=dtype, device=device)
    kernels.norm(x, weight, EPSILON, out_TD=found)
    kernels.norm_backward(gradient, x, weight, EPSILON, onto_TD=onto, weight_sum_D=weight_sum)
    yield "norm", found, out
    yield "gradient of x", onto, expected_onto
    yield "gradient of the weight", weight_sum, expected_sum


def head_norm_results(
    kernels: Kernels,
    rows: int,
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Norm heads in the midst of wider rows, forward and backward; give name, result, float64's.

    What lies beside the heads is among the results: it has to stay.
    """
    begin, end = 3 * head_dim, (3 + num_heads) * head_dim
    wider, out, gradient = (
        random(rows, end + 2 * head_dim, dtype=dtype, device=device) for _ in range(3)
    )
    weight = random(head_dim, dtype=dtype, device=device)
    weight_sum = random(head_dim, dtype=torch.float32, device=device)
    wide_x, wide_weight = wide(wider[:, begin:end].unflatten(1, (-1, head_dim))), wide(weight)
    normed = F.rms_norm(wide_x, (head_dim,), wide_weight, EPSILON)
    normed.backward(gradient[:, begin:end].double().unflatten(1, (-1, head_dim)))
    assert wide_x.grad is not None
    assert wide_weight.grad is not None
    expected_out, expected_gradient = (tensor.double().clone() for tensor in (out, gradient))
    expected_out[:, begin:end] = normed.detach().flatten(1)
    expected_gradient[:, begin:end] = wide_x.grad.flatten(1)
    expected_sum = weight_sum.double() + wide_weight.grad
    x = wider[:, begin:end]
    kernels.norm_heads(x, weight, EPSILON, out_TN=out[:, begin:end])
    kernels.norm_heads_backward(gradient[:, begin:end], x, weight, EPSILON, weight_sum_R=weight_sum)
    yield "normed heads", out, expected_out
    yield "gradient of heads", gradient, expected_gradient
    yield "gradient of the heads' weight", weight_sum, expected_sum


def bias_results(
    kernels: Kernels, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Add a bias in the midst of wider rows, and sum its gradient; give name, result, float64's."""
    begin, end = 5, 5 + width
    x, gradient = (random(rows, end + 3, dtype=dtype, device=device) for _ in range(2))
    bias = random(width, dtype=dtype, device=device)
    onto = random(width, dtype=torch.float32, device=device)
    expected = x.double().clone()
    expected[:, begin:end] += bias.double()
    expected_sum = onto.double() + gradient[:, begin:end].double().sum(0)
    kernels.add_bias(x[:, begin:end], bias)
    kernels.add_columns(gradient[:, begin:end], onto_N=onto)
    yield "sum of rows and bias", x, expected
    yield "gradient of the bias", onto, expected_sum


@dataclass(frozen=True)
class Turned:
    """Queries, keys and values side by side, and how they are turned."""

    qkv: Tensor
    cosine: Tensor
    sine: Tensor
    num_heads: int
    num_key_heads: int
    head_dim: int

    def reference(self, qkv: Tensor) -> Tensor:
        """Give the qkv turned, in the dtype of the argument; autograd may follow."""
        turned = (self.num_heads + self.num_key_heads) * self.head_dim
        heads = qkv[:, :turned].unflatten(1, (1, -1, self.head_dim))
        tables = (table[:, None, None].to(qkv.dtype) for table in (self.cosine, self.sine))
        return torch.cat((rotate(heads, *tables).flatten(1), qkv[:, turned:]), dim=1)


def turned_case(
    rows: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Turned:
    """Draw queries, keys and values, and the angles of any positions."""
    num_heads, num_key_heads = heads
    width = (num_heads + 2 * num_key_heads) * head_dim
    angles = torch.rand(rows, head_dim // 2).mul(100).repeat(1, 2).to(device)
    return Turned(
        random(rows, width, dtype=dtype, device=device),
        angles.cos().to(dtype),
        angles.sin().to(dtype),
        num_heads,
        num_key_heads,
        head_dim,
    )


def rotate_result(kernels: Kernels, case: Turned) -> Tensor:
    found = case.qkv.clone()
    kernels.rotate(
        found,
        case.cosine,
        case.sine,
        num_heads=case.num_heads + case.num_key_heads,
        head_dim=case.head_dim,
    )
    return found


def packed_result(kernels: Kernels, case: Turned, gradient: Tensor, *, strided: bool) -> Tensor:
    """Turn a gradient like qkv back, handed over in three parts."""
    heads = gradient.unflatten(1, (-1, case.head_dim))
    parts = heads.split([case.num_heads, case.num_key_heads, case.num_key_heads], dim=1)
    if strided:  # heads before tokens, as attention kernels may write them
        parts = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts)
    found = poisoned(*gradient.shape, dtype=gradient.dtype, device=gradient.device)
    kernels.pack_rotated_back(*parts, case.cosine, case.sine, out_TE=found)
    return found


def packed_reference(case: Turned, gradient: Tensor) -> Tensor:
    leaf = wide(case.qkv)
    case.reference(leaf).backward(gradient.double())
    assert leaf.grad is not None
    return leaf.grad


def gated_results(
    kernels: Kernels, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Run the gated product forward and backward; give name, result, and what float64 finds."""
    gate_up = random(rows, 2 * width, dtype=dtype, device=device)
    gate_up[0, 0], gate_up[-1, width - 1] = 90.0, -90.0  # exponentials out of range
    leaf = wide(gate_up)
    gradient = random(rows, width, dtype=dtype, device=device)
    expected = gated_product(*leaf.chunk(2, dim=1))
    expected.backward(gradient.double())
    assert leaf.grad is not None
    found = poisoned(rows, width, dtype=dtype, device=device)
    kernels.gated_product(gate_up, out_TF=found)
    kernels.gated_product_backward(gate_up, gradient)
    yield "product", found, expected
    yield "product after backward", gradient, found
    yield "gradients", gate_up, leaf.grad


@dataclass(frozen=True)
class Losses:
    """What ``cross_entropy`` left behind."""

    losses: Tensor
    correct: Tensor
    logits: Tensor


def logits_case(
    rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw logits with ties among the largest, and labels that are sometimes right."""
    logits = random(rows, vocabulary, dtype=dtype, device=device) * 4
    labels = torch.randint(vocabulary, (rows,)).to(device)
    largest = logits.argmax(dim=1)
    labels[::2] = largest[::2]
    for column in (vocabulary // 2, vocabulary - 1):
        logits[::3, column] = logits[::3].amax(dim=1)
    return logits, labels


def losses_of(kernels: Kernels, logits: Tensor, labels: Tensor, scale: float | None) -> Losses:
    kept = logits.clone()
    losses = poisoned(logits.shape[0], dtype=torch.float32, device=logits.device)
    correct = torch.zeros_like(labels, dtype=torch.bool)
    kernels.cross_entropy(kept, labels, scale, losses_C=losses, correct_C=correct)
    return Losses(losses, correct, kept)


def expected_losses(logits: Tensor, labels: Tensor, scale: float) -> Losses:
    leaf = wide(logits)
    losses = F.cross_entropy(leaf, labels, reduction="none")
    (losses.sum() * scale).backward()
    assert leaf.grad is not None
    return Losses(losses.detach(), logits.argmax(dim=1) == labels, leaf.grad)


@dataclass(frozen=True)
class Rows:
    """Rows with an id each, sorted as ``add_rows`` wants them."""

    gradient: Tensor
    ids: Tensor
    order: Tensor
    begins: Tensor
    distinct: Tensor


def rows_case(ids: np.ndarray, width: int, dtype: torch.dtype, device: torch.device) -> Rows:
    distinct, counts = np.unique(ids, return_counts=True)
    arrays = (
        ids,
        np.argsort(ids, kind="stable"),
        np.concatenate(([0], np.cumsum(counts))),
        distinct,
    )
    return Rows(
        random(len(ids), width, dtype=dtype, device=device),
        *(torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays),
    )


def rows_result(kernels: Kernels, rows: Rows, onto: Tensor) -> tuple[Tensor, Tensor]:
    """Give the sum that ``add_rows`` leaves, and float64's."""
    expected = onto.double().index_add(0, rows.ids, rows.gradient.double())
    found = onto.clone()
    kernels.add_rows(rows.gradient, rows.order, rows.begins, rows.distinct, onto_VD=found)
    return found, expected
