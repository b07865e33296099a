"""What forward leaves for backward: one record per block and microbatch.

A record always holds the block's input; how much more saves how much recomputation. Records lie on
the device, or in pinned host memory with two staging buffers that they pass through, beside
computing. Invariant: each record is kept once and taken once per step, last block first.

    tokens of a microbatch (T), hidden (D), queries, keys and values side by side (E),
    query width (Q), FFN width (F), heads (H)
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.config.memory_parts import Recompute
from workbench.model.families import Dimensions
from workbench.training.engine.flat import Layout, Shape, flat_layout
from workbench.training.engine.host_memory import pinned_bytes
from workbench.training.engine.lanes import Lanes, Mark

Record = dict[str, Tensor]


def record_layout(
    dims: Dimensions, num_tokens: int, recompute: Recompute, dtype: torch.dtype
) -> Layout:
    """Say what a record holds.

    Returns:
        Layout of ``x`` (T, D); unless all is recomputed ``qkv`` (T, E) after rotation, or where
        queries and keys are normed before their norms, ``attended`` (T, Q), ``log_sum`` (T·H,)
        fp32 and ``residual`` (T, D); where nothing is, ``gate_up`` (T, 2F).
    """
    queries = dims.num_heads * dims.head_dim
    keys = dims.num_key_value_heads * dims.head_dim
    tensors: dict[str, tuple[Shape, torch.dtype]] = {"x": ((num_tokens, dims.hidden_size), dtype)}
    if recompute != "full":
        tensors["qkv"] = ((num_tokens, queries + 2 * keys), dtype)
        tensors["attended"] = ((num_tokens, queries), dtype)
        tensors["log_sum"] = ((num_tokens * dims.num_heads,), torch.float32)
        tensors["residual"] = ((num_tokens, dims.hidden_size), dtype)
    if recompute == "none":
        tensors["gate_up"] = ((num_tokens, 2 * dims.intermediate_size), dtype)
    return flat_layout(tensors)


class Records:
    """The records of a step.

    Args:
        dims: of the model.
        recompute: per block, what is computed again.
        num_microbatches: of a step.
        max_tokens: of a microbatch, at most.
        dtype: of activations.
        device: that computes.
        pinned: records wait in host memory.
        lanes: that copy.

    Raises:
        WorkbenchError: host memory does not hold them.
    """

    def __init__(
        self,
        dims: Dimensions,
        *,
        recompute: Sequence[Recompute],
        num_microbatches: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        pinned: bool,
        lanes: Lanes,
    ) -> None:
        self._dims, self._dtype, self._lanes = dims, dtype, lanes
        self._recompute, self._num_microbatches = tuple(recompute), num_microbatches
        self._layouts: dict[tuple[int, Recompute], Layout] = {}
        sizes = [self._layout(max_tokens, level).num_bytes for level in recompute]
        per_step = sum(sizes) * num_microbatches
        self._kept = (
            pinned_bytes(per_step, purpose="what forward keeps for backward", device=device)
            if pinned
            else torch.zeros(per_step, dtype=torch.uint8, device=device)
        )
        begins = [0]
        for size in sizes:
            begins.extend(begins[-1] + size for _ in range(num_microbatches))
        self._begins = begins
        self._staging = (
            [torch.zeros(max(sizes), dtype=torch.uint8, device=device) for _ in range(2)]
            if pinned
            else []
        )
        self._num_tokens = [max_tokens] * num_microbatches
        self._num_kept = 0  # microbatches of this step
        self._turn = 0
        self._passed: list[Mark | None] = [None, None]  # a staging buffer may be overwritten
        self._down: dict[tuple[int, int], Mark] = {}
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._staged: dict[tuple[int, int], tuple[int, Mark]] = {}

    def device_bytes(self) -> dict[str, int]:
        """Count what lies on the device: records, and the buffers they pass through."""
        staging = sum(buffer.numel() for buffer in self._staging)
        return {"block_inputs": 0 if self._staging else self._kept.numel(), "staging": staging}

    def begin(self, block: int, microbatch: int, num_tokens: int) -> Record:
        """Give the record of a block's forward, to be filled.

        Args:
            block: from 0, ascending.
            microbatch: from 0, ascending.
            num_tokens: of this microbatch.
        """
        self._num_tokens[microbatch] = num_tokens
        self._num_kept = microbatch + 1
        layout = self._layout(num_tokens, self._recompute[block])
        if not self._staging:
            return layout.views(self._region(block, microbatch))
        self._lanes.wait(self._passed[self._turn])
        return layout.views(self._staging[self._turn])

    def end(self, block: int, microbatch: int) -> None:
        """Say that a record is filled."""
        if not self._staging:
            return
        size = self._layout(self._num_tokens[microbatch], self._recompute[block]).num_bytes
        done = self._lanes.down(
            self._region(block, microbatch)[:size],
            self._staging[self._turn][:size],
            after=[self._lanes.mark()],
        )
        self._passed[self._turn] = self._down[block, microbatch] = done
        self._turn = 1 - self._turn

    def turn_around(self) -> None:
        """Begin to bring records back, in the order of backward."""
        if not self._staging:
            return
        self._coming = (
            (block, microbatch)
            for block in reversed(range(len(self._recompute)))
            for microbatch in range(self._num_kept)
        )
        self._load_next()
        self._load_next()

    def take(self, block: int, microbatch: int) -> Record:
        """Give a filled record; it stays until ``done``."""
        layout = self._layout(self._num_tokens[microbatch], self._recompute[block])
        if not self._staging:
            return layout.views(self._region(block, microbatch))
        turn, ready = self._staged[block, microbatch]
        self._lanes.wait(ready)
        return layout.views(self._staging[turn])

    def done(self, block: int, microbatch: int) -> None:
        """Say that a record is no longer read."""
        if self._staging:
            turn, _ = self._staged.pop((block, microbatch))
            self._passed[turn] = self._lanes.mark()
            self._load_next()

    def clear(self) -> None:
        """Let go of all records, after a forward without its backward."""
        for turn, ready in self._staged.values():
            self._passed[turn] = ready  # nobody reads what is still on its way there
        self._staged.clear()
        self._coming = iter(())

    def _load_next(self) -> None:
        following = next(self._coming, None)
        if following is None:
            return
        block, microbatch = following
        size = self._layout(self._num_tokens[microbatch], self._recompute[block]).num_bytes
        turn, self._turn = self._turn, 1 - self._turn
        ready = self._lanes.up(
            self._staging[turn][:size],
            self._region(block, microbatch)[:size],
            after=[self._passed[turn], self._down.pop(following, None)],
        )
        self._staged[following] = turn, ready

    def _region(self, block: int, microbatch: int) -> Tensor:
        index = block * self._num_microbatches + microbatch
        return self._kept[self._begins[index] : self._begins[index + 1]]

    def _layout(self, num_tokens: int, recompute: Recompute) -> Layout:
        key = num_tokens, recompute
        if key not in self._layouts:
            self._layouts[key] = record_layout(self._dims, num_tokens, recompute, self._dtype)
        return self._layouts[key]
