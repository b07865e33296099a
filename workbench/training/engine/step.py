"""One optimizer step, layer by layer: all microbatches pass a block before the next.

So gradients of a step add up exactly in one buffer of a block's size, each block is updated as
soon as its sum is complete, and nothing hooks into autograd. Inside a step nothing waits for the
device. Invariant: each tensor is updated at most once per step, and not at all when the loss of
the step is not finite.

    rows (B), length of a row (T), hidden (D), target rows (N), vocabulary (V)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.config.memory_parts import chunk_rows
from workbench.data.batch import Batch
from workbench.data.loader import StepRows
from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    RowContext,
    block_forward,
    block_parameters,
    block_prefix,
    block_until_down,
    embed,
    final_norm,
    parameter_shapes,
    row_context,
)
from workbench.model.families import Dimensions
from workbench.training.engine.block_inputs import BlockInputs
from workbench.training.engine.step_times import StepTimes
from workbench.training.engine.weight_store import WeightStore, flat_views
from workbench.training.gradient import SummingLinear, add_product
from workbench.training.loss import HeadLoss, head_loss, target_rows
from workbench.training.optimizer.adafactor import Adafactor

_DOWN = "mlp.down_proj.weight"


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors are on the device and not waited for.

    Attributes:
        loss_sum: () fp32, over the target tokens of the step, before the update.
        num_targets: target tokens of the step.
        num_tokens: tokens of the step that are no padding.
        ok: () bool, the loss was finite; where it is false nothing was changed.
        square_norms: (parameters,) fp32, per parameter the sum of its gradient's squares, in the
            order of ``names``; empty when the step ended without gradients.
        names: of the parameters.
        times: of a step that was timed; read only once its numbers have arrived on the host.
    """

    loss_sum: Tensor
    num_targets: int
    num_tokens: int
    ok: Tensor
    square_norms: Tensor
    names: tuple[str, ...]
    times: StepTimes | None = None


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over one evaluation batch: loss () fp32, correct () int64, number of targets."""

    loss_sum: Tensor
    num_correct: Tensor
    num_targets: int


@dataclass(frozen=True)
class _Rows:
    """A microbatch on the device: ids (B, T), its context, and its target rows (N,)."""

    ids: Tensor
    context: RowContext
    positions: Tensor
    labels: Tensor


class LayerMajorEngine:
    """Runs steps and evaluations over the weights of a store.

    Args:
        dims: of the model.
        store: the weights.
        optimizer: the statistics and the rule.
        sum_dtype: precision of gradient sums.
        attention: ``model.attention``.
        clip_norm: bound for clipping by the previous step's norm; None does not clip.
        dtype: of weights and activations.
        device: where all of it happens.
    """

    def __init__(
        self,
        *,
        dims: Dimensions,
        store: WeightStore,
        optimizer: Adafactor,
        sum_dtype: torch.dtype,
        attention: str,
        clip_norm: float | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._dims, self._store, self._optimizer = dims, store, optimizer
        self._attention, self._dtype, self._device = attention, dtype, device
        self._clip_norm = clip_norm
        self._chunk = chunk_rows(dims.vocabulary_size)
        self._inputs = BlockInputs()
        self._block_flat, self._block_sums = flat_views(block_parameters(dims), sum_dtype, device)
        # The head's sum, and when that is spent the embedding's; one and the same where tied.
        vocabulary = (dims.vocabulary_size, dims.hidden_size)
        self._vocabulary_sum = torch.zeros(vocabulary, dtype=sum_dtype, device=device)
        self._norm_sum = torch.zeros(dims.hidden_size, dtype=sum_dtype, device=device)
        self._names = tuple(parameter_shapes(dims))
        self.previous_norm: Tensor | None = None
        """() fp32: gradient norm of the last step whose norm was finite; None before the first."""

    def restore_previous_norm(self, norm: float | None) -> None:
        """Clip the next step by the norm that a checkpoint kept."""
        if norm is not None:
            self.previous_norm = torch.tensor(norm, dtype=torch.float32, device=self._device)

    @torch.no_grad()
    def step(self, rows: StepRows, number: int, learning_rate: float) -> StepResult:
        """Train on the rows of one step: every parameter moves once.

        Args:
            rows: the microbatches.
            number: the optimizer step, counted from 1.
            learning_rate: rate of this very step.
        """
        microbatches = [self._to_device(batch) for batch in rows.microbatches]
        hidden = self._forward(microbatches, keep_inputs=True)
        scale = 1.0 / max(rows.num_targets, 1)
        self._vocabulary_sum.zero_()
        self._norm_sum.zero_()
        loss_sum = torch.zeros((), dtype=torch.float32, device=self._device)
        for index, microbatch in enumerate(microbatches):
            found, hidden[index] = self._head(microbatch, hidden[index], scale)
            loss_sum += found
        ok = loss_sum.isfinite()
        if rows.num_targets == 0 or (self._device.type == "cpu" and not ok):
            self._inputs.clear()
            return self._result(rows, loss_sum, ok, {})
        update = _Update(self._optimizer, number, learning_rate, self._clip_scale(), ok)
        tied = self._store.head is self._store.embedding
        update(FINAL_NORM, self._store.final_norm, self._norm_sum)
        if not tied:
            update(HEAD, self._store.head, self._vocabulary_sum)
            self._vocabulary_sum.zero_()
        for block in reversed(range(self._dims.num_layers)):
            self._backward(block, microbatches, hidden, update)
        self._add_embedding_gradient(rows.microbatches, hidden)
        update(EMBEDDING, self._store.embedding, self._vocabulary_sum)
        return self._result(rows, loss_sum, ok, update.square_norms)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> EvaluationSums:
        """Sum loss and correct predictions over a batch; changes nothing."""
        microbatch = self._to_device(batch)
        (hidden,) = self._forward([microbatch], keep_inputs=False)
        found = self._head_loss(microbatch, hidden)
        assert found.num_correct is not None
        return EvaluationSums(found.loss_sum, found.num_correct, batch.num_targets)

    def _to_device(self, batch: Batch) -> _Rows:
        positions, labels = target_rows(batch.ids, batch.targets)
        return _Rows(
            ids=self._copy(batch.ids),
            context=row_context(
                torch.from_numpy(batch.document_starts),
                batch.ids.shape[1],
                self._dims,
                self._dtype,
                self._attention,
                device=self._device,
            ),
            positions=self._copy(positions),
            labels=self._copy(labels),
        )

    def _copy(self, array: np.ndarray) -> Tensor:
        """Bring an array to the device without waiting for what runs there."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _forward(self, microbatches: Sequence[_Rows], *, keep_inputs: bool) -> list[Tensor]:
        """Run all blocks; give (B, T, D) per microbatch."""
        hidden = [embed(self._store.embedding, microbatch.ids) for microbatch in microbatches]
        for block in range(self._dims.num_layers):
            weights = self._store.acquire(block)
            self._store.prefetch(block + 1)
            for index, microbatch in enumerate(microbatches):
                if keep_inputs:
                    self._inputs.keep(block, index, hidden[index])
                hidden[index] = block_forward(
                    weights, hidden[index], microbatch.context, self._dims
                )
            self._store.release(block)
        return hidden

    def _head(self, microbatch: _Rows, hidden_BTD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Give the loss sum, and the gradient (B, T, D) of ``scale`` x loss."""
        gradient_BTD = torch.zeros_like(hidden_BTD)
        if microbatch.positions.numel() == 0:
            return torch.zeros((), dtype=torch.float32, device=self._device), gradient_BTD
        rows_ND = hidden_BTD.flatten(0, 1).index_select(0, microbatch.positions)
        rows_ND.requires_grad_()
        norm = self._store.final_norm.detach().requires_grad_()
        with torch.enable_grad():
            normed_ND = final_norm(norm, rows_ND, self._dims)
        found = head_loss(
            normed_ND.detach(),
            microbatch.labels,
            self._store.head,
            chunk=self._chunk,
            scale=scale,
            head_gradient=self._vocabulary_sum,
        )
        torch.autograd.backward((normed_ND,), (found.hidden_gradient,))
        assert norm.grad is not None
        assert rows_ND.grad is not None
        self._norm_sum += norm.grad
        gradient_BTD.flatten(0, 1).index_copy_(0, microbatch.positions, rows_ND.grad)
        return found.loss_sum, gradient_BTD

    def _head_loss(self, microbatch: _Rows, hidden_BTD: Tensor) -> HeadLoss:
        rows_ND = hidden_BTD.flatten(0, 1).index_select(0, microbatch.positions)
        return head_loss(
            final_norm(self._store.final_norm, rows_ND, self._dims),
            microbatch.labels,
            self._store.head,
            chunk=self._chunk,
            count_correct=True,
        )

    def _backward(
        self, block: int, microbatches: Sequence[_Rows], gradients: list[Tensor], update: "_Update"
    ) -> None:
        """Take all microbatches back through a block, then move its weights.

        ``gradients`` holds (B, T, D) per microbatch: of the block's output before, of its input
        after.
        """
        weights = self._store.acquire(block)
        self._store.prefetch(block - 1)
        self._inputs.prefetch(block - 1)
        self._block_flat.zero_()
        for index, microbatch in enumerate(microbatches):
            x = self._inputs.take(block, index)
            gradients[index] = self._block_backward(
                weights, x, microbatch.context, gradients[index]
            )
        prefix = block_prefix(block)
        for name, gradient in self._block_sums.items():
            update(prefix + name, weights[name], gradient)
        self._store.write_back(block)

    def _block_backward(
        self, weights: Mapping[str, Tensor], x: Tensor, context: RowContext, gradient_BTD: Tensor
    ) -> Tensor:
        """Recompute a block up to its down projection and run it backward.

        The down projection itself is never recomputed: its weight gradient needs only its input.
        """
        sums = self._block_sums
        x = x.detach().requires_grad_()
        vectors = {
            name: weight.detach().requires_grad_()
            for name, weight in weights.items()
            if weight.dim() == 1
        }
        linear = SummingLinear({id(weight): sums[name] for name, weight in weights.items()})
        with torch.enable_grad():
            residual, product = block_until_down(
                {**weights, **vectors}, x, context, self._dims, linear=linear
            )
        add_product(sums[_DOWN], gradient_BTD.flatten(0, 1), product.detach().flatten(0, 1))
        torch.autograd.backward((residual, product), (gradient_BTD, gradient_BTD @ weights[_DOWN]))
        for name, weight in vectors.items():
            assert weight.grad is not None
            sums[name] += weight.grad
        assert x.grad is not None
        return x.grad

    def _add_embedding_gradient(self, batches: Sequence[Batch], gradients: list[Tensor]) -> None:
        """Add each token's gradient to its row: sorted, in fp32, in one fixed order.

        Sums of equal ids in bfloat16 would stop growing, and ``index_add`` is not deterministic on
        a GPU. The order is worked out on the host, where the ids come from.
        """
        ids = np.concatenate([batch.ids.reshape(-1) for batch in batches])
        order = np.argsort(ids, kind="stable")
        distinct, counts = np.unique(ids, return_counts=True)
        gradient = torch.cat([gradient.flatten(0, 1) for gradient in gradients])
        sums = torch.segment_reduce(
            gradient.index_select(0, self._copy(order)).to(torch.float32),
            "sum",
            lengths=self._copy(counts),
            unsafe=True,
        )
        rows = self._copy(distinct.astype(np.int64))
        sums += self._vocabulary_sum.index_select(0, rows)
        self._vocabulary_sum.index_copy_(0, rows, sums.to(self._vocabulary_sum.dtype))

    def _clip_scale(self) -> Tensor | None:
        if self._clip_norm is None or self.previous_norm is None:
            return None
        return (self._clip_norm / self.previous_norm).clamp_(max=1.0)

    def _result(
        self, rows: StepRows, loss_sum: Tensor, ok: Tensor, found: Mapping[str, Tensor]
    ) -> StepResult:
        names = tuple(name for name in self._names if name in found)
        square_norms = (
            torch.stack([found[name] for name in names])
            if names
            else torch.zeros(0, dtype=torch.float32, device=self._device)
        )
        if names:
            norm = square_norms.sum().sqrt()
            old = norm.new_zeros(()) if self.previous_norm is None else self.previous_norm
            self.previous_norm = torch.where(norm.isfinite() & ok & (norm > 0), norm, old)
        return StepResult(loss_sum, rows.num_targets, rows.num_tokens, ok, square_norms, names)


class _Update:
    """The updates of one step: what they share, and the squared norms they found."""

    def __init__(
        self,
        optimizer: Adafactor,
        number: int,
        learning_rate: float,
        scale: Tensor | None,
        ok: Tensor,
    ) -> None:
        self._optimizer = optimizer
        self._number, self._learning_rate = number, learning_rate
        self._scale, self._ok = scale, ok
        self.square_norms: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Move one parameter in place."""
        assert name not in self.square_norms, f"{name} is updated twice in one step"
        self.square_norms[name] = self._optimizer.update(
            name,
            weight,
            gradient,
            step=self._number,
            learning_rate=self._learning_rate,
            scale=self._scale,
            ok=self._ok,
        )
