"""From a plan to an engine: every buffer of a run is made here, once."""

import torch

from workbench.model.families import Dimensions
from workbench.model.kernel_choice import choose_kernels
from workbench.training.engine.block import BlockPass
from workbench.training.engine.gradient_sums import GradientSums
from workbench.training.engine.head import HeadPass
from workbench.training.engine.lanes import Lanes, lanes_for
from workbench.training.engine.plan import Plan, spread
from workbench.training.engine.records import Records
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.engine.weight_store import WeightStore
from workbench.training.optimizer.protocol import Optimizer


def assemble(
    plan: Plan,
    dims: Dimensions,
    optimizer: Optimizer,
    *,
    microbatch_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "auto",
    clip_norm: float | None = None,
    compiled: bool = False,
    lanes: Lanes | None = None,
) -> LayerMajorEngine:
    """Make an engine whose weights are zeros: fill them through ``engine.store``.

    Args:
        plan: what lies where.
        dims: of the model.
        optimizer: for parameters of this model.
        microbatch_tokens: of a microbatch, at most: its rows times the longest row.
        dtype: of weights and activations.
        device: where all of it happens.
        attention: ``model.attention``.
        clip_norm: bound for clipping by the previous step's norm; None does not clip.
        compiled: ``model.compile``.
        lanes: time lines of the device; None takes the device's own.

    Raises:
        WorkbenchError: host memory does not hold what the plan puts there.
    """
    lanes = lanes or lanes_for(device)
    kernels = choose_kernels(device, compiled=compiled)
    sum_dtype = torch.bfloat16 if plan.sum_dtype == "bfloat16" else torch.float32
    store = WeightStore(
        dims,
        dtype,
        device,
        lanes=lanes,
        resident_blocks=spread(plan.resident_blocks, dims.num_layers),
        vocabulary_resident=plan.vocabulary_resident,
        slots=plan.slots,
        companion=optimizer.companion,
        companions_resident=plan.companions_resident,
    )
    return LayerMajorEngine(
        dims=dims,
        store=store,
        optimizer=optimizer,
        records=Records(
            dims,
            recompute=plan.recompute,
            num_microbatches=plan.microbatches,
            max_tokens=microbatch_tokens,
            dtype=dtype,
            device=device,
            pinned=plan.pinned_records,
            lanes=lanes,
        ),
        block=BlockPass(
            dims,
            max_tokens=microbatch_tokens,
            tile_rows=plan.tile_rows,
            dtype=dtype,
            device=device,
            kernels=kernels,
        ),
        head=HeadPass(
            dims,
            chunk_rows=min(plan.head_rows, microbatch_tokens),
            dtype=dtype,
            device=device,
            kernels=kernels,
        ),
        sums=GradientSums(dims, sum_dtype, device),
        kernels=kernels,
        lanes=lanes,
        step_tokens=microbatch_tokens * plan.microbatches,
        microbatch_tokens=microbatch_tokens,
        attention=attention,
        clip_norm=clip_norm,
        dtype=dtype,
        device=device,
    )
