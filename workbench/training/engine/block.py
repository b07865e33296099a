"""One decoder block forward and backward, written out: products into buffers that are made once.

There is no graph: what backward needs is in the record of the block, or is computed again from it.
Gradients of weights are added straight into the sums of the step. Products with equal input are one
product over stacked matrices. What families differ in are switches: biases of any product, norms
of queries and keys, windows by block. Invariant: nothing here waits for the device, and how much a
record holds changes no value.

    tokens of a microbatch (T), hidden (D), queries, keys and values side by side (E),
    heads (H), head width (R), FFN width (F)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.attention import Attended, attend_backward, attend_forward
from workbench.model.decoder import RowContext
from workbench.model.families import Dimensions
from workbench.model.kernels import Kernels
from workbench.training.engine.block_layout import bias_columns
from workbench.training.engine.records import Record
from workbench.training.gradient import add_product

_QKV, _OUT = "self_attn.qkv", "self_attn.o_proj.weight"
_GATE_UP, _DOWN = "mlp.gate_up", "mlp.down_proj.weight"
_FIRST_NORM, _SECOND_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
_QUERY_NORM, _KEY_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sums:
    """Where a block's gradients are added.

    Attributes:
        matrices: by relative name, stacks included.
        vectors: fp32, by relative name, stacks included.
        are_empty: the first product overwrites what is there.
    """

    matrices: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]
    are_empty: bool


@dataclass(frozen=True)
class _Seen:
    """What attention of a block read and gave.

    Attributes:
        qkv_TE: queries and keys as the products gave them where they are normed, and values.
        turned_TE: queries and keys as attention read them; the same tensor where none are normed.
        attended: its result.
    """

    qkv_TE: Tensor
    turned_TE: Tensor
    attended: Attended


class BlockPass:
    """Takes a microbatch through a block, either way.

    Args:
        dims: of the model.
        max_tokens: of a microbatch, at most.
        tile_rows: rows of the MLP that exist at once.
        dtype: of activations.
        device: that computes.
        kernels: for what lies between products.
    """

    def __init__(
        self,
        dims: Dimensions,
        *,
        max_tokens: int,
        tile_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        self._dims, self._kernels = dims, kernels
        self._queries = dims.num_heads * dims.head_dim
        self._keys = dims.num_key_value_heads * dims.head_dim
        self._biases = bias_columns(dims)
        keys = slice(self._queries, self._queries + self._keys)
        self._normed_heads: Sequence[tuple[str, slice]] = ()
        if dims.query_key_norm:
            self._normed_heads = (_QUERY_NORM, slice(0, self._queries)), (_KEY_NORM, keys)
        self.tile_rows = min(tile_rows, max_tokens)

        def buffer(rows: int, width: int) -> Tensor:
            return torch.zeros(rows * width, dtype=dtype, device=device)

        self._normed = buffer(max_tokens, dims.hidden_size)
        self._qkv = buffer(max_tokens, self._queries + 2 * self._keys)
        # Where queries and keys are normed they are kept as they were before, and turned here.
        turned_width = self._queries + 2 * self._keys if dims.query_key_norm else 0
        self._turned = buffer(max_tokens, turned_width)
        # The residual behind attention; once that is spent, the gradient of attention's result.
        self._residual = buffer(max_tokens, max(dims.hidden_size, self._queries))
        self._gate_up = buffer(self.tile_rows, 2 * dims.intermediate_size)
        self._product = buffer(self.tile_rows, dims.intermediate_size)

    def device_bytes(self) -> int:
        """Count the bytes of all buffers."""
        attention = self._normed, self._qkv, self._turned, self._residual
        buffers = *attention, self._gate_up, self._product
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def spare(self, num_tokens: int) -> Tensor:
        """Lend a buffer (T, D) that holds nothing between blocks."""
        return _rows(self._normed, num_tokens, self._dims.hidden_size)

    def forward(
        self,
        weights: Weights,
        hidden_TD: Tensor,
        context: RowContext,
        record: Record | None,
        *,
        block: int,
    ) -> None:
        """Turn a block's input into its output, in place.

        Args:
            weights: of the block, stacks included.
            hidden_TD: changed in place.
            context: of the microbatch.
            record: to be filled; None keeps nothing.
            block: whose turn it is, from 0.
        """
        record = record or {}
        kept = record.keys()
        if "x" in kept:
            record["x"].copy_(hidden_TD)
        qkv_TE = record["qkv"] if "qkv" in kept else self._qkv_rows(len(hidden_TD))
        self._project(weights, hidden_TD, qkv_TE)
        turned_TE = self._turn(weights, qkv_TE, context, block)
        attended = self._attend(turned_TE, qkv_TE, context, block)
        if "attended" in kept:
            record["attended"].copy_(_flat(attended.out_BTHD))
            if attended.log_sum is not None:
                record["log_sum"].copy_(attended.log_sum.flatten())
        hidden_TD.addmm_(_flat(attended.out_BTHD), weights[_OUT].t())
        self._add_biases(weights, _OUT, hidden_TD)
        del attended
        if "residual" in kept:
            record["residual"].copy_(hidden_TD)
        for rows in self._tiles(len(hidden_TD)):
            tile_TD = hidden_TD[rows]
            gate_up = record["gate_up"][rows] if "gate_up" in kept else self._gate_up_rows(tile_TD)
            self._gate_and_up(weights, tile_TD, gate_up)
            product_TF = self._product_rows(tile_TD)
            self._kernels.gated_product(gate_up, out_TF=product_TF)
            tile_TD.addmm_(product_TF, weights[_DOWN].t())
            self._add_biases(weights, _DOWN, tile_TD)

    def backward(
        self,
        weights: Weights,
        gradient_TD: Tensor,
        context: RowContext,
        record: Record,
        sums: Sums,
        *,
        block: int,
    ) -> None:
        """Turn the gradient of a block's output into that of its input, in place.

        Args:
            weights: as they were in forward.
            gradient_TD: changed in place.
            context: of the microbatch.
            record: as forward left it; used up.
            sums: that the weights' gradients are added to.
            block: whose turn it is, from 0.
        """
        x_TD, num_tokens = record["x"], len(gradient_TD)
        if "qkv" in record:
            qkv_TE, residual_TD = record["qkv"], record["residual"]
            turned_TE = qkv_TE
            if self._normed_heads:
                turned_TE = self._turn(weights, qkv_TE, context, block)
            attended = self._kept_attention(record, context)
        else:
            qkv_TE = self._qkv_rows(num_tokens)
            self._project(weights, x_TD, qkv_TE)
            turned_TE = self._turn(weights, qkv_TE, context, block)
            attended = self._attend(turned_TE, qkv_TE, context, block)
            residual_TD = _rows(self._residual, num_tokens, self._dims.hidden_size)
            torch.addmm(x_TD, _flat(attended.out_BTHD), weights[_OUT].t(), out=residual_TD)
            self._add_biases(weights, _OUT, residual_TD)
        self._mlp_backward(weights, gradient_TD, residual_TD, record.get("gate_up"), sums)
        seen = _Seen(qkv_TE, turned_TE, attended)
        self._attention_backward(weights, gradient_TD, x_TD, seen, context, sums, block)

    def _mlp_backward(
        self,
        weights: Weights,
        gradient_TD: Tensor,
        residual_TD: Tensor,
        kept_gate_up: Tensor | None,
        sums: Sums,
    ) -> None:
        """From the gradient of the block's output to that of the residual behind attention.

        The down projection is never recomputed: its gradient needs only what it reads.
        """
        are_empty = sums.are_empty
        self._add_bias_gradients(_DOWN, gradient_TD, sums)
        for rows in self._tiles(len(gradient_TD)):
            tile_TD = gradient_TD[rows]
            normed_TD = self.spare(len(tile_TD))
            if kept_gate_up is None:
                gate_up = self._gate_up_rows(tile_TD)
                self._gate_and_up(weights, residual_TD[rows], gate_up)
            else:
                gate_up = kept_gate_up[rows]
                self._norm(weights[_SECOND_NORM], residual_TD[rows], normed_TD)
            product_TF = self._product_rows(tile_TD)
            torch.mm(tile_TD, weights[_DOWN], out=product_TF)
            self._kernels.gated_product_backward(gate_up, product_TF)
            add_product(sums.matrices[_DOWN], tile_TD, product_TF, is_empty=are_empty)
            add_product(sums.matrices[_GATE_UP], gate_up, normed_TD, is_empty=are_empty)
            self._add_bias_gradients(_GATE_UP, gate_up, sums)
            torch.mm(gate_up, weights[_GATE_UP], out=normed_TD)
            self._norm_backward(weights, _SECOND_NORM, normed_TD, residual_TD[rows], tile_TD, sums)
            are_empty = False

    def _attention_backward(
        self,
        weights: Weights,
        gradient_TD: Tensor,
        x_TD: Tensor,
        seen: _Seen,
        context: RowContext,
        sums: Sums,
        block: int,
    ) -> None:
        """From the gradient of the residual behind attention to that of the block's input."""
        num_tokens = len(gradient_TD)
        out_TQ = _flat(seen.attended.out_BTHD)
        add_product(sums.matrices[_OUT], gradient_TD, out_TQ, is_empty=sums.are_empty)
        self._add_bias_gradients(_OUT, gradient_TD, sums)
        of_out_TQ = _rows(self._residual, num_tokens, self._queries)
        torch.mm(gradient_TD, weights[_OUT], out=of_out_TQ)
        dq, dk, dv = attend_backward(
            of_out_TQ.view(seen.attended.out_BTHD.shape),
            *self._heads(seen.turned_TE, seen.qkv_TE, context),
            seen.attended,
            context.structure_of(block),
        )
        of_qkv_TE = seen.turned_TE  # attention was the last to read it
        self._pack((dq, dk, dv), context, block, of_qkv_TE)
        del dq, dk, dv
        for name, columns in self._normed_heads:
            self._kernels.norm_heads_backward(
                of_qkv_TE[:, columns],
                seen.qkv_TE[:, columns],
                weights[name],
                self._dims.norm_epsilon,
                weight_sum_R=sums.vectors[name],
            )
        normed_TD = self.spare(num_tokens)
        self._norm(weights[_FIRST_NORM], x_TD, normed_TD)
        add_product(sums.matrices[_QKV], of_qkv_TE, normed_TD, is_empty=sums.are_empty)
        self._add_bias_gradients(_QKV, of_qkv_TE, sums)
        torch.mm(of_qkv_TE, weights[_QKV], out=normed_TD)
        self._norm_backward(weights, _FIRST_NORM, normed_TD, x_TD, gradient_TD, sums)

    def _pack(
        self,
        gradients: tuple[Tensor, Tensor, Tensor],
        context: RowContext,
        block: int,
        out_TE: Tensor,
    ) -> None:
        """Put gradients of queries, keys and values (B, T, heads, R) side by side, turned back."""
        dq, dk, dv = (gradient.flatten(0, 1) for gradient in gradients)
        if self._dims.is_turned(block):
            cosine_TR, sine_TR = _tables(context)
            self._kernels.pack_rotated_back(dq, dk, dv, cosine_TR, sine_TR, out_TE=out_TE)
            return
        sizes = [self._queries, self._keys, self._keys]
        for columns_TN, part in zip(torch.split(out_TE, sizes, 1), (dq, dk, dv), strict=True):
            columns_TN.view(part.shape).copy_(part)

    def _project(self, weights: Weights, x_TD: Tensor, qkv_TE: Tensor) -> None:
        """Norm, queries, keys and values."""
        normed_TD = self.spare(len(x_TD))
        self._norm(weights[_FIRST_NORM], x_TD, normed_TD)
        torch.mm(normed_TD, weights[_QKV].t(), out=qkv_TE)
        self._add_biases(weights, _QKV, qkv_TE)

    def _turn(self, weights: Weights, qkv_TE: Tensor, context: RowContext, block: int) -> Tensor:
        """Norm queries and keys where the model does, and turn them where the block does.

        Returns:
            (T, E): the argument itself; where heads are normed a buffer, without the values.
        """
        turned_TE = qkv_TE
        if self._normed_heads:
            turned_TE = _rows(self._turned, *qkv_TE.shape)
        for name, columns in self._normed_heads:
            self._kernels.norm_heads(
                qkv_TE[:, columns],
                weights[name],
                self._dims.norm_epsilon,
                out_TN=turned_TE[:, columns],
            )
        if self._dims.is_turned(block):
            num_heads = self._dims.num_heads + self._dims.num_key_value_heads
            cosine_TR, sine_TR = _tables(context)
            self._kernels.rotate(
                turned_TE, cosine_TR, sine_TR, num_heads=num_heads, head_dim=self._dims.head_dim
            )
        return turned_TE

    def _add_biases(self, weights: Weights, product: str, rows_TN: Tensor) -> None:
        """Add what the model adds to the columns of a product."""
        for name, columns in self._biases[product]:
            self._kernels.add_bias(rows_TN[:, columns], weights[name])

    def _add_bias_gradients(self, product: str, gradient_TN: Tensor, sums: Sums) -> None:
        """Add to the sums of a product's biases, from the gradient of the product."""
        for name, columns in self._biases[product]:
            self._kernels.add_columns(gradient_TN[:, columns], onto_N=sums.vectors[name])

    def _gate_and_up(self, weights: Weights, residual_TD: Tensor, gate_up_T2F: Tensor) -> None:
        """Norm, gate and up of one tile; the norm's result stays in the spare buffer."""
        normed_TD = self.spare(len(residual_TD))
        self._norm(weights[_SECOND_NORM], residual_TD, normed_TD)
        torch.mm(normed_TD, weights[_GATE_UP].t(), out=gate_up_T2F)
        self._add_biases(weights, _GATE_UP, gate_up_T2F)

    def _norm(self, weight_D: Tensor, x_TD: Tensor, out_TD: Tensor) -> None:
        self._kernels.norm(x_TD, weight_D, self._dims.norm_epsilon, out_TD=out_TD)

    def _norm_backward(
        self,
        weights: Weights,
        name: str,
        of_normed_TD: Tensor,
        x_TD: Tensor,
        onto_TD: Tensor,
        sums: Sums,
    ) -> None:
        self._kernels.norm_backward(
            of_normed_TD,
            x_TD,
            weights[name],
            self._dims.norm_epsilon,
            onto_TD=onto_TD,
            weight_sum_D=sums.vectors[name],
        )

    def _attend(
        self, turned_TE: Tensor, qkv_TE: Tensor, context: RowContext, block: int
    ) -> Attended:
        heads = self._heads(turned_TE, qkv_TE, context)
        return attend_forward(*heads, context.structure_of(block))

    def _kept_attention(self, record: Record, context: RowContext) -> Attended:
        """Give attention's result as a record holds it."""
        out_BTHD = record["attended"].view(
            -1, context.cosine.shape[1], self._dims.num_heads, self._dims.head_dim
        )
        return Attended(out_BTHD, record["log_sum"])

    def _heads(
        self, turned_TE: Tensor, qkv_TE: Tensor, context: RowContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """View turned queries and keys, and the values beside them, as (B, T, heads, R) each."""
        shape = *context.cosine.shape[:2], -1, self._dims.head_dim
        num_keys = self._dims.num_key_value_heads
        sizes = [self._dims.num_heads, num_keys, num_keys]
        q, k, _ = torch.split(turned_TE.view(shape), sizes, dim=2)
        _, _, v = torch.split(qkv_TE.view(shape), sizes, dim=2)
        return q, k, v

    def _tiles(self, num_tokens: int) -> list[slice]:
        step = self.tile_rows
        return [slice(begin, min(begin + step, num_tokens)) for begin in range(0, num_tokens, step)]

    def _qkv_rows(self, num_tokens: int) -> Tensor:
        return _rows(self._qkv, num_tokens, self._queries + 2 * self._keys)

    def _gate_up_rows(self, tile_TD: Tensor) -> Tensor:
        return _rows(self._gate_up, len(tile_TD), 2 * self._dims.intermediate_size)

    def _product_rows(self, tile_TD: Tensor) -> Tensor:
        return _rows(self._product, len(tile_TD), self._dims.intermediate_size)


def _rows(buffer: Tensor, rows: int, width: int) -> Tensor:
    return buffer[: rows * width].view(rows, width)


def _flat(tensor_BTHR: Tensor) -> Tensor:
    return tensor_BTHR.flatten(0, 1).flatten(1)


def _tables(context: RowContext) -> tuple[Tensor, Tensor]:
    """Give cosine and sine as (T, R)."""
    return context.cosine.flatten(0, 2), context.sine.flatten(0, 2)
