"""Time each kernel of the engine against its eager twin, torch.compile and Liger, on one GPU.

    python benchmarks/elementwise.py --rows 4096 --shapes mistral-7b [--vocabulary 128256]

First the ceiling: the median rate of a device-to-device copy of 2 GiB, bytes read plus written.
Then a row per kernel: the fewest bytes it must move, and for each way its median time, rate, and
share of that ceiling. Inputs are random, rotate through several sets so that none of them stays in
the cache, and are restored before each measurement, since most kernels write in place. A way's
launches wait behind a pause on the device, so that only their time there counts. The way "copy" is
a plain copy of as many bytes: what the device reaches at this size. ``--compiled`` adds
torch.compile, which takes a minute more.

Liger's kernels do less in two places, and more in one: its backward of the norm adds nothing onto a
gradient, that of the gated product does not write the product again, and its loss waits for the
device.
"""

import argparse
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, dimensions
from torch import Tensor

from workbench.model.compiled_kernels import CompiledKernels
from workbench.model.families import Dimensions
from workbench.model.fused_kernels import FusedKernels
from workbench.model.kernels import EagerKernels, Kernels

DEVICE = torch.device("cuda")
CACHE_BYTES = 256 << 20  # sets of inputs together, at least: four times an H200's L2
PAUSE_CYCLES = 4_000_000
REPEATS = 9

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        name: of the kernel, with what is special about its size.
        num_bytes: the fewest it must read and write.
        draw: makes a set of inputs.
        run: calls the kernel on a set.
        liger: does the same with Liger, where it has something like it.
    """

    name: str
    num_bytes: int
    draw: Callable[[], Inputs]
    run: Callable[[Kernels, Inputs], None]
    liger: Callable[[Inputs], Any] | None = None


def median_seconds(call: Callable[[Inputs], Any], sets: Sequence[Inputs]) -> float:
    """Time one call over each set in turn, several times; the inputs are restored in between."""
    originals = [{name: tensor.clone() for name, tensor in inputs.items()} for inputs in sets]
    times = []
    for _ in range(REPEATS + 2):  # the first two compile and warm up
        for inputs, original in zip(sets, originals, strict=True):
            for name, tensor in inputs.items():
                tensor.copy_(original[name])
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(PAUSE_CYCLES)
        begin.record()
        for inputs in sets:
            call(inputs)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / len(sets))
    for inputs, original in zip(sets, originals, strict=True):
        for name, tensor in inputs.items():
            tensor.copy_(original[name])
    return statistics.median(times[2:])


def copy_rate() -> float:
    """Measure bytes per second of a copy on the device, reads and writes together."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device=DEVICE).normal_()
    sets: list[Inputs] = [{"to": torch.empty_like(source)}]
    return 2 * source.nbytes / median_seconds(lambda inputs: inputs["to"].copy_(source), sets)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_()


