"""Catches any wait of the host for the device, where none may be."""

import contextlib
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let every operation that waits for the device raise, inside this block alone."""
    with warnings.catch_warnings():
        # torch says once per process that it does not detect every wait yet.
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
