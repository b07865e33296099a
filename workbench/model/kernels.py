"""Norm, rotary, gated MLP, loss and row sums: what each must compute, and how it is computed.

The three functions on top return new tensors: the decoder reads by them, and they round where
transformers rounds. ``Kernels`` is what the engine calls: forward and backward on flattened
tensors that somebody else owns, written in place. ``EagerKernels`` is its twin in plain torch; it
defines what a faster kernel must equal, and it is what runs on a CPU. Nothing here waits for the
device or draws a random number, and equal inputs give equal bits.

    tokens (T), hidden (D), a head's width (R), query heads (H), key and value heads (K),
    queries, keys and values side by side (E = (H + 2K) R), intermediate (F), vocabulary (V),
    rows of a chunk of logits (C), rows whose sum is wanted (S), distinct ids (K),
    columns of wider rows (N)
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Scale each vector to a root mean square of one, times ``weight``.

    Args:
        x: (..., hidden), any float dtype.
        weight: (hidden,), the dtype of x.
        epsilon: added to the mean square, in fp32.

    Returns:
        (..., hidden), the dtype of x.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of a head by its position's angle.

    Args:
        x: (rows, length, heads, head_dim).
        cosine: (rows, length, 1, head_dim), from ``rotary.rotary_tables``.
        sine: the same shape.

    Returns:
        The shape and dtype of x.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``silu(gate)`` by ``up``: what the down projection reads.

    Args:
        gate: (..., intermediate).
        up: (..., intermediate).
    """
    return F.silu(gate) * up


