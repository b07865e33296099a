import ctypes
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs.test_host_memory import UNIFIED, machine
from workbench.errors import RefusedError
from workbench.runs.host_memory import available_host_memory
from workbench.training.engine.host_memory import (
    GIB,
    check_host_memory,
    pinned_bytes,
    register,
)

CPU = torch.device("cpu")


def test_what_does_not_fit_is_refused_with_both_amounts(tmp_path: Path) -> None:
    root = machine(tmp_path, available_gib=20, groups="0::/\n", mounts=[UNIFIED])
    check_host_memory(19 * GIB, "weights of 28 blocks", root=root)
    with pytest.raises(RefusedError) as caught:
        check_host_memory(19 * GIB + 1, "weights of 28 blocks", root=root)
    assert "weights of 28 blocks need 19.0 GiB and 1 GiB to spare" in str(caught.value)
    assert "20.0 GiB are available (MemAvailable)" in str(caught.value)
    assert "raise memory.resident_fraction" in str(caught.value)
    assert caught.value.exit_status == 4


def test_where_the_kernel_tells_nothing_nothing_is_refused(tmp_path: Path) -> None:
    assert available_host_memory(tmp_path) is None
    check_host_memory(1 << 60, "weights", root=tmp_path)


def test_this_machine_tells_its_memory_and_refuses_more_than_it_has() -> None:
    found = available_host_memory()
    assert found is not None
    assert 0 < found.available_bytes < 1 << 50
    with pytest.raises(RefusedError, match=r"records need .* GiB .* are available"):
        pinned_bytes(found.available_bytes + (64 << 30), purpose="records", device=CPU)


def is_mapped(address: int) -> bool:
    ranges = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
    ]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_bytes_are_zero_begin_at_a_page_and_go_with_their_last_view() -> None:
    num_bytes = (64 << 20) + 12
    region = pinned_bytes(num_bytes, purpose="weights", device=CPU)
    address = region.data_ptr()
    assert region.shape == (num_bytes,)
    assert address % mmap.PAGESIZE == 0
    assert not region.any()
    view = region[256 : 256 + 4096].view(torch.bfloat16).view(32, 64)
    view.fill_(1.5)
    assert region[256:4352].view(torch.bfloat16).eq(1.5).all()
    assert region[4352:].sum() == 0
    del region
    assert is_mapped(address)
    assert view.eq(1.5).all()
    del view
    assert not is_mapped(address)
    assert pinned_bytes(0, purpose="weights", device=CPU).numel() == 0


MAPPING = """
import resource, torch
from tests.runs.test_host_memory import UNIFIED, machine
from workbench.errors import RefusedError
from workbench.runs.host_memory import available_host_memory
from workbench.training.engine.host_memory import pinned_bytes
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
kept = pinned_bytes(100 << 20, purpose="weights", device=torch.device("cpu"))
try:
    pinned_bytes(300 << 20, purpose="weights", device=torch.device("cpu"))
except RefusedError as error:
    print(error.exit_status, error)
"""


def test_a_limit_of_mapped_memory_is_told(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MAPPING], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.startswith("4 host memory: weights need 0.293 GiB, which cannot be mapped")
    assert "raise it" in found.stdout


class LockedPages:
    """Registers as the kernel does when it locks pages: a real limit, without a GPU."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        return -self._libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)) * 2

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        return int(self._libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20)))


def locked_bytes() -> int:
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmLck:") + 1]) << 10


def refuse_beyond_the_limit() -> None:
    """The body of a child process, which may lock less than it asks for."""
    memory = pinned_bytes(8 << 20, purpose="records", device=CPU)
    if os.getuid() == 0:
        os.setuid(65534)  # root may lock what it likes
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (3 << 20, 3 << 20))
    register(memory.data_ptr(), 1 << 20, LockedPages(), purpose="records")
    assert locked_bytes() == 1 << 20
    LockedPages().cudaHostUnregister(memory.data_ptr())
    try:
        register(memory.data_ptr(), 8 << 20, LockedPages(), purpose="records")
    except RefusedError as error:
        sys.stdout.write(f"{locked_bytes()} {error}")


def test_registering_beyond_the_locked_memory_limit_is_refused_with_it() -> None:
    found = subprocess.run(
        [sys.executable, "-c",
         "from tests.training.test_host_memory import refuse_beyond_the_limit as run; run()"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    left, message = found.stdout.split(" ", 1)
    assert left == "0"
    assert "records need 0.00781 GiB of pinned memory, which CUDA does not register" in message
    assert "(error 2; locked memory is limited to 3,072 KiB)" in message
    assert "raise ulimit -l" in message
