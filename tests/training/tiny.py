"""A tiny model and rows of random tokens for the tests of training."""

import json
import queue
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from tests.data.token_stores import rows_in_memory
from workbench.data.loader import Loader, StepRows, make_batch
from workbench.data.packing import Row, Rows
from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.runs import checkpoints as folders
from workbench.runs.json_lines import read_lines
from workbench.runs.layout import RunFolder
from workbench.runs.metrics import MetricsRecord
from workbench.training import checkpoint
from workbench.training.control_point import ControlPoint, Wish
from workbench.training.distributed import Ranks
from workbench.training.engine.assemble import assemble
from workbench.training.engine.lanes import Lanes
from workbench.training.engine.plan import Plan, choose_plan
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.engine.weight_store import WeightStore
from workbench.training.loop import Ending, Intervals, Training
from workbench.training.optimizer.choice import OptimizerName, new_optimizer
from workbench.training.optimizer.protocol import Optimizer, Rounding
from workbench.training.publisher import Publisher
from workbench.training.report import Report
from workbench.training.state import TrainingState

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
    row_length: int = LENGTH,
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
            row_length=row_length,
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
    store: WeightStore
    optimizer: Optimizer

    def weights(self) -> dict[str, torch.Tensor]:
        self.store.settle()
        return {name: tensor.detach().clone() for name, tensor in self.store.named_tensors()}


def tiny_plan(dims: Dimensions, **changes: Any) -> Plan:  # noqa: ANN401
    """A plan that keeps everything where it is made, but for what is changed."""
    plan = choose_plan(
        dims,
        dtype=torch.float32,
        sum_dtype="auto",
        microbatches=1,
        rows=4,
        row_length=LENGTH,
        budget_bytes=None,
    )
    everything_stays = {
        "microbatches": 4,
        "sum_dtype": "float32",
        "resident_blocks": dims.num_layers,
        "vocabulary_resident": True,
        "slots": 3,
        "pinned_records": False,
        "recompute": ("full",) * dims.num_layers,
        "tile_rows": 1 << 20,
        "head_rows": 1 << 10,
        "companions_resident": False,
    }
    return replace(plan, **(everything_stays | changes))


def tiny_engine(
    dims: Dimensions,
    *,
    dtype: torch.dtype = torch.float32,
    sum_dtype: Literal["bfloat16", "float32"] = "float32",
    device: torch.device = CPU,
    clip_norm: float | None = None,
    seed: int = 7,
    rounding: Rounding = "stochastic",
    optimizer: OptimizerName = "adafactor",
    attention: str = "auto",
    lanes: Lanes | None = None,
    microbatch_tokens: int = 4 * LENGTH,
    **plan: Any,  # noqa: ANN401
) -> TinyEngine:
    """An engine of up to four microbatches of four rows; ``plan`` changes ``tiny_plan``."""
    rule = new_optimizer(
        optimizer,
        parameter_shapes(dims),
        dtype=dtype,
        device=device,
        seed=seed,
        weight_decay=1e-3,
        rounding=rounding,
    )
    engine = assemble(
        tiny_plan(dims, sum_dtype=sum_dtype, **plan),
        dims,
        rule,
        microbatch_tokens=microbatch_tokens,
        dtype=dtype,
        device=device,
        attention=attention,
        clip_norm=clip_norm,
        lanes=lanes,
    )
    engine.store.load(random_weights(dims, seed, dtype))
    return TinyEngine(engine, engine.store, rule)


MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def rows_of(seed: int, num_rows: int) -> Rows:
    generator = np.random.default_rng(seed)
    rows = [random_row(generator, documents=1 + index % 3) for index in range(num_rows)]
    return rows_in_memory(rows)


@dataclass
class TinyRun:
    """A training over a run folder, and the queue of its commands."""

    training: Training
    wishes: "queue.SimpleQueue[Wish]"
    tiny: TinyEngine

    def train(self) -> Ending:
        try:
            return self.training.train()
        finally:
            self.training.report.close()

    def losses(self) -> dict[int, float | None]:
        lines, _ = read_lines(self.training.run.metrics)
        records = [msgspec.json.decode(line.content, type=MetricsRecord) for line in lines]
        return {record.step: record.loss for record in records}


def tiny_run(
    folder: Path,
    *,
    max_steps: int,
    dtype: torch.dtype = torch.float32,
    intervals: Intervals | None = None,
    num_microbatches: int = 2,
    clip_norm: float | None = None,
    attempt: int = 1,
    nonfinite: Literal["stop", "skip"] = "stop",
    publisher: Publisher | None = None,
    wishes: "queue.SimpleQueue[Wish] | None" = None,
    resume: str = "auto",
) -> TinyRun:
    """Build what a rank builds, without a config; resumed where the folder has a checkpoint."""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    dims = dimensions()
    torch.manual_seed(1)
    tiny = tiny_engine(dims, dtype=dtype, clip_norm=clip_norm)
    rows = Loader(
        rows_of(1, 18),  # 5 steps per epoch, the last with two masked rows
        rows_per_step=4,
        num_microbatches=num_microbatches,
        shuffle=True,
        seed=3,
        pad_id=0,
        row_length=None,
    )
    validation = Loader(
        rows_of(2, 7), rows_per_step=3, shuffle=False, seed=3, pad_id=0, row_length=None
    )
    content = checkpoint.Content(
        weights=dict(tiny.store.named_tensors()),
        statistics=tiny.optimizer.named_tensors(),
        common={"config.json": json.dumps(MODEL_CONFIG).encode()},
        device=CPU,
    )
    state = TrainingState()
    if (resumed := folders.resume_point(run, resume, is_restart=False)) is not None:
        saved = checkpoint.load(resumed, content, dims, rows.steps_per_epoch, Ranks())
        tiny.engine.restore_previous_norm(saved.previous_gradient_norm)
        state = TrainingState.from_saved(saved)
    wishes = wishes or queue.SimpleQueue()
    training = Training(
        run=run,
        ranks=Ranks(),
        attempt=attempt,
        engine=tiny.engine,
        rows=rows,
        validation=validation,
        rate=lambda step: 3e-3 * min(step / 4, 1.0),
        max_steps=max_steps,
        intervals=intervals
        or Intervals(
            log=1,
            evaluate=None,
            max_evaluation_batches=None,
            save=None,
            save_at_end=True,
            keep=3,
        ),
        nonfinite=nonfinite,
        content=content,
        control=ControlPoint(Ranks(), wishes),
        publisher=publisher,
        report=Report(
            run, Ranks(), attempt=attempt, device=CPU, resumed_step=state.step, name=None
        ),
        state=state,
    )
    return TinyRun(training, wishes, tiny)
