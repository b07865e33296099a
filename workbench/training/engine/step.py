"""One optimizer step, layer by layer: all microbatches pass a block before the next.

So gradients of a step add up exactly in one buffer of a block's size, a block's weights travel once
per sweep whatever the step holds, and each block is updated as soon as its sum is complete. Inside
a step nothing waits for the device. Invariant: each tensor is updated at most once per step, and
not at all when the loss of the step is not finite.

    rows (B), length of a row, tokens of a microbatch (T), hidden (D), target rows (N),
    vocabulary (V)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.data.batch import Batch
from workbench.data.loader import StepRows
from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    RowContext,
    block_parameters,
    block_prefix,
    parameter_shapes,
    row_context,
)
from workbench.model.families import Dimensions
from workbench.model.kernels import Kernels
from workbench.training.engine.block import BlockPass, Sums
from workbench.training.engine.gradient_sums import GradientSums
from workbench.training.engine.head import HeadPass, HeadSums
from workbench.training.engine.lanes import Lanes, Sample
from workbench.training.engine.records import Records
from workbench.training.engine.weight_store import WeightStore
from workbench.training.loss import target_rows
from workbench.training.optimizer.protocol import NO_COMPANION, Optimizer


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
        times: of a step that was timed; read once its numbers have arrived on the host.
    """

    loss_sum: Tensor
    num_targets: int
    num_tokens: int
    ok: Tensor
    square_norms: Tensor
    names: tuple[str, ...]
    times: Sample | None = None


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over evaluated microbatches: loss () float64, correct () int64, number of targets."""

    loss_sum: Tensor
    num_correct: Tensor
    num_targets: int


@dataclass(frozen=True)
class _Microbatch:
    """A microbatch on the device: ids (T,), its context, its target rows (N,), its place."""

    ids: Tensor
    context: RowContext
    positions: Tensor
    labels: Tensor
    tokens: slice


class LayerMajorEngine:
    """Runs steps and evaluations over the weights of a store.

    Args:
        dims: of the model.
        store: the weights.
        optimizer: the rule, and what it keeps.
        records: where forward leaves what backward needs.
        block: takes a microbatch through a block.
        head: takes it through head and loss.
        sums: of gradients.
        kernels: for what lies between products.
        lanes: time lines of the device.
        step_tokens: of a step, all microbatches together, at most.
        microbatch_tokens: of a microbatch, at most.
        attention: ``model.attention``.
        clip_norm: bound for clipping by the previous step's norm; None does not clip.
        dtype: of weights and activations.
        device: where all of it happens.
        sample_every: every so many steps one is timed.
    """

    def __init__(
        self,
        *,
        dims: Dimensions,
        store: WeightStore,
        optimizer: Optimizer,
        records: Records,
        block: BlockPass,
        head: HeadPass,
        sums: GradientSums,
        kernels: Kernels,
        lanes: Lanes,
        step_tokens: int,
        microbatch_tokens: int,
        attention: str,
        clip_norm: float | None,
        dtype: torch.dtype,
        device: torch.device,
        sample_every: int = 10,
    ) -> None:
        self.store, self.optimizer = store, optimizer
        self._dims, self._records, self._block, self._head = dims, records, block, head
        self._sums, self._kernels, self._lanes = sums, kernels, lanes
        self._attention, self._dtype, self._device = attention, dtype, device
        self._microbatch_tokens, self._clip_norm = microbatch_tokens, clip_norm
        self._sample_every = sample_every
        # Hidden states of all microbatches, in forward; their gradients in backward.
        self._hidden = torch.zeros(step_tokens, dims.hidden_size, dtype=dtype, device=device)
        self._names = tuple(parameter_shapes(dims))
        self._block_names = tuple(block_parameters(dims))
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
        if number % self._sample_every == 0:
            self._lanes.begin_sample()
        microbatches = self._to_device(rows.microbatches)
        self._forward(microbatches, keeps_records=True)
        self._records.turn_around()
        loss_sum = self._loss_and_its_gradient(microbatches, 1.0 / max(rows.num_targets, 1))
        ok = loss_sum.isfinite()
        if rows.num_targets == 0 or (self._device.type == "cpu" and not ok):
            self._records.clear()
            self.store.release_vocabulary(HEAD)
            return self._result(rows, loss_sum, ok, {})
        update = _Update(self.optimizer, self._lanes, number, learning_rate, self._clip_scale(), ok)
        update(
            FINAL_NORM, self.store.final_norm, self._sums.final_norm,
            self.store.final_norm_companion,
        )  # fmt: skip
        if self._dims.tied:
            self.store.release_vocabulary(HEAD)
        else:
            self._update_vocabulary(HEAD, update)
        self.store.prefetch_vocabulary(EMBEDDING, for_update=True)
        for block in reversed(range(self._dims.num_layers)):
            self._backward(block, microbatches, update)
        self._add_embedding_gradient(rows.microbatches)
        self._update_vocabulary(EMBEDDING, update)
        return self._result(rows, loss_sum, ok, update.square_norms)

    def _forward(self, microbatches: Sequence[_Microbatch], *, keeps_records: bool) -> None:
        """Run all blocks over the hidden states of all microbatches."""
        embedding = self.store.acquire_vocabulary(EMBEDDING)
        for microbatch in microbatches:
            torch.index_select(embedding, 0, microbatch.ids, out=self._hidden[microbatch.tokens])
        self.store.release_vocabulary(EMBEDDING)
        self.store.prefetch_vocabulary(HEAD)
        last = self._dims.num_layers
        for block in range(last):
            weights = self.store.acquire(block, ahead=range(block + 1, last))
            for index, microbatch in enumerate(microbatches):
                hidden = self._hidden[microbatch.tokens]
                record = self._records.begin(block, index, len(hidden)) if keeps_records else None
                self._block.forward(weights, hidden, microbatch.context, record, block=block)
                if keeps_records:
                    self._records.end(block, index)
            self.store.release(block)

    def _loss_and_its_gradient(self, microbatches: Sequence[_Microbatch], scale: float) -> Tensor:
        """Give the loss sum; hidden states become gradients of ``scale`` x loss."""
        loss_sum = torch.zeros((), dtype=torch.float32, device=self._device)
        head = self.store.acquire_vocabulary(HEAD, for_update=not self._dims.tied)
        sums = HeadSums(self._sums.vocabulary, self._sums.final_norm.zero_())
        for microbatch in microbatches:
            hidden = self._hidden[microbatch.tokens]
            loss_sum += self._head.train(
                hidden,
                microbatch.positions,
                microbatch.labels,
                self.store.final_norm,
                head,
                scale=scale,
                sums=sums,
                spare_TD=self._block.spare(len(hidden)),
            )
        return loss_sum

    def _backward(self, block: int, microbatches: Sequence[_Microbatch], update: "_Update") -> None:
        """Take all microbatches back through a block, then move its weights."""
        ahead = reversed(range(block))
        weights = self.store.acquire(block, ahead=ahead, for_update=True)
        self._sums.clear_vectors()
        matrices, vectors = self._sums.matrices, self._sums.vectors
        for index, microbatch in enumerate(microbatches):
            self._block.backward(
                weights,
                self._hidden[microbatch.tokens],
                microbatch.context,
                self._records.take(block, index),
                Sums(matrices, vectors, are_empty=index == 0),
                block=block,
            )
            self._records.done(block, index)
        companion = self.store.companion(block)
        for name in self._block_names:
            gradient = vectors[name] if name in vectors else matrices[name]
            beside = companion.get(name, NO_COMPANION)
            update(block_prefix(block) + name, weights[name], gradient, beside)
        self.store.write_back(block)

    def _add_embedding_gradient(self, batches: Sequence[Batch]) -> None:
        """Add each token's gradient to its row, sorted by row and within it by place.

        The order is worked out on the host, where the ids come from: one fixed order of sums.
        """
        ids = np.concatenate([batch.ids.reshape(-1) for batch in batches])
        distinct, counts = np.unique(ids, return_counts=True)
        if not self._dims.tied:
            self._sums.vocabulary.zero_()
        self._kernels.add_rows(
            self._hidden[: len(ids)],
            self._copy(np.argsort(ids, kind="stable")),
            self._copy(np.concatenate([[0], np.cumsum(counts)])),
            self._copy(distinct.astype(np.int64)),
            onto_VD=self._sums.vocabulary,
        )

    def _update_vocabulary(self, name: str, update: "_Update") -> None:
        """Move the embedding or the head by the sum of its gradient."""
        weight = self.store.acquire_vocabulary(name, for_update=True)
        companion = self.store.vocabulary_companion(name)
        update(name, weight, self._sums.vocabulary, companion)
        self.store.write_back_vocabulary(name)

    @property
    def max_microbatches(self) -> int:
        """How many microbatches pass together, at least."""
        return len(self._hidden) // self._microbatch_tokens

    @torch.no_grad()
    def evaluate(self, *batches: Batch) -> EvaluationSums:
        """Sum loss and correct predictions over microbatches in one sweep; changes nothing.

        Args:
            batches: at most ``max_microbatches``, none larger than one of training.
        """
        microbatches = self._to_device(batches)
        self._forward(microbatches, keeps_records=False)
        head = self.store.acquire_vocabulary(HEAD)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        num_correct = torch.zeros((), dtype=torch.int64, device=self._device)
        for microbatch in microbatches:
            losses, correct = self._head.evaluate(
                self._hidden[microbatch.tokens],
                microbatch.positions,
                microbatch.labels,
                self.store.final_norm,
                head,
            )
            loss_sum += losses
            num_correct += correct
        self.store.release_vocabulary(HEAD)
        return EvaluationSums(loss_sum, num_correct, sum(batch.num_targets for batch in batches))

    @torch.no_grad()
    def logits(self, *batches: Batch) -> Tensor:
        """Give the logits of each target, (targets, V) fp32, row by row; changes nothing.

        What stands at a target is not looked at: the tokens before it are what the model knows.

        Args:
            batches: as for ``evaluate``, with one target at least.
        """
        microbatches = self._to_device(batches)
        self._forward(microbatches, keeps_records=False)
        head = self.store.acquire_vocabulary(HEAD)
        found = [
            self._head.logits(
                self._hidden[microbatch.tokens],
                microbatch.positions,
                self.store.final_norm,
                head,
            )
            for microbatch in microbatches
            if len(microbatch.positions)
        ]
        self.store.release_vocabulary(HEAD)
        return torch.cat(found)

    def device_bytes(self) -> dict[str, int]:
        """Count the bytes that lie on the device between steps, by part."""
        return {
            **self.store.device_bytes(),
            **self._records.device_bytes(),
            "hidden_states": self._hidden.numel() * self._hidden.element_size(),
            "gradient_sums": self._sums.device_bytes(),
            "optimizer_state": sum(
                tensor.numel() * tensor.element_size()
                for tensor in self.optimizer.named_tensors().values()
            ),
            "block_buffers": self._block.device_bytes(),
            "head_buffers": self._head.device_bytes(),
        }

    def _to_device(self, batches: Sequence[Batch]) -> list[_Microbatch]:
        microbatches, begin = [], 0
        for batch in batches:
            positions, labels = target_rows(batch.ids, batch.targets)
            assert batch.ids.size <= self._microbatch_tokens, (
                batch.ids.shape,
                self._microbatch_tokens,
            )
            end = begin + batch.ids.size
            microbatches.append(
                _Microbatch(
                    ids=self._copy(batch.ids.reshape(-1)),
                    context=row_context(
                        torch.from_numpy(batch.document_starts),
                        batch.row_length,
                        self._dims,
                        self._dtype,
                        self._attention,
                        device=self._device,
                    ),
                    positions=self._copy(positions),
                    labels=self._copy(labels),
                    tokens=slice(begin, end),
                )
            )
            begin = end
        return microbatches

    def _copy(self, array: np.ndarray) -> Tensor:
        """Bring an array to the device without waiting for what runs there."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

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
        times = self._lanes.end_sample()
        return StepResult(
            loss_sum, rows.num_targets, rows.num_tokens, ok, square_norms, names, times
        )


class _Update:
    """The updates of one step: what they share, and the squared norms they found."""

    def __init__(
        self,
        optimizer: Optimizer,
        lanes: Lanes,
        number: int,
        learning_rate: float,
        scale: Tensor | None,
        ok: Tensor,
    ) -> None:
        self._optimizer, self._lanes = optimizer, lanes
        self._number, self._learning_rate = number, learning_rate
        self._scale, self._ok = scale, ok
        self.square_norms: dict[str, Tensor] = {}

    def __call__(
        self, name: str, weight: Tensor, gradient: Tensor, companion: Mapping[str, Tensor]
    ) -> None:
        """Move one parameter in place."""
        assert name not in self.square_norms, f"{name} is updated twice in one step"
        with self._lanes.updating():
            self.square_norms[name] = self._optimizer.update(
                name,
                weight,
                gradient,
                companion,
                step=self._number,
                learning_rate=self._learning_rate,
                scale=self._scale,
                ok=self._ok,
            )