def block_cases(rows: int, dims: Dimensions) -> list[Case]:
    """The kernels of a block at the width of a model."""
    hidden, inner, head_dim = dims.hidden_size, dims.intermediate_size, dims.head_dim
    heads, key_heads = dims.num_heads, dims.num_key_value_heads
    queries, keys = heads * head_dim, key_heads * head_dim
    weight = normal(hidden)
    angles = torch.rand(rows, head_dim // 2, device=DEVICE).mul(1000).repeat(1, 2)
    cosine, sine = angles.cos().bfloat16(), angles.sin().bfloat16()
    tables = 2 * rows * head_dim * 2

    def draw_norm() -> Inputs:
        return {name: normal(rows, hidden) for name in ("gradient", "x", "onto")} | {
            "weight_sum": normal(hidden, dtype=torch.float32)
        }

    def draw_heads() -> Inputs:
        return {"qkv": normal(rows, queries + 2 * keys), "out": normal(rows, queries + 2 * keys)}

    def draw_gated() -> Inputs:
        return {"gate_up": normal(rows, 2 * inner), "product": normal(rows, inner)}

    def pack(kernels: Kernels, inputs: Inputs) -> None:
        parts = inputs["qkv"].unflatten(1, (-1, head_dim)).split([heads, key_heads, key_heads], 1)
        kernels.pack_rotated_back(*parts, cosine, sine, out_TE=inputs["out"])

    return [
        Case(
            "norm",
            rows * hidden * 4,
            draw_norm,
            lambda kernels, i: kernels.norm(i["x"], weight, 1e-5, out_TD=i["onto"]),
            lambda i: liger("rms_norm").rms_norm_forward(i["x"], weight, 1e-5, 0.0, "llama", False),
        ),
        Case(
            "norm backward",
            rows * hidden * 8,
            draw_norm,
            lambda kernels, i: kernels.norm_backward(
                i["gradient"],
                i["x"],
                weight,
                1e-5,
                onto_TD=i["onto"],
                weight_sum_D=i["weight_sum"],
            ),
            _LigerNormBackward(weight),
        ),
        Case(
            "rotate",
            rows * (queries + keys) * 4 + tables,
            draw_heads,
            lambda kernels, i: kernels.rotate(
                i["qkv"], cosine, sine, num_heads=heads + key_heads, head_dim=head_dim
            ),
        ),
        Case("rotate back, pack", rows * (queries + 2 * keys) * 4 + tables, draw_heads, pack),
        Case(
            "gated product",
            rows * inner * 6,
            draw_gated,
            lambda kernels, i: kernels.gated_product(i["gate_up"], out_TF=i["product"]),
            lambda i: liger("swiglu").swiglu_forward(*_halves(i)),
        ),
        Case(
            "gated product backward",
            rows * inner * 12,
            draw_gated,
            lambda kernels, i: kernels.gated_product_backward(i["gate_up"], i["product"]),
            lambda i: liger("swiglu").swiglu_backward(*_halves(i), i["product"]),
        ),
    ]


def head_case(rows: int, vocabulary: int) -> Case:
    """The loss and its gradient in place: one read and one write of the logits."""
    losses = torch.empty(rows, device=DEVICE)

    def draw() -> Inputs:
        return {
            "logits": normal(rows, vocabulary),
            "labels": torch.randint(vocabulary, (rows,), device=DEVICE),
        }

    return Case(
        f"cross entropy, V {vocabulary}",
        rows * vocabulary * 4,
        draw,
        lambda kernels, i: kernels.cross_entropy(i["logits"], i["labels"], 1e-3, losses_C=losses),
        lambda i: liger("cross_entropy").cross_entropy_forward(
            i["logits"], i["labels"], None, -100, 0.0, 0.0, "sum", None, False
        ),
    )


def rows_case(rows: int, dims: Dimensions) -> Case:
    """Sums over tokens of equal id, ids by Zipf's law."""
    hidden = dims.hidden_size
    ids = np.random.default_rng(1).zipf(1.2, rows) % dims.vocabulary_size
    distinct, counts = np.unique(ids, return_counts=True)
    order, begins, wanted = (
        torch.from_numpy(array.astype(np.int64)).to(DEVICE)
        for array in (
            np.argsort(ids, kind="stable"),
            np.concatenate(([0], np.cumsum(counts))),
            distinct,
        )
    )
    return Case(
        f"add rows, most frequent {counts.max()}",
        rows * hidden * 2 + len(distinct) * hidden * 4,
        lambda: {"gradient": normal(rows, hidden), "onto": normal(dims.vocabulary_size, hidden)},
        lambda kernels, i: kernels.add_rows(
            i["gradient"], order, begins, wanted, onto_VD=i["onto"]
        ),
    )


def liger(module: str) -> Any:  # noqa: ANN401
    return importlib.import_module(f"liger_kernel.ops.{module}")


class _LigerNormBackward:
    """Liger's backward wants what its forward kept: that is made once per set, beforehand."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._kept: dict[int, Any] = {}

    def __call__(self, inputs: Inputs) -> None:
        x = inputs["x"]
        if x.data_ptr() not in self._kept:
            self._kept[x.data_ptr()] = liger("rms_norm").rms_norm_forward(
                x, self._weight, 1e-5, 0.0, "llama", False
            )
        _, _, root, block, warps, mode = self._kept[x.data_ptr()]
        liger("rms_norm").rms_norm_backward(
            inputs["gradient"], x, self._weight, root, 0.0, mode, block, warps, False, False
        )


def _halves(inputs: Inputs) -> list[Tensor]:
    """Give gate and up as Liger wants them: each in one piece."""
    return list(inputs["gate_up"].view(2, -1, inputs["product"].shape[1]).unbind(0))


def measure(
    case: Case, ways: dict[str, Callable[[Case], Callable[[Inputs], Any] | None]], ceiling: float
) -> None:
    """Print one line per way."""
    sets = [case.draw()]
    held = sum(tensor.nbytes for tensor in sets[0].values())
    sets += [case.draw() for _ in range(CACHE_BYTES // held)]
    half = case.num_bytes // 4  # elements of bf16 on each side
    copies = [{"to": normal(half), "from": normal(half)} for _ in sets]
    _print_line(case, "copy", median_seconds(lambda i: i["to"].copy_(i["from"]), copies), ceiling)
    for name, make in ways.items():
        call = make(case)
        if call is None:
            continue
        _print_line(case, name, median_seconds(call, sets), ceiling)


def _print_line(case: Case, way: str, seconds: float, ceiling: float) -> None:
    rate = case.num_bytes / seconds
    print(
        f"{case.name:<32} {way:<9} {case.num_bytes / 1e6:>9.1f} {seconds * 1e6:>9.1f}"
        f" {rate / 1e9:>8.0f} {rate / ceiling:>7.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["mistral-7b"])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[], help="beside the shapes'")
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(DEVICE)
    ceiling = copy_rate()
    print(f"{properties.name}, torch {torch.__version__}: copy {ceiling / 1e9:.0f} GB/s")
    kernels: dict[str, Kernels] = {"fused": FusedKernels(), "eager": EagerKernels()}
    if arguments.compiled:
        kernels["compiled"] = CompiledKernels(DEVICE)
    ways: dict[str, Callable[[Case], Callable[[Inputs], Any] | None]] = {
        name: lambda case, chosen=chosen: lambda inputs: case.run(chosen, inputs)
        for name, chosen in kernels.items()
    }
    if importlib.util.find_spec("liger_kernel") is not None:
        ways["liger"] = lambda case: case.liger
    for name in arguments.shapes:
        dims = dimensions(name)
        print(f"\n{name}, {arguments.rows} rows, bf16")
        print(f"{'kernel':<32} {'way':<9} {'MB':>9} {'us':>9} {'GB/s':>8} {'share':>7}")
        for case in block_cases(arguments.rows, dims):
            measure(case, ways, ceiling)
        for vocabulary in (dims.vocabulary_size, *arguments.vocabulary):
            measure(head_case(arguments.rows, vocabulary), ways, ceiling)
        measure(rows_case(4 * arguments.rows, dims), ways, ceiling)


if __name__ == "__main__":
    main()