class Kernels(Protocol):
    """The elementwise work of a block, the head and the embedding, on tensors of the caller.

    Every tensor lies on one device, is contiguous unless said otherwise, and has the dtype of the
    activations (bf16 or fp32) unless said otherwise. Forward kernels round where the functions
    above round; backward kernels work in fp32 inside and round once per output. Nothing waits for
    the device, and equal inputs give equal bits.
    """

    def norm(self, x_TD: Tensor, weight_D: Tensor, epsilon: float, *, out_TD: Tensor) -> None:
        """Write ``rms_norm(x, weight)``.

        Args:
            x_TD: what is normed; unchanged.
            weight_D: of the norm.
            epsilon: added to the mean square.
            out_TD: written; not x itself.
        """

    def norm_backward(
        self,
        gradient_TD: Tensor,
        x_TD: Tensor,
        weight_D: Tensor,
        epsilon: float,
        *,
        onto_TD: Tensor,
        weight_sum_D: Tensor,
    ) -> None:
        """Add the gradient of the norm's input to what is there, and that of its weight.

        Args:
            gradient_TD: of the norm's result; unchanged.
            x_TD: what was normed; unchanged.
            weight_D: of the norm.
            epsilon: as in ``norm``.
            onto_TD: the gradient of x is added, with one rounding of the sum; neither ``gradient``
                nor x itself.
            weight_sum_D: fp32; the gradient of the weight is added.
        """

    def rotate(
        self, qkv_TE: Tensor, cosine_TR: Tensor, sine_TR: Tensor, *, num_heads: int, head_dim: int
    ) -> None:
        """Turn the first ``num_heads`` heads of each row in place, as the function ``rotate`` does.

        Args:
            qkv_TE: queries, keys and values side by side; the values behind stay as they are.
            cosine_TR: second half of a row repeats the first.
            sine_TR: the same.
            num_heads: query heads and key heads together.
            head_dim: R, even.
        """

    def pack_rotated_back(
        self,
        dq_THR: Tensor,
        dk_TKR: Tensor,
        dv_TKR: Tensor,
        cosine_TR: Tensor,
        sine_TR: Tensor,
        *,
        out_TE: Tensor,
    ) -> None:
        """Undo the rotation of the gradients of queries and keys, and put all three side by side.

        Args:
            dq_THR: of the turned queries; the first two axes may have any stride, here and below.
            dk_TKR: of the turned keys.
            dv_TKR: of the values.
            cosine_TR: as in ``rotate``.
            sine_TR: the same.
            out_TE: written, E = (H + 2K) R.
        """

    def norm_heads(self, x_TN: Tensor, weight_R: Tensor, epsilon: float, *, out_TN: Tensor) -> None:
        """Write ``rms_norm(head, weight)`` for each head of each row.

        Args:
            x_TN: N / R heads side by side; rows may have any stride, here and below; unchanged.
            weight_R: of the norm, the same for all heads.
            epsilon: added to the mean square.
            out_TN: written; not x itself.
        """

    def norm_heads_backward(
        self,
        gradient_TN: Tensor,
        x_TN: Tensor,
        weight_R: Tensor,
        epsilon: float,
        *,
        weight_sum_R: Tensor,
    ) -> None:
        """Replace the gradient of ``norm_heads``'s result by that of its input; add its weight's.

        Args:
            gradient_TN: of the normed heads before; of the heads themselves afterwards.
            x_TN: what was normed; unchanged.
            weight_R: of the norm.
            epsilon: as in ``norm_heads``.
            weight_sum_R: fp32; the gradient of the weight is added.
        """

    def add_bias(self, x_TN: Tensor, bias_N: Tensor) -> None:
        """Add the bias to each row in place, rounded once.

        Args:
            x_TN: rows may have any stride.
            bias_N: the dtype of x.
        """

    def add_columns(self, gradient_TN: Tensor, *, onto_N: Tensor) -> None:
        """Add up each column: the gradient of a bias.

        Args:
            gradient_TN: rows may have any stride; unchanged.
            onto_N: fp32; the sums are added.
        """

    def gated_product(self, gate_up_T2F: Tensor, *, out_TF: Tensor) -> None:
        """Write ``silu(gate) * up``.

        Args:
            gate_up_T2F: gate in the first half of each row, up in the second; unchanged.
            out_TF: written.
        """

    def gated_product_backward(self, gate_up_T2F: Tensor, product_TF: Tensor) -> None:
        """Replace gate and up by their gradients, and the product's gradient by the product.

        Args:
            gate_up_T2F: gate and up before; their gradients afterwards.
            product_TF: the gradient of the product before; afterwards the product itself, bit for
                bit what ``gated_product`` wrote.
        """

    def cross_entropy(
        self,
        logits_CV: Tensor,
        labels_C: Tensor,
        scale: float | None,
        *,
        losses_C: Tensor,
        correct_C: Tensor | None = None,
    ) -> None:
        """Write each row's loss and, with a scale, overwrite its logits by their gradient.

        Args:
            logits_CV: with a scale they become ``scale * (softmax(logits) - onehot(label))``,
                rounded once; without one they stay.
            labels_C: int64, each within 0..V-1.
            scale: factor of the gradient; None asks for none.
            losses_C: fp32, written; not scaled.
            correct_C: bool, written: the largest logit, the first of equal ones, is the label's.
        """

    def add_rows(
        self,
        gradient_SD: Tensor,
        order_S: Tensor,
        begins_K1: Tensor,
        ids_K: Tensor,
        *,
        onto_VD: Tensor,
    ) -> None:
        """Add rows of equal id and their sum to the row of that id, in one fixed order.

        ``onto[ids[k]] += sum of gradient[order[j]]`` over begins[k] <= j < begins[k + 1], summed
        in fp32 and rounded once. The order of a sum depends on the number of its rows alone. With
        ids 7 5 7, order is [1, 0, 2], begins is [0, 1, 3] and ids is [5, 7].

        Args:
            gradient_SD: any rows; unchanged.
            order_S: int64, the rows sorted by id.
            begins_K1: int64, where each distinct id begins in ``order``; S at the end.
            ids_K: int64, the distinct ids, K of them.
            onto_VD: a sum of its own dtype, bf16 or fp32.
        """


