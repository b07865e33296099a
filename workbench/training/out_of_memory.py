"""What a rank says when memory ran out: it measures, and ``config/out_of_memory`` reckons.

Knows torch's errors and its allocator. Invariant: finding advice never fails; with hardly any
memory left it says the little that needs none.
"""

import logging
import os
import resource
from pathlib import Path

import torch

from workbench.config.memory_fit import Counts, Machine
from workbench.config.model_facts import read_model_facts
from workbench.config.out_of_memory import (
    GpuShortage,
    gpu_remedies,
    host_remedies,
    numbered,
    requested_bytes,
)
from workbench.config.schema.config import Config
from workbench.errors import WorkbenchError
from workbench.runs.host_memory import available_host_memory

logger = logging.getLogger(__name__)

PLAIN_ADVICE = "lower data.max_length, or raise batch.microbatches"
"""What can be said without looking at anything."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is a lack of memory, on the device or on the host.

    torch has a type of its own for its CUDA allocator alone: the CPU's raises a RuntimeError, and
    so does the driver where pinned memory or a context is too much.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()


def advice(
    error: BaseException,
    config: Config,
    *,
    device: torch.device,
    budget_bytes: int | None,
    counts: Counts | None,
) -> str:
    """Say what to change, cheapest first, a line each.

    Args:
        error: that ended the run.
        config: of the run.
        device: of this rank.
        budget_bytes: that the run was planned for; None on the CPU, or where it has no plan yet.
        counts: of its data; None where it was not prepared yet.
    """
    try:
        return numbered(_remedies(error, config, device, budget_bytes, counts)) or PLAIN_ADVICE
    except (MemoryError, RuntimeError, OSError, ValueError, WorkbenchError) as another:
        # What ran out may be what looking for advice takes.
        logger.warning("no advice could be worked out: %s", another)
        return PLAIN_ADVICE


def _remedies(
    error: BaseException,
    config: Config,
    device: torch.device,
    budget_bytes: int | None,
    counts: Counts | None,
) -> list[str]:
    assert config.model.path is not None, "a run without a model does not get so far"
    facts = read_model_facts(Path(config.model.path))
    memory = available_host_memory()
    # What this process has taken was available when it was planned.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    host = None if memory is None else memory.available_bytes + own
    requested = requested_bytes(str(error))
    if device.type == "cuda" and not _is_of_the_host(error):
        shortage = gpu_shortage(device, requested)
        machine = Machine(
            gpu_name=torch.cuda.get_device_name(device),
            gpu_free_bytes=budget_bytes or shortage.attainable,
            host_bytes=host,
        )
        return gpu_remedies(config, facts, shortage, machine=machine, counts=counts)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return host_remedies(
        config,
        facts,
        machine=Machine(gpu_name=gpu, gpu_free_bytes=budget_bytes, host_bytes=host),
        counts=counts,
        requested=requested,
        limit=None if limit == resource.RLIM_INFINITY else limit,
    )


def _is_of_the_host(error: BaseException) -> bool:
    """Say whether host memory ran out; the driver's own errors are taken to be about the GPU."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def gpu_shortage(device: torch.device, requested: int) -> GpuShortage:
    """Measure what this process has of a GPU, and what is free on it."""
    free, total = torch.cuda.mem_get_info(device)
    fraction = torch.cuda.get_per_process_memory_fraction(device)
    settings = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    return GpuShortage(
        requested=requested,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        allowed=None if fraction >= 1.0 else int(fraction * total),
        free=free,
        total=total,
        is_expandable="expandable_segments:True" in settings,
    )
