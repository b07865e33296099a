"""A tiny model and rows of random tokens for the tests of training."""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.data.loader import StepRows, make_batch
from workbench.data.packing import Row
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.engine.weight_store import ResidentStore
from workbench.training.optimizer.adafactor import Adafactor

VOCABULARY, LENGTH = 61, 24
CPU = torch.device("cpu")


def dimensions(*, tied: bool = False, layers: int = 3, family: str = "llama") -> Dimensions:
    return Dimensions(
        family=family,
        num_layers=layers,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocabulary_size=VOCABULARY,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        max_positions=64,
        sliding_window=None,
        tied=tied,
        initializer_range=0.2,
    )


def random_row(generator: np.random.Generator, *, documents: int, has_targets: bool = True) -> Row:
    """A row of several documents; about half of the tokens are targets, never a first one."""
    lengths = generator.integers(4, 7, size=documents)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    size = int(lengths.sum())
    targets = generator.random(size) < 0.5
    targets[starts] = False
    if not has_targets:
        targets[:] = False
    ids = generator.integers(0, VOCABULARY, size=size).astype(np.int32)
    return Row(ids=ids, targets=targets, document_starts=starts)


def step_rows(
    seed: int,
    *,
    num_rows: int = 4,
    num_microbatches: int = 1,
    masked_rows: frozenset[int] = frozenset(),
) -> StepRows:
    """Rows of 1 to 3 documents with unequal target counts; the same for any microbatches."""
    generator = np.random.default_rng(seed)
    rows = [
        random_row(generator, documents=1 + index % 3, has_targets=index not in masked_rows)
        for index in range(num_rows)
    ]
    share = -(-num_rows // num_microbatches)
    microbatches = tuple(
        make_batch(
            rows[start : start + share],
            num_rows=share,
            row_length=LENGTH,
            max_documents=4,
            pad_id=0,
        )
        for start in range(0, num_rows, share)
    )
    return StepRows(
        microbatches,
        num_targets=sum(batch.num_targets for batch in microbatches),
        num_tokens=sum(batch.num_tokens for batch in microbatches),
        epoch=0.0,
    )


@dataclass
class TinyEngine:
    """An engine with its parts."""

    engine: LayerMajorEngine
    store: ResidentStore
    optimizer: Adafactor

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.store.named_tensors()}


def tiny_engine(
    dims: Dimensions,
    *,
    dtype: torch.dtype = torch.float32,
    sum_dtype: torch.dtype | None = None,
    device: torch.device = CPU,
    clip_norm: float | None = None,
    seed: int = 7,
    stochastic_rounding: bool = True,
) -> TinyEngine:
    store = ResidentStore(dims, dtype, device)
    store.load(random_weights(dims, seed, dtype))
    shapes = {name: tuple(tensor.shape) for name, tensor in store.named_tensors()}
    optimizer = Adafactor(
        shapes,
        device=device,
        seed=seed,
        weight_decay=1e-3,
        stochastic_rounding=stochastic_rounding,
    )
    engine = LayerMajorEngine(
        dims=dims,
        store=store,
        optimizer=optimizer,
        sum_dtype=sum_dtype or torch.float32,
        attention="auto",
        clip_norm=clip_norm,
        dtype=dtype,
        device=device,
    )
    return TinyEngine(engine, store, optimizer)
