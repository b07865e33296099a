import io
import os
import random
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.model_folders import write_bin_files
from tests.model.tiny import dimensions_of, reference_model
from workbench.config.weight_files import BIN_FILE
from workbench.errors import RunError
from workbench.model.bin_reader import read_bin_header
from workbench.model.decoder import HEAD
from workbench.model.safetensors_reader import read_tensor
from workbench.model.weights import iterate_weights, random_weights, read_weights, write_weights

FORMS = [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}]
DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 6, generator=generator)
    return {
        **{str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
           for dtype in DTYPES},
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(2.5),
        "one column": torch.randn(5, 1, generator=generator).T,
        "whole": shared,
        "rows of it": shared[1:3],
        "larger": torch.randn(300, 400, generator=generator),
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", [dict, OrderedDict, nn.ParameterDict])
def test_every_tensor_comes_back_bit_for_bit(
    tmp_path: Path, form: dict[str, Any], wrap: type
) -> None:
    tensors = some_tensors()
    content: Any = tensors
    if wrap is OrderedDict:
        content = OrderedDict(tensors)
        content._metadata = OrderedDict({"": {"version": 1}})
    elif wrap is nn.ParameterDict:
        tensors = {n: nn.Parameter(t) for n, t in tensors.items() if t.is_floating_point()}
        content = dict(tensors)
    torch.save(content, tmp_path / "a.bin", **form)
    stored = read_bin_header(tmp_path / "a.bin")
    assert list(stored) == list(tensors)
    for name, tensor in tensors.items():
        read = read_tensor(stored[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_bin_folder_is_the_same_model_as_its_safetensors(
    tmp_path: Path, form: dict[str, Any], num_shards: int
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, 2, torch.bfloat16)
    write_bin_files(tmp_path, weights, num_shards, form)
    back = read_weights(tmp_path, dims, torch.bfloat16)
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    wider = read_weights(tmp_path, dims, torch.float32)
    assert all(torch.equal(wider[name], weights[name].float()) for name in weights)


def test_a_tied_head_that_shares_its_storage_is_read_once(tmp_path: Path) -> None:
    model = reference_model("llama, tied")
    torch.save(model.state_dict(), tmp_path / BIN_FILE)
    dims = dimensions_of(model)
    assert HEAD in read_bin_header(tmp_path / BIN_FILE)
    weights = dict(iterate_weights(tmp_path, dims))
    assert HEAD not in weights
    assert all(torch.equal(weights[name], model.state_dict()[name]) for name in weights)


# ---- what is not weights alone -------------------------------------------------------------------


class Calls:
    """What is pickled as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def test_what_a_file_would_run_is_refused_by_its_name_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for form in FORMS:
        for content in (
            {"a": Calls(os.system, f"touch {ran}")},
            {"a": torch.zeros(2), "b": [Calls(os.mkdir, str(ran))]},
            Calls(eval, "1"),
        ):
            torch.save(content, tmp_path / "a.bin", **form)
            with pytest.raises(RunError, match=r"it would call \w+\.\w+") as told:
                read_bin_header(tmp_path / "a.bin")
            assert "is no file of weights alone" in told.value.what
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "it holds a list, not tensors by name"),
        ({"step": 3, "a": torch.zeros(2)}, "its entry 'step' is a int, not a tensor"),
        ({"state_dict": {"a": torch.zeros(2)}}, "its entry 'state_dict' is a dict, not a tensor"),
        ({3: torch.zeros(2)}, "it has a int for a name"),
        ({"a": torch.zeros(4, 6).T}, r"a does not lie in one piece \(strides \[1, 6\]\)"),
        ({"a": torch.zeros(2).to(torch.complex64)}, r"torch\.ComplexFloatStorage"),
        ({"a": torch.zeros(2).to_sparse()}, "it would call torch"),
        ({"a": nn.Linear(2, 2)}, "instruction|it would call|sets attributes"),
    ],
)
def test_other_content_is_told(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(RunError, match=message):
        read_bin_header(tmp_path / "a.bin")


def _rewritten(
    path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED
) -> None:
    content = path.read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(path, "w", compression) as new,
    ):
        for entry in old.infolist():
            changed = change(entry.filename, old.read(entry))
            if changed is not None:
                new.writestr(entry.filename, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: None if name.endswith("/0") else content, "storage of .* not there"),
        (lambda name, content: content[:-4] if name.endswith("/0") else content, "contradicts"),
        (lambda name, content: content + b"\0" * 4 if name.endswith("/0") else content, "contrad"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "order of bytes"),
        (lambda name, content: None if name.endswith("data.pkl") else content, "cannot be read"),
        (lambda name, content: content[:-9] if name.endswith("data.pkl") else content, "cannot be"),
        (lambda name, content: content[:-1] if name.endswith("data.pkl") else content, "cannot be"),
    ],
)
def test_a_damaged_zip_is_refused(
    tmp_path: Path, change: Callable[[str, bytes], bytes | None], message: str
) -> None:
    torch.save({"w": torch.ones(8)}, tmp_path / "a.bin")
    _rewritten(tmp_path / "a.bin", lambda name, content: content)
    assert read_tensor(read_bin_header(tmp_path / "a.bin")["w"]).eq(1).all()
    _rewritten(tmp_path / "a.bin", change)
    with pytest.raises(RunError, match=message):
        read_bin_header(tmp_path / "a.bin")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(8)}, tmp_path / "a.bin")
    _rewritten(tmp_path / "a.bin", lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(RunError, match="data/0 is compressed"):
        read_bin_header(tmp_path / "a.bin")


def test_damage_at_any_byte_ends_in_a_header_or_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    drawn = random.Random(0)
    num_read = num_refused = 0
    for form in FORMS:
        torch.save({"w": torch.ones(8), "v": torch.ones(3, 2).bfloat16()}, path, **form)
        whole = path.read_bytes()
        for _ in range(300):
            content = bytearray(whole)
            if drawn.random() < 0.3:
                content = content[: drawn.randrange(len(content))]
            for _ in range(drawn.randint(1, 3)):
                if content:
                    content[drawn.randrange(len(content))] = drawn.randrange(256)
            path.write_bytes(content)
            try:
                for stored in read_bin_header(path).values():
                    read_tensor(stored)
                num_read += 1
            except RunError:
                num_refused += 1
    assert min(num_read, num_refused) > 50


def test_a_pickle_that_names_a_huge_memo_takes_no_memory(tmp_path: Path) -> None:
    body = b"\x80\x02}r\xff\xff\xff\x7f."  # an empty dictionary, kept as number 2,147,483,647
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/byteorder", sys.byteorder)
    assert read_bin_header(tmp_path / "a.bin") == {}


def _laughs(last: bytes) -> bytes:
    """A tuple of two that holds itself sixty levels down, and what is done with it."""
    levels = b"".join(
        b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
        for level in range(60)
    )
    return b"\x80\x02)q\x00" + levels + last + b"."


@pytest.mark.parametrize(
    "last",
    [
        b"}h\x3cNs",  # a key
        b"h\x3cQ",  # a storage
        b"h\x3c)R",  # a function
        b"h\x3ch\x3c\x93",  # a name
        b"ccollections\nOrderedDict\n]h\x3ca\x85R",  # a pair
        b"ctorch._utils\n_rebuild_tensor_v2\nh\x3cR",  # arguments
        b"ctorch\nSize\nh\x3c\x85R",  # sizes
    ],
)
def test_what_would_take_for_ever_to_write_or_compare_is_refused_at_once(
    tmp_path: Path, last: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("a/data.pkl", _laughs(last))
        archive.writestr("a/byteorder", sys.byteorder)
    begin = time.monotonic()
    with pytest.raises(RunError):
        read_bin_header(tmp_path / "a.bin")
    assert time.monotonic() - begin < 10


PEAK = """
import sys, torch
from pathlib import Path
from workbench.model.bin_reader import read_bin_header
from workbench.model.safetensors_reader import read_into
torch.set_num_threads(1)

def resident(field):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(field + ":") + 1]) << 10

path = Path(sys.argv[1])
read_into([(read_bin_header(path)["small"], torch.empty(1 << 20))])
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
stored = read_bin_header(path)["large"]
into = torch.empty(stored.shape)
read_into([(stored, into)], must_be_finite=True)
assert into.eq(1).all()
print(resident("VmHWM") - before - stored.num_bytes)
"""


def test_reading_takes_the_tensors_and_a_few_pieces_more(tmp_path: Path) -> None:
    torch.save({"small": torch.ones(1 << 20), "large": torch.ones(40 << 20)}, tmp_path / "a.bin")
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "a.bin")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert -(20 << 20) < int(found.stdout) < 64 << 20


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_bin", [True, False])
def test_a_value_that_is_not_finite_is_told_with_its_tensor(
    tmp_path: Path, value: float, stored: torch.dtype, into: torch.dtype, is_bin: bool
) -> None:
    dims = dimensions_of(reference_model("llama"))
    weights = random_weights(dims, 2, stored)
    extreme = torch.finfo(torch.float16).max if stored != torch.bfloat16 else 3.3e38
    weights["model.layers.0.mlp.up_proj.weight"][0, :2] = torch.tensor([extreme, -extreme])
    write = (lambda f, w: write_bin_files(f, w, 1)) if is_bin else write_weights
    write(tmp_path, weights)
    assert read_weights(tmp_path, dims, into)
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = value
    write(tmp_path, weights)
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj\.weight holds a NaN or an inf"):
        read_weights(tmp_path, dims, into)
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj\.weight holds a NaN or an inf"):
        list(iterate_weights(tmp_path, dims))