class EagerKernels:
    """``Kernels`` in plain torch operations, for any device and any float dtype.

    In fp32 it writes where the result belongs and keeps few temporaries: a small model trains
    on it. float64 stays float64 throughout.
    """

    def norm(self, x_TD: Tensor, weight_D: Tensor, epsilon: float, *, out_TD: Tensor) -> None:
        """See ``Kernels.norm``."""
        wide = x_TD.to(_work_dtype(x_TD))
        work = out_TD if out_TD.dtype == wide.dtype else torch.empty_like(wide)
        inverse_T1 = _inverse_root(wide, epsilon, work)
        torch.mul(wide, inverse_T1, out=work)
        if work is not out_TD:
            out_TD.copy_(work)
        out_TD.mul_(weight_D)

    def norm_backward(
        self,
        gradient_TD: Tensor,
        x_TD: Tensor,
        weight_D: Tensor,
        epsilon: float,
        *,
        onto_TD: Tensor,
        weight_sum_D: Tensor,
    ) -> None:
        """See ``Kernels.norm_backward``."""
        dtype = _work_dtype(x_TD)
        gradient, x, weight = gradient_TD.to(dtype), x_TD.to(dtype), weight_D.to(dtype)
        onto = onto_TD.to(dtype)
        # With s = 1 / rms(x), n = s x and g = gradient * weight: dx = s (g - n mean(g n)).
        work = torch.empty_like(x)
        inverse_T1 = _inverse_root(x, epsilon, work)
        torch.mul(gradient, x, out=work)
        weight_sum_D.add_(torch.mv(work.t(), inverse_T1[:, 0]))
        along_T = torch.mv(work, weight)
        along_T1 = along_T[:, None] * inverse_T1.pow(3) / x.shape[1]
        torch.mul(gradient, weight, out=work)
        onto.addcmul_(work, inverse_T1).addcmul_(x, along_T1, value=-1)
        if onto is not onto_TD:
            onto_TD.copy_(onto)

    def rotate(
        self, qkv_TE: Tensor, cosine_TR: Tensor, sine_TR: Tensor, *, num_heads: int, head_dim: int
    ) -> None:
        """See ``Kernels.rotate``."""
        heads_THR = qkv_TE[:, : num_heads * head_dim].view(-1, num_heads, head_dim)
        # Whole heads at a time: half ones are too short for a CPU's vectors.
        signed_sine = sine_TR.clone()
        signed_sine[:, : head_dim // 2].neg_()
        swapped_THR = heads_THR.roll(head_dim // 2, dims=-1).mul_(signed_sine[:, None])
        heads_THR.mul_(cosine_TR[:, None]).add_(swapped_THR)

    def pack_rotated_back(
        self,
        dq_THR: Tensor,
        dk_TKR: Tensor,
        dv_TKR: Tensor,
        cosine_TR: Tensor,
        sine_TR: Tensor,
        *,
        out_TE: Tensor,
    ) -> None:
        """See ``Kernels.pack_rotated_back``."""
        dtype = _work_dtype(dq_THR)
        cosine = cosine_TR[:, None].to(dtype)
        sine = _half(sine_TR).to(dtype)
        head_dim, begin = dq_THR.shape[2], 0
        for part_TNR in (dq_THR, dk_TKR):
            end = begin + part_TNR.shape[1] * head_dim
            out_TNR = out_TE[:, begin:end].view(part_TNR.shape)
            part_TNR = part_TNR.to(dtype)
            work_TNR = out_TNR if out_TNR.dtype == dtype else torch.empty_like(part_TNR)
            work_TNR.copy_(part_TNR).mul_(cosine)
            (first, second), (work_first, work_second) = (
                part_TNR.chunk(2, -1),
                work_TNR.chunk(2, -1),
            )
            work_first.addcmul_(second, sine)
            work_second.addcmul_(first, sine, value=-1)
            if work_TNR is not out_TNR:
                out_TNR.copy_(work_TNR)
            begin = end
        out_TE[:, begin:].view(dv_TKR.shape).copy_(dv_TKR)

    def norm_heads(self, x_TN: Tensor, weight_R: Tensor, epsilon: float, *, out_TN: Tensor) -> None:
        """See ``Kernels.norm_heads``."""
        x_THR, out_THR = (_heads(part, weight_R) for part in (x_TN, out_TN))
        wide_THR = x_THR.to(_work_dtype(x_TN))
        inverse_TH1 = wide_THR.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        out_THR.copy_(wide_THR * inverse_TH1).mul_(weight_R)

    def norm_heads_backward(
        self,
        gradient_TN: Tensor,
        x_TN: Tensor,
        weight_R: Tensor,
        epsilon: float,
        *,
        weight_sum_R: Tensor,
    ) -> None:
        """See ``Kernels.norm_heads_backward``."""
        dtype = _work_dtype(x_TN)
        gradient_THR, x_THR = (_heads(part, weight_R).to(dtype) for part in (gradient_TN, x_TN))
        inverse_TH1 = x_THR.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        normed_THR = x_THR * inverse_TH1
        # As for whole rows: dx = s (g - n mean(g n)), n = s x and g = gradient * weight.
        weight_sum_R.add_((gradient_THR * normed_THR).sum((0, 1)))
        given_THR = gradient_THR * weight_R.to(dtype)
        along_TH1 = (given_THR * normed_THR).mean(-1, keepdim=True)
        given_THR.addcmul_(normed_THR, along_TH1, value=-1).mul_(inverse_TH1)
        gradient_TN.copy_(given_THR.flatten(1))

    def add_bias(self, x_TN: Tensor, bias_N: Tensor) -> None:
        """See ``Kernels.add_bias``."""
        x_TN.add_(bias_N)

    def add_columns(self, gradient_TN: Tensor, *, onto_N: Tensor) -> None:
        """See ``Kernels.add_columns``."""
        onto_N.add_(gradient_TN.sum(0, dtype=_work_dtype(gradient_TN)))

    def gated_product(self, gate_up_T2F: Tensor, *, out_TF: Tensor) -> None:
        """See ``Kernels.gated_product``."""
        gate, up = gate_up_T2F.chunk(2, dim=1)
        torch.ops.aten.silu.out(gate, out=out_TF)
        out_TF.mul_(up)

    def gated_product_backward(self, gate_up_T2F: Tensor, product_TF: Tensor) -> None:
        """See ``Kernels.gated_product_backward``."""
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
        dtype = _work_dtype(product_TF)
        gradient, gate, up = product_TF.to(dtype), gate_TF.to(dtype), up_TF.to(dtype)
        through_silu = gradient * up
        activated = F.silu(gate)
        product = activated.to(product_TF.dtype) * up_TF
        up_TF.copy_(activated.mul_(gradient))
        product_TF.copy_(product)
        gate_TF.copy_(torch.ops.aten.silu_backward(through_silu, gate))

    def cross_entropy(
        self,
        logits_CV: Tensor,
        labels_C: Tensor,
        scale: float | None,
        *,
        losses_C: Tensor,
        correct_C: Tensor | None = None,
    ) -> None:
        """See ``Kernels.cross_entropy``."""
        labels_C1 = labels_C[:, None]
        if correct_C is None:
            largest_C1 = logits_CV.amax(dim=1, keepdim=True)
        else:
            largest_C1, found_C1 = logits_CV.max(dim=1, keepdim=True)
            torch.eq(found_C1[:, 0], labels_C, out=correct_C)
        work_CV = logits_CV.to(_work_dtype(logits_CV))
        wanted_C1 = work_CV.gather(1, labels_C1) - largest_C1
        if scale is None:
            work_CV = (work_CV - largest_C1).exp_()
        else:
            work_CV.sub_(largest_C1).exp_()
        sum_C1 = work_CV.sum(dim=1, keepdim=True)
        losses_C.copy_((sum_C1.log() - wanted_C1)[:, 0])
        if scale is None:
            return
        work_CV.mul_(scale / sum_C1)
        work_CV.scatter_(1, labels_C1, work_CV.gather(1, labels_C1) - scale)
        if work_CV is not logits_CV:
            logits_CV.copy_(work_CV)

    def add_rows(
        self,
        gradient_SD: Tensor,
        order_S: Tensor,
        begins_K1: Tensor,
        ids_K: Tensor,
        *,
        onto_VD: Tensor,
    ) -> None:
        """See ``Kernels.add_rows``."""
        dtype = _work_dtype(gradient_SD)
        # The gathered rows in fp32 are twice what they are in bf16: no more of them than 64 MiB.
        width = max(1, (1 << 24) // max(order_S.shape[0], 1))
        for begin in range(0, gradient_SD.shape[1], width):
            columns = slice(begin, begin + width)
            # "unsafe" leaves out a check of the offsets that would wait for the device.
            sums_KD = torch.segment_reduce(
                gradient_SD[:, columns].index_select(0, order_S).to(dtype),
                "sum",
                offsets=begins_K1,
                unsafe=True,
            )
            onto = onto_VD[:, columns]
            sums_KD += onto.index_select(0, ids_K)
            onto.index_copy_(0, ids_K, sums_KD.to(onto.dtype))


def _work_dtype(tensor: Tensor) -> torch.dtype:
    """Give fp32, or float64 for a tensor in float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _inverse_root(x_TD: Tensor, epsilon: float, scratch_TD: Tensor) -> Tensor:
    """Give (T, 1): one over the root mean square of each row; the scratch is overwritten."""
    torch.mul(x_TD, x_TD, out=scratch_TD)
    return scratch_TD.mean(dim=1, keepdim=True).add_(epsilon).rsqrt_()


def _heads(rows_TN: Tensor, weight_R: Tensor) -> Tensor:
    """View heads side by side as (T, N / R, R), whatever the stride of rows."""
    num_rows, head_dim = len(rows_TN), len(weight_R)
    return rows_TN.view(num_rows, rows_TN.shape[1] // head_dim, head_dim)


def _half(table_TR: Tensor) -> Tensor:
    """Give the first half of a rotary table as (T, 1, R / 2): the second repeats it."""
    return table_TR[:, None, : table_TR.shape[1] // 2]
