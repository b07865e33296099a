import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.errors import RunError
from workbench.model.safetensors_reader import CHUNK_BYTES, read_header, read_into, read_tensor
from workbench.model.safetensors_writer import write_files, write_safetensors

DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPES
    }
    return tensors | {
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(2.5),
        "several pieces": torch.randn(2 * CHUNK_BYTES // 4 + 77, generator=generator),
    }


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_safetensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    assert list(read_header(tmp_path / "ours")) == list(tensors)
    back = load_file(tmp_path / "ours")
    stored = read_header(tmp_path / "theirs")
    assert stored.keys() == back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        read = read_tensor(stored[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor)


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_are_read_into_views_and_converted_as_torch_does(
    tmp_path: Path, into: torch.dtype
) -> None:
    tensors = {name: t for name, t in some_tensors().items() if t.is_floating_point()}
    tensors["nan and infinity"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    save_file(tensors, tmp_path / "file")
    region = torch.full((sum(t.numel() for t in tensors.values()) + 8,), 7.0, dtype=into)
    pairs, at = [], 8
    for name, stored in read_header(tmp_path / "file").items():
        size = tensors[name].numel()
        pairs.append((stored, region[at : at + size].view(stored.shape), tensors[name]))
        at += size
    read_into((stored, view) for stored, view, _ in pairs)
    assert len(pairs) == 8
    for _, view, tensor in pairs:
        assert torch.equal(view.nan_to_num(5.0), tensor.to(into).nan_to_num(5.0))
    assert region[:8].eq(7).all()


def header_of(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x00",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 40) + b"{}",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        header_of({"a": FLOATS}),
        header_of({"a": FLOATS}) + bytes(7),
        header_of({"a": FLOATS}) + bytes(9),
        header_of({"a": FLOATS | {"shape": [3]}}) + bytes(8),
        header_of({"a": FLOATS | {"shape": [-2, -1]}}) + bytes(8),
        header_of({"a": FLOATS | {"data_offsets": [8, 0]}}) + bytes(8),
        header_of({"a": FLOATS | {"data_offsets": [-8, 0]}}) + bytes(8),
        header_of({"a": FLOATS, "b": FLOATS}) + bytes(8),
        header_of({"a": FLOATS, "b": FLOATS | {"data_offsets": [12, 20]}}) + bytes(20),
        header_of({"a": FLOATS, "b": FLOATS | {"dtype": "F0", "data_offsets": [8, 4]}}) + bytes(4),
        header_of({"a": {"dtype": "F32"}}) + bytes(8),
        pytest.param(
            struct.pack("<Q", 100_006) + b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
            id="deeper than a parser goes",
        ),
        header_of([FLOATS]) + bytes(8),
    ],
)
def test_a_header_that_contradicts_itself_or_its_file_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read as safetensors") as caught:
        read_header(path)
    assert caught.value.where == str(path)
    with pytest.raises(SafetensorError):
        safe_open(path, framework="pt")


def test_a_damaged_header_is_refused_or_says_what_the_library_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, path)
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(5)
    num_accepted = num_refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.randrange(end)] = chance.choice(b' 0123456789,:[]{}"aF')
        path.write_bytes(damaged)
        try:
            found = read_header(path)
        except RunError:
            num_refused += 1
            continue
        if any(stored.dtype is None for stored in found.values()):
            continue  # some dtype of another day: whoever wants the tensor says so by name
        num_accepted += 1
        with safe_open(path, framework="pt") as file:
            theirs = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert {name: list(stored.shape) for name, stored in found.items()} == theirs
    assert min(num_accepted, num_refused) > 5


def test_a_file_that_shrinks_or_goes_after_its_header_was_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, path)
    stored = read_header(path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 10])
    into = torch.zeros(1000)
    read_into([(stored["a"], into)])
    assert into.eq(1).all()
    with pytest.raises(RunError, match=rf"ends at byte {size - 10:,}, within a tensor"):
        read_into([(stored["b"], into)])
    path.unlink()
    with pytest.raises(RunError, match="No such file"):
        read_into([(stored["a"], into)])


PEAKS = """
import os, sys, torch
from pathlib import Path
from workbench.model.safetensors_reader import read_header, read_into
from workbench.model.safetensors_writer import write_safetensors

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
torch.set_num_threads(1)
folder = Path(sys.argv[1])

def resident(field):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(field + ":") + 1]) << 10

def peak_of(run):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return resident("VmHWM") - before

# A file of zeros that takes no room on the disk.
ones = {"warm": torch.ones(1 << 20)}
write_safetensors(folder / "warm", ones)
stored = read_header(folder / "file")["x"]
read_into([(read_header(folder / "warm")["warm"], torch.zeros(1 << 20, dtype=torch.bfloat16))])
for dtype in (torch.float32, torch.bfloat16):
    into = torch.empty(stored.shape, dtype=dtype)
    read = peak_of(lambda: read_into([(stored, into)]))
    written = peak_of(lambda: write_safetensors(folder / "written", {"x": into}))
    print(into.numel() * into.element_size(), read, written)
"""


def test_no_other_file_is_begun_once_one_cannot_be_written(tmp_path: Path) -> None:
    files = {tmp_path / f"{number}": {"x": torch.zeros(8)} for number in range(500)}
    with pytest.raises(FileNotFoundError):
        write_files({tmp_path / "absent" / "file": {"x": torch.zeros(8)}, **files})
    assert len(list(tmp_path.iterdir())) < 400


def test_reading_and_writing_take_the_tensors_and_a_few_pieces_more(tmp_path: Path) -> None:
    num_bytes = 12 * CHUNK_BYTES
    header = header_of(
        {"x": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    )
    with (tmp_path / "file").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + num_bytes)
    found = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    assert [size for size, _, _ in lines] == [num_bytes, num_bytes // 2]
    for size, read, written in lines:
        assert size <= read + CHUNK_BYTES, "nothing was measured"
        assert read < size + 4 * CHUNK_BYTES
        assert written < 2 * CHUNK_BYTES


def test_a_shape_of_a_million_axes_is_refused_at_once(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**62] * 1_000_000, "data_offsets": [0, 8]}
    (tmp_path / "file").write_bytes(header_of({"a": entry}) + bytes(8))
    begin = time.monotonic()
    with pytest.raises(RunError, match="a has 1,000,000 axes"):
        read_header(tmp_path / "file")
    assert time.monotonic() - begin < 20
