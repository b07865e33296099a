"""Measure how fast weights come from disk and go back: reading, loading in place, saving, pinning.

    python benchmarks/loading.py --gib 14 --scratch /tmp/weights --pinned 4 16 64
    python benchmarks/loading.py --folder ~/models/Mistral-7B-v0.3

Without a folder, random weights of Mistral-7B's shapes are drawn, as many blocks as the size asks
for, and saved to the scratch folder first. Nothing is dropped from the page cache: what was just
written or read is read from memory. Peaks are those of a row, above what was resident when it
began; destinations count. Rows that need a GPU are left out where there is none.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.model.decoder import parameter_shapes
from workbench.model.families import Dimensions, read_dimensions
from workbench.model.safetensors_reader import memory_of
from workbench.model.safetensors_writer import plan_shards
from workbench.model.weights import find_tensors, load_into, random_into, write_weights
from workbench.training.engine.flat import flat_layout
from workbench.training.engine.host_memory import pinned_bytes

GIB = 1 << 30
CHUNK_BYTES = 16 << 20
COPIED_BYTES = 4 * GIB
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Row:
    what: str
    num_bytes: int
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        rate = self.num_bytes / self.seconds / 1e9
        return (
            f"| {self.what:<44} | {self.num_bytes / GIB:7.2f} | {self.seconds:8.3f} "
            f"| {rate:7.2f} | {self.peak_bytes / GIB:8.2f} |"
        )


HEADER = (
    f"| {'what':<44} | {'GiB':>7} | {'seconds':>8} | {'GB/s':>7} | {'peak GiB':>8} |\n"
    f"|{'-' * 46}|{'-' * 8}:|{'-' * 9}:|{'-' * 8}:|{'-' * 9}:|"
)


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0


def measured(what: str, num_bytes: int, run: Callable[[], object]) -> None:
    """Run once; print its row at once, so that an end by a time limit loses nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = status_bytes("VmRSS")
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    print(Row(what, num_bytes, seconds, max(0, status_bytes("VmHWM") - before)), flush=True)


def dimensions_for(gib: float, dtype: torch.dtype) -> Dimensions:
    """Mistral-7B's shapes with as many blocks as fit a size, at least one."""

    def of(num_layers: int) -> Dimensions:
        return Dimensions(
            family="mistral",
            num_layers=num_layers,
            hidden_size=4096,
            intermediate_size=14336,
            num_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocabulary_size=32000,
            norm_epsilon=1e-5,
            rope_theta=10000.0,
            max_positions=32768,
            sliding_window=None,
            tied=False,
            initializer_range=0.02,
        )

    none, one = (num_weights(of(layers)) * dtype.itemsize for layers in (0, 1))
    return of(max(1, int((gib * GIB - none) / (one - none))))


def num_weights(dims: Dimensions) -> int:
    return sum(torch.Size(shape).numel() for shape in parameter_shapes(dims).values())


def destinations(
    dims: Dimensions, dtype: torch.dtype, device: torch.device, *, pinned_for: torch.device | None
) -> dict[str, Tensor]:
    """Views of one region for all parameters, as an engine has them."""
    layout = flat_layout({name: (shape, dtype) for name, shape in parameter_shapes(dims).items()})
    if pinned_for is not None:
        region = pinned_bytes(layout.num_bytes, purpose="weights", device=pinned_for)
    else:
        region = torch.empty(layout.num_bytes, dtype=torch.uint8, device=device)
    return layout.views(region)


def read_through(files: list[Path]) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def measure_folder(
    folder: Path, dims: Dimensions, dtype: torch.dtype, scratch: Path | None, gpu: bool
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    files = sorted(set(find_tensors(folder).values()))
    stored = sum(path.stat().st_size for path in files)
    kept = num_weights(dims) * dtype.itemsize
    measured("read, one thread", stored, lambda: read_through(files))
    measured("read again, page cache", stored, lambda: read_through(files))
    where = "pinned host memory" if gpu else "host memory"
    on_host: dict[str, Tensor] = {}
    measured(
        f"take {where}",
        kept,
        lambda: on_host.update(
            destinations(dims, dtype, cpu, pinned_for=cuda if gpu else cpu),
        ),
    )
    for again in ("", " again"):
        measured(f"load_into {where}{again}", stored, lambda: load_into(folder, dims, on_host))
    on_gpu = destinations(dims, dtype, cuda, pinned_for=None) if gpu else {}
    for again in ("", " again") if gpu else ():
        measured(f"load_into the GPU{again}", stored, lambda: load_into(folder, dims, on_gpu))
    if gpu:
        save("save from the GPU", on_gpu, scratch)
    save(f"save from {where}", on_host, scratch)
    measured("  hash alone, 8 threads", kept, lambda: in_threads(hash_all, on_host))
    with tempfile.TemporaryDirectory(dir=scratch) as plain:
        measured(
            "  write and sync alone, 8 threads",
            kept,
            lambda: in_threads(lambda part: write_plainly(Path(plain), part), on_host),
        )


def in_threads(do: Callable[[dict[str, Tensor]], object], weights: Mapping[str, Tensor]) -> None:
    """Do with parts of up to 2 GiB what a save does with them."""
    parts = plan_shards(Path("part"), weights).values()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(do, parts))


