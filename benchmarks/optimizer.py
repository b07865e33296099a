"""Measure one update per shape against the time that its traffic alone would take.

    python benchmarks/optimizer.py [--names adafactor adamw adamw_8bit adamw_4bit]

Adafactor moves 10 bytes per parameter with bf16 gradients: three reads of the gradient, a read and
a write of the weight. The ceiling is a large elementwise pass on the same device. Updates are
replayed from a CUDA graph, over several tensors in turn, so neither launches nor the cache help or
hinder.
"""

import argparse
import statistics
import time

import torch

from workbench.training.optimizer.choice import new_optimizer

SHAPES = [(4096, 14336), (14336, 4096), (1024, 4096), (4096, 4096), (32000, 4096), (4096,)]
DEVICE = torch.device("cuda", 0)
# Bytes that the rule must move per parameter with bf16 gradients and weights.
TRAFFIC = {"adafactor": 10, "adamw": 24, "adamw_8bit": 12, "adamw_4bit": 10}


def milliseconds(graph: torch.cuda.CUDAGraph, updates: int, repeats: int = 9) -> float:
    """Median time of one update of a graph that holds several."""
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / updates)
    return statistics.median(found)


def copy_rate() -> float:
    """Bytes per second, read and written, of a pass that only negates."""
    source = torch.randn(1 << 30, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            torch.neg(source, out=target)
    return 2 * source.nbytes / milliseconds(graph, 4) * 1e3


def one_update(
    name: str, shape: tuple[int, ...], sum_dtype: torch.dtype, rounding: str = "stochastic"
) -> tuple[float, float]:
    """Give milliseconds of one update on the device, and of the host that asks for it."""
    optimizer = new_optimizer(
        name,  # type: ignore[arg-type]
        {"w": shape},
        dtype=torch.bfloat16,
        device=DEVICE,
        seed=0,
        weight_decay=1e-3,
        rounding=rounding,  # type: ignore[arg-type]
    )
    num = max(2, min(16, (512 << 20) // (4 * torch.Size(shape).numel())))
    weights = [torch.randn(shape, device=DEVICE).mul_(0.02).bfloat16() for _ in range(num)]
    gradients = [torch.randn(shape, device=DEVICE).to(sum_dtype) for _ in range(num)]
    parts = optimizer.companion(shape)
    companions = [
        {part: torch.zeros(at, dtype=dtype, device=DEVICE) for part, (at, dtype) in parts.items()}
        for _ in range(num)
    ]
    ok = torch.tensor(True, device=DEVICE)

    def update_all() -> None:
        for weight, gradient, companion in zip(weights, gradients, companions, strict=True):
            optimizer.update("w", weight, gradient, companion, step=9, learning_rate=1e-5, ok=ok)

    update_all()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    update_all()
    on_host = (time.perf_counter() - begin) / num * 1e3
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update_all()
    return milliseconds(graph, num), on_host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", default=["adafactor"], choices=list(TRAFFIC))
    names = parser.parse_args().names
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copy {rate / 1e12:.2f} TB/s")
    print("| optimizer | shape | gradient | rounding | ms | GB/s | x traffic time | host ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        settings = [(torch.bfloat16, "stochastic")]
        if name == "adafactor":
            settings += [(torch.float32, "stochastic"), (torch.bfloat16, "exact")]
        for sum_dtype, rounding in settings:
            for shape in SHAPES:
                taken, on_host = one_update(name, shape, sum_dtype, rounding)
                per_element = TRAFFIC[name] + (4 if rounding == "exact" else 0)
                reads = 3 if name == "adafactor" else 2
                per_element += reads * (sum_dtype.itemsize - 2)
                traffic = per_element * torch.Size(shape).numel()
                print(
                    f"| {name} | {' x '.join(map(str, shape))} | {str(sum_dtype)[6:]} | {rounding} "
                    f"| {taken:.4f} | {traffic / taken / 1e6:.0f} "
                    f"| {taken / (traffic / rate * 1e3):.2f} | {on_host:.3f} |"
                )


if __name__ == "__main__":
    main()
