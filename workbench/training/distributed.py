"""Who this rank is, and the few things that all ranks say to each other on the CPU group.

With one rank every exchange is free. Invariant: control never travels on the GPU's communicator.
"""

import datetime
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# A rank that writes a large checkpoint to a slow disk keeps the others waiting this long at most.
_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This rank among all ranks of the job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def gather(self, value: T) -> list[T]:
        """Give the value of every rank, by rank, to all of them; values are pickled."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, number: int) -> int:
        """Give rank 0's 64-bit integer to all ranks."""
        if self.world_size == 1:
            return number
        flags = torch.tensor([number], dtype=torch.int64)
        dist.broadcast(flags, src=0)
        return int(flags)


def join(device_type: str) -> Ranks:
    """Join the process group that torchrun's environment describes; outside torchrun, be alone.

    Args:
        device_type: cpu or cuda; ``cuda`` also selects the GPU of the local rank.
    """
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" not in os.environ:
        return Ranks()
    backend = "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