def hash_all(part: Mapping[str, Tensor]) -> None:
    digest = hashlib.sha256()
    for tensor in part.values():
        digest.update(memory_of(tensor))


def write_plainly(folder: Path, part: Mapping[str, Tensor]) -> None:
    with (folder / next(iter(part))).open("wb", buffering=CHUNK_BYTES) as file:
        for tensor in part.values():
            file.write(memory_of(tensor))
        file.flush()
        os.fsync(file.fileno())


def save(what: str, weights: Mapping[str, Tensor], scratch: Path | None) -> None:
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        measured(what, num_bytes, lambda: write_weights(Path(folder), weights))


def measure_pinned(num_bytes: int, device: torch.device) -> None:
    """Take pinned memory, then copy up, down, and both ways at once."""
    taken: list[Tensor] = []
    measured(
        f"pin {num_bytes / GIB:g} GiB: touch and register",
        num_bytes,
        lambda: taken.append(pinned_bytes(num_bytes, purpose="pages", device=device)),
    )
    size = min(COPIED_BYTES, num_bytes // 2)
    ends = [taken[0][:size], taken[0][-size:]]
    above, below = (torch.empty(size, dtype=torch.uint8, device=device) for _ in "ab")
    up, down = (torch.cuda.Stream(device) for _ in "ab")  # type: ignore[no-untyped-call]

    def copy(*, ups: bool, downs: bool) -> None:
        with torch.cuda.stream(up):
            if ups:
                above.copy_(ends[0], non_blocking=True)
        with torch.cuda.stream(down):
            if downs:
                ends[1].copy_(below, non_blocking=True)

    copy(ups=True, downs=True)
    torch.cuda.synchronize(device)
    measured("  copy up", size, lambda: copy(ups=True, downs=False))
    measured("  copy down", size, lambda: copy(ups=False, downs=True))
    measured("  copy both ways (bytes of both)", 2 * size, lambda: copy(ups=True, downs=True))
    ends.clear()
    measured("  give back", num_bytes, taken.clear)


@contextlib.contextmanager
def random_folder(dims: Dimensions, dtype: torch.dtype, scratch: Path | None) -> Iterator[Path]:
    """A folder of random weights that goes when the measurement ends."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        weights = destinations(dims, dtype, torch.device("cpu"), pinned_for=None)
        size = num_weights(dims) * dtype.itemsize
        measured(
            "random_into host memory", size, lambda: random_into(dims, seed=0, dtype=dtype,
                                                                 destinations=weights)
        )  # fmt: skip
        measured("save from host memory", size, lambda: write_weights(folder, weights))
        weights.clear()
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="a model folder; without one it is made")
    parser.add_argument("--gib", type=float, default=1.0, help="of the folder that is made")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of destinations")
    parser.add_argument(
        "--scratch", type=Path, help="where files are written; the temporary folder"
    )
    parser.add_argument("--pinned", type=float, nargs="*", default=[], help="GiB to pin and copy")
    arguments = parser.parse_args()
    dtype, gpu = DTYPES[arguments.dtype], torch.cuda.is_available()
    if gpu:
        torch.empty(1, device="cuda")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(HEADER)
    for gib in arguments.pinned if gpu else []:
        measure_pinned(int(gib * GIB), torch.device("cuda", 0))
    if arguments.folder is not None:
        dims = read_dimensions(arguments.folder)
        measure_folder(arguments.folder, dims, dtype, arguments.scratch, gpu)
    else:
        dims = dimensions_for(arguments.gib, dtype)
        with random_folder(dims, dtype, arguments.scratch) as folder:
            measure_folder(folder, dims, dtype, arguments.scratch, gpu)


if __name__ == "__main__":
    main()
