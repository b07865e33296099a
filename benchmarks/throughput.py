"""Measure a layer-major step on random weights and packed random rows.

    python benchmarks/throughput.py --shapes 1b --row 4096 --rows 4 --steps 8

Prints the machine's ceiling first, then the plan's prediction beside what was measured. Weights,
ids and masks are random: products run faster on zeros than on data. For peaks as ranks have them,
set PYTORCH_ALLOC_CONF=expandable_segments:True, which ranks do by themselves.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from workbench.config.memory_parts import GIB
from workbench.data.loader import StepRows, make_batch
from workbench.data.packing import Row
from workbench.model.families import Dimensions
from workbench.model.weights import random_weights
from workbench.training.engine.plan import Plan, choose_plan, take_budget
from workbench.training.engine.step import LayerMajorEngine
from workbench.training.engine.weight_store import ResidentStore
from workbench.training.optimizer.adafactor import Adafactor

# vocabulary, hidden, layers, intermediate, heads, key and value heads
SHAPES = {
    "demo": (1536, 128, 4, 384, 4, 2),
    "1b": (32000, 2048, 16, 5632, 32, 8),
    "mistral-7b": (32000, 4096, 32, 14336, 32, 8),
    "llama-2-7b": (32000, 4096, 32, 11008, 32, 32),
    "llama-2-13b": (32000, 5120, 40, 13824, 40, 40),
    "llama-3.1-8b": (128256, 4096, 32, 14336, 32, 8),
    "qwen-0.5b": (151936, 896, 24, 4864, 14, 2),
    "qwen-1.5b": (151936, 1536, 28, 8960, 12, 2),
    "qwen-7b": (152064, 3584, 28, 18944, 28, 4),
}


def dimensions(name: str) -> Dimensions:
    vocabulary, hidden, layers, intermediate, heads, key_heads = SHAPES[name]
    return Dimensions(
        family="llama",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=hidden // heads,
        vocabulary_size=vocabulary,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        max_positions=1 << 17,
        sliding_window=None,
        tied=False,
        initializer_range=0.02,
    )


def random_rows(dims: Dimensions, rows: int, length: int, microbatches: int, seed: int) -> StepRows:
    """Full rows of documents of 100 to 1,300 tokens; half of the tokens are targets."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        starts = [0]
        while (start := starts[-1] + int(generator.integers(100, 1300))) < length:
            starts.append(start)
        targets = generator.random(length) < 0.5
        targets[starts] = False
        ids = generator.integers(0, dims.vocabulary_size, length).astype(np.int32)
        made.append(Row(ids=ids, targets=targets, document_starts=np.array(starts, np.int32)))
    share = -(-rows // microbatches)
    widest = max(row.document_starts.size for row in made) + 1
    batches = tuple(
        make_batch(
            made[start : start + share],
            num_rows=share,
            row_length=length,
            max_documents=widest,
            pad_id=0,
        )
        for start in range(0, rows, share)
    )
    return StepRows(
        batches,
        num_targets=sum(batch.num_targets for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        epoch=0.0,
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product of random numbers."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(10):
        left @ right
    synchronize(device)
    return 10 * 2 * size**3 / (time.perf_counter() - begin)


def make_engine(
    dims: Dimensions,
    store: ResidentStore,
    plan: Plan,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerMajorEngine:
    """The engine of a run with shipped settings, over weights that are there."""
    optimizer = Adafactor(
        {name: tuple(tensor.shape) for name, tensor in store.named_tensors()},
        device=device,
        seed=0,
        weight_decay=1e-3,
        rounding="stochastic",
    )
    return LayerMajorEngine(
        dims=dims,
        store=store,
        optimizer=optimizer,
        sum_dtype=getattr(torch, plan.sum_dtype),
        attention="auto",
        clip_norm=None,
        dtype=dtype,
        device=device,
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--row", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--microbatches", type=int, default=None)
    parser.add_argument("--cap-gib", type=float, default=None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = getattr(torch, options.dtype)
    dims = dimensions(options.shapes)
    torch.set_float32_matmul_precision("high")
    rate = product_rate(device, dtype)
    print(f"product rate {rate / 1e12:.3g} TFLOP/s on {device}, torch {torch.__version__}")
    plan = choose_plan(
        dims,
        dtype=dtype,
        sum_dtype="auto",
        microbatches=options.microbatches or "auto",
        rows=options.rows,
        row_length=options.row,
        budget_bytes=take_budget(device, options.cap_gib),
    )
    store = ResidentStore(dims, dtype, device)
    store.load(random_weights(dims, 0, dtype))
    engine = make_engine(dims, store, plan, dtype, device)
    seconds = []
    num_tokens = options.rows * options.row
    for number in range(1, options.steps + 4):
        rows = random_rows(dims, options.rows, options.row, plan.microbatches, number)
        synchronize(device)
        begin = time.perf_counter()
        result = engine.step(rows, number, 1e-6)
        synchronize(device)
        elapsed = time.perf_counter() - begin
        if number > 3:
            seconds.append(elapsed)
        loss = float(result.loss_sum) / rows.num_targets
        print(f"step {number}: {elapsed:.3f} s, loss {loss:.4f}")
    median = statistics.median(seconds)
    print(
        f"{options.shapes} {options.row} x {options.rows} in {plan.microbatches} microbatches, "
        f"sums in {plan.sum_dtype}: median {median:.3f} s, min {min(seconds):.3f} s, "
        f"{num_tokens / median:.0f} tokens/s"
    )
    print(
        f"predicted allocated {plan.predicted.peak / GIB:.2f} GiB, "
        f"reserved {plan.predicted.reserved / GIB:.2f} GiB: {plan.predicted}"
    )
    if device.type == "cuda":
        print(
            f"allocated {torch.cuda.max_memory_allocated() / GIB:.2f} GiB, "
            f"reserved {torch.cuda.max_memory_reserved() / GIB:.2f} GiB"
        )


if __name__ == "__main__":
    main()
