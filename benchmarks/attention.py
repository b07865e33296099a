"""Time attention's forward and backward, and what they take beside their inputs, on one GPU.

    python benchmarks/attention.py                     # heads of Mistral-7B
    python benchmarks/attention.py --heads 32 32       # of Llama-2-7B

Each line is one block's attention over the tokens of one microbatch: milliseconds by device events
(median), bytes per token of queries, keys and values, that the forward (result, log-sum-exp) and
the backward (gradients and what the kernel allocates for itself) hold at their peak. Inputs are
random and larger than the caches. Flash's dense form is there to compare with; nothing uses it.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.attention_kernels import (
    Kernel,
    Spans,
    kernel_backward,
    kernel_forward,
)

CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Kernel | None  # None: flash's dense form
    rows: int
    lengths: list[int]  # documents of all rows, laid end to end
    window: int | None = None
    deterministic: bool = False


def packed_documents(tokens: int, seed: int = 0) -> list[int]:
    """Give documents of 100 to 1,300 tokens that fill the tokens; the last may be shorter."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        drawn = int(torch.randint(100, 1301, (), generator=generator))
        lengths.append(min(drawn, tokens - sum(lengths)))
    return lengths


def cases() -> list[Case]:
    packed, rows, long = packed_documents(16384), [4096] * 4, [65536]
    return [
        Case(f"{len(packed)} documents of 100 to 1,300", "flash", 4, packed),
        Case("the same, deterministic", "flash", 4, packed, deterministic=True),
        Case("4 rows of 4,096", "cudnn", 4, rows),
        Case("4 rows of 4,096", "flash", 4, rows),
        Case("4 rows of 4,096", None, 4, rows),
        Case("the same, deterministic", "flash", 4, rows, deterministic=True),
        Case("1 row of 4,096", "cudnn", 1, [4096]),
        Case("1 row of 4,096", "flash", 1, [4096]),
        Case("1 row of 16,384", "cudnn", 1, [16384]),
        Case("1 row of 16,384", "flash", 1, [16384]),
        Case("1 row of 16,384, window 4,096", "flash", 1, [16384], window=4096),
        Case("the same row, deterministic", "flash", 1, [16384], deterministic=True),
        Case("1 row of 65,536", "cudnn", 1, long),
        Case("1 row of 65,536", "flash", 1, long),
    ]


def dense_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    length = q.shape[1]
    out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, length, length, 0.0, True, False
    )
    return out, log_sum


def dense_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, ...]:
    length, unused = q.shape[1], log_sum.new_empty(0)
    gradients: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        gradient, q, k, v, out, log_sum, None, None, length, length, 0.0, True, unused, unused
    )
    return gradients


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Give the median of the repeats, by device events, after two calls to warm up."""
    call()
    call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak_bytes(call: Callable[[], object]) -> int:
    """Give what one call holds at its peak above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case, heads: int, key_heads: int, head_dim: int, repeats: int) -> str:
    tokens = sum(case.lengths)
    widths = [heads * head_dim, key_heads * head_dim, key_heads * head_dim]
    buffer = torch.randn(tokens, sum(widths), device=CUDA, dtype=torch.bfloat16)
    q, k, v = (
        part.view(case.rows, tokens // case.rows, -1, head_dim)
        for part in torch.split(buffer, widths, 1)
    )
    gradient = torch.randn_like(q, memory_format=torch.contiguous_format)
    ends = torch.tensor(case.lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    boundaries = torch.nn.functional.pad(ends, (1, 0)).to(CUDA)
    spans = Spans(case.window, boundaries, max(case.lengths))
    torch.use_deterministic_algorithms(case.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if case.kernel is None:
        forward = functools.partial(dense_forward, q, k, v)
    else:
        forward = functools.partial(kernel_forward, case.kernel, q, k, v, spans)
    out, log_sum = forward()
    backward: Callable[[], object]
    if case.kernel is None:
        backward = functools.partial(dense_backward, gradient, q, k, v, out, log_sum)
    else:
        backward = functools.partial(
            kernel_backward, case.kernel, gradient, q, k, v, out, log_sum, spans
        )
    return (
        f"{case.name:34} {case.kernel or 'flash, dense':12} "
        f"{milliseconds(forward, repeats):8.3f} {milliseconds(backward, repeats):8.3f} "
        f"{peak_bytes(forward) / tokens:8,.0f} {peak_bytes(backward) / tokens:8,.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8), metavar=("QUERY", "KEY"))
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    heads, key_heads = arguments.heads
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{heads} query heads, {key_heads} key heads of {arguments.head_dim}, bfloat16")
    print(f"{'':34} {'':12} {'forward':>8} {'backward':>8} {'forward':>8} {'backward':>8}")
    print(f"{'':34} {'kernel':12} {'ms':>8} {'ms':>8} {'B/token':>8} {'B/token':>8}")
    for case in cases():
        print(measure(case, heads, key_heads, arguments.head_dim, arguments.repeats))


if __name__ == "__main__":
    main()
