"""Host memory that the GPU copies from and to by itself, and whether there is enough of it.

Knows bytes and what they are for, not what lies in them. Anonymous pages are touched and registered
with CUDA here instead of taking torch's pinned tensors, which round to powers of two (13.0 GiB
become 16). Invariant: a tensor of ``pinned_bytes`` is registered as long as it lives, and either
all of it or nothing.

Pages come from the NUMA node of the thread that touches them first. The threads here run wherever
the process may: bind the process to the GPU's node (``numactl --cpunodebind``) where a machine has
several, since copies from a far node can be half as fast.
"""

import contextlib
import ctypes
import mmap
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from workbench.errors import RefusedError
from workbench.runs.host_memory import available_host_memory

GIB = 1 << 30

_SPARED_BYTES = GIB  # stays free for everybody else: below that a desktop begins to stall
_TOUCHED_BYTES = 64 << 20  # by one thread at a time
_MAX_THREADS = 16  # touch 39 GiB/s beside an H200, 8 threads 29
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process
_REMEDY = (
    "raise memory.resident_fraction, lower batch.train or data.max_length, or close other programs"
)


class HostRegistration(Protocol):
    """The two calls of ``torch.cuda.cudart()`` that are used here; both give 0 for success."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        """Pin the pages of a range."""

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        """Give up a range that was pinned, by its first address."""


def check_host_memory(num_bytes: int, purpose: str, *, root: Path = Path("/")) -> None:
    """Refuse what the machine or its control groups cannot hold, before any of it is allocated.

    Args:
        num_bytes: that will be taken.
        purpose: what they are for, as a plural: ``weights of 28 streamed blocks``.
        root: where ``proc`` lies; another one in tests.

    Raises:
        RefusedError: less than this, with 1 GiB left to others, is available.
    """
    memory = available_host_memory(root) if num_bytes else None
    if memory is None or num_bytes + _SPARED_BYTES <= memory.available_bytes:
        return
    raise RefusedError(
        f"{purpose} need {num_bytes / GIB:.1f} GiB and 1 GiB to spare, "
        f"{memory.available_bytes / GIB:.1f} GiB are available ({memory.bound})",
        where="host memory",
        remedy=_REMEDY,
    )


class _Pages(mmap.mmap):
    """Anonymous pages that give up their registration before they are unmapped."""

    registered: tuple[int, torch.device] | None = None

    def __del__(self) -> None:
        if self.registered is not None:
            address, device = self.registered
            # A device that failed, or a process that ends, has nothing left to give up.
            with contextlib.suppress(Exception):
                torch.cuda.synchronize(device)  # no copy may still run from or to these pages
                _cudart().cudaHostUnregister(address)


def pinned_bytes(num_bytes: int, *, purpose: str, device: torch.device) -> Tensor:
    """Give zeroed host memory that ``device`` can copy from and to while the host goes on.

    All of it is one registration: a copy that begins in one and ends in the next is an invalid
    argument to CUDA (tried), and several at once take hardly less time. 64 GiB take 4.2 s beside an
    H200, half of it for touching.

    Args:
        num_bytes: exactly these are taken, up to a page.
        purpose: what they are for, as a plural, for error messages.
        device: on a CPU the memory is ordinary.

    Returns:
        (num_bytes,) uint8, beginning at a page. Unregistered and given back when the last view of
        it dies.

    Raises:
        RefusedError: there is not enough memory, or less than this may be mapped or locked.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    check_host_memory(num_bytes, purpose)
    try:
        pages = _Pages(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RefusedError(
            f"{purpose} need {num_bytes / GIB:.3g} GiB, which cannot be mapped: {error.strerror}",
            where="host memory",
            remedy=f"{_REMEDY}; where ulimit -v is set, raise it",
        ) from error
    _advise(pages, mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    if device.type == "cuda":
        # A child would share pages that the GPU writes, and copy them when either side does.
        _advise(pages, mmap.MADV_DONTFORK)
        address = memory.data_ptr()
        _touch(address, num_bytes)
        with torch.cuda.device(device):
            try:
                register(address, num_bytes, _cudart(), purpose=purpose)
            except RefusedError:
                _forget_failure(device)
                raise
        pages.registered = address, device
        assert memory.is_pinned()
    return memory


def register(address: int, num_bytes: int, cudart: HostRegistration, *, purpose: str) -> None:
    """Pin a range of touched pages, all of it or nothing.

    Args:
        address: of the first byte.
        num_bytes: of the range.
        cudart: that registers.
        purpose: what they are for, as a plural, for error messages.

    Raises:
        RefusedError: it cannot be registered; the locked-memory limit is told where it is lower.
    """
    code = int(cudart.cudaHostRegister(address, num_bytes, _PORTABLE))
    if code:
        raise RefusedError(
            f"{purpose} need {num_bytes / GIB:.3g} GiB of pinned memory, which CUDA does not "
            f"register (error {code}{_locked_limit(num_bytes)})",
            where="host memory",
            remedy=f"{_REMEDY}, or raise ulimit -l",
        )


def _advise(pages: mmap.mmap, advice: int) -> None:
    with contextlib.suppress(OSError):  # a kernel that knows it not is slower, no more
        pages.madvise(advice)


def _touch(address: int, num_bytes: int) -> None:
    """Have the kernel find every page, with several threads: registering alone takes five times."""

    def touch(begin: int) -> None:
        ctypes.memset(address + begin, 0, min(_TOUCHED_BYTES, num_bytes - begin))

    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(touch, range(0, num_bytes, _TOUCHED_BYTES)))


def _cudart() -> HostRegistration:
    return cast(HostRegistration, torch.cuda.cudart())  # type: ignore[no-untyped-call]


def _forget_failure(device: torch.device) -> None:
    """Have the error that CUDA keeps raised here, not at somebody's next kernel."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device=device)


def _locked_limit(num_bytes: int) -> str:
    """Say what the locked-memory limit is where it is lower than what was asked for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= num_bytes:
        return ""
    return f"; locked memory is limited to {limit >> 10:,} KiB"
