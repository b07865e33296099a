import ctypes
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.errors import RefusedError
from workbench.training.engine.host_memory import (
    GIB,
    available_host_memory,
    check_host_memory,
    pinned_bytes,
    register,
)

CPU = torch.device("cpu")
UNLIMITED_V1 = 9223372036854771712


def machine(root: Path, *, available_gib: float, groups: str, mounts: list[str]) -> Path:
    """A fake /proc: what a kernel tells a process of its memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemAvailable: {int(available_gib * GIB) >> 10} kB\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(
        "".join(f"{30 + n} 23 0:{n} {mount}\n" for n, mount in enumerate(mounts))
    )
    return root


def group(root: Path, path: str, **files: int | str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


UNIFIED = "/ /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"


def test_the_machine_bounds_a_process_without_limits(tmp_path: Path) -> None:
    root = machine(tmp_path, available_gib=20, groups="0::/user/me\n", mounts=[UNIFIED])
    group(root, "sys/fs/cgroup/user/me", memory__max="max", memory__current=5 * GIB)
    found = available_host_memory(root)
    assert found is not None
    assert (found.available_bytes, found.bound) == (20 * GIB, "MemAvailable")


def test_odd_mounts_do_not_hide_the_limit(tmp_path: Path) -> None:
    mounts = ["/ /media/a\u2028b rw - tmpfs tmpfs rw", "/ /mnt/unnamed rw - tmpfs  rw", UNIFIED]
    root = machine(tmp_path, available_gib=20, groups="0::/a\n", mounts=mounts)
    path = root / "proc/self/mountinfo"
    path.write_bytes(b"29 23 0:9 / /media/caf\xe9 rw - vfat /dev/sdb1 rw\n" + path.read_bytes())
    group(root, "sys/fs/cgroup/a", memory__max=9 * GIB, memory__current=6 * GIB)
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == 3 * GIB


def test_the_tightest_control_group_above_a_process_bounds_it(tmp_path: Path) -> None:
    root = machine(tmp_path, available_gib=20, groups="0::/a/b/c\n", mounts=[UNIFIED])
    group(root, "sys/fs/cgroup/a/b/c", memory__max="max", memory__current=1 * GIB)
    group(root, "sys/fs/cgroup/a/b", memory__max=9 * GIB, memory__current=6 * GIB,
          memory__stat=f"anon 1\ninactive_file {2 * GIB}\nactive_file 77")  # fmt: skip
    group(root, "sys/fs/cgroup/a", memory__max=16 * GIB, memory__current=7 * GIB)
    found = available_host_memory(root)
    assert found is not None
    # 9 allowed, 6 used, of which 2 are pages of files that can go
    assert found.available_bytes == 5 * GIB
    assert found.bound.endswith("sys/fs/cgroup/a/b")


def test_a_container_sees_its_group_where_it_is_mounted(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        available_gib=20,
        groups="5:cpu,cpuacct:/box/7\n4:memory:/box/7/job\n0::/\n",
        mounts=[
            "/ /sys/fs/cgroup rw - tmpfs tmpfs rw",
            "/box/7 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
            "/box/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        ],
    )
    group(root, "sys/fs/cgroup/memory/job", memory__limit_in_bytes=UNLIMITED_V1,
          memory__usage_in_bytes=GIB)  # fmt: skip
    group(root, "sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GIB,
          memory__usage_in_bytes=3 * GIB,
          memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB}")  # fmt: skip
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == 2 * GIB
    assert found.bound.endswith("sys/fs/cgroup/memory")


def test_a_group_of_another_name_is_not_taken_for_a_part_of_the_mounted_one(
    tmp_path: Path,
) -> None:
    root = machine(
        tmp_path,
        available_gib=20,
        groups="4:memory:/box/77\n",
        mounts=["/box/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"],
    )
    group(root, "sys/fs/cgroup/memory", memory__limit_in_bytes=4 * GIB,
          memory__usage_in_bytes=3 * GIB)  # fmt: skip
    group(root, "sys/fs/cgroup/77", memory__limit_in_bytes=9, memory__usage_in_bytes=9)
    found = available_host_memory(root)
    assert found is not None
    assert found.available_bytes == GIB


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
from workbench.errors import RefusedError
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
