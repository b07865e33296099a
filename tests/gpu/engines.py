"""Engines of a size at which copies take time, and rows that documents share or have alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.training.tiny import TinyEngine, dimensions, tiny_plan
from workbench.data.loader import StepRows, make_batch
from workbench.data.packing import Row
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.training.engine.assemble import assemble
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.protocol import Rounding

CUDA = torch.device("cuda", 0)
ROW_LENGTH, ROWS = 160, 4


def middling(*, tied: bool = False, layers: int = 5) -> Dimensions:
    """A model whose block is 14 MB in bfloat16, with grouped heads that every kernel takes."""
    return replace(
        dimensions(tied=tied, layers=layers),
        hidden_size=768,
        intermediate_size=2048,
        num_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        vocabulary_size=1500,
        max_positions=4096,
        initializer_range=0.05,
    )


def shared_and_lone_rows(
    seed: int, *, num_microbatches: int = 2, row_length: int = ROW_LENGTH
) -> StepRows:
    """Give rows of one to three documents; in the last microbatch each row is one document.

    So a step of two microbatches goes through both kinds of attention.
    """
    generator = np.random.default_rng(seed)
    share = ROWS // num_microbatches
    batches = []
    for number in range(num_microbatches):
        rows = []
        for index in range(share):
            num_documents = 1 if number == num_microbatches - 1 else 1 + (seed + index) % 3
            inner = generator.choice(np.arange(1, row_length), num_documents - 1, replace=False)
            starts = np.sort(np.concatenate([[0], inner])).astype(np.int32)
            targets = generator.random(row_length) < 0.5
            targets[starts] = False
            ids = generator.integers(0, 1500, size=row_length).astype(np.int32)
            rows.append(Row(ids=ids, targets=targets, document_starts=starts))
        batches.append(
            make_batch(rows, num_rows=share, row_length=row_length, max_documents=4, pad_id=0)
        )
    return StepRows(
        tuple(batches),
        num_targets=sum(batch.num_targets for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        epoch=0.0,
    )


def middling_engine(
    dims: Dimensions,
    *,
    optimizer: OptimizerName = "adafactor",
    rounding: Rounding = "stochastic",
    num_microbatches: int = 2,
    row_length: int = ROW_LENGTH,
    clip_norm: float | None = None,
    **plan: Any,  # noqa: ANN401
) -> TinyEngine:
    """An engine in bfloat16 with random weights; ``plan`` changes what ``tiny_plan`` says."""
    rule = new_optimizer(
        optimizer,
        parameter_shapes(dims),
        dtype=torch.bfloat16,
        device=CUDA,
        seed=7,
        weight_decay=1e-3,
        rounding=rounding,
    )
    changes = {"microbatches": num_microbatches, "tile_rows": 64, "head_rows": 48} | plan
    engine = assemble(
        tiny_plan(dims, **changes),
        dims,
        rule,
        microbatch_tokens=ROWS // num_microbatches * row_length,
        dtype=torch.bfloat16,
        device=CUDA,
        clip_norm=clip_norm,
    )
    engine.store.load(random_weights(dims, 7, torch.bfloat16))
    return TinyEngine(engine, engine.store, rule)
