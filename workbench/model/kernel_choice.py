"""Which kernels a device gets: Triton's, the eager twins, or what a compiler makes of those."""

import importlib.util
import logging

import torch

from workbench.model.kernels import EagerKernels, Kernels

logger = logging.getLogger(__name__)


def choose_kernels(device: torch.device, *, compiled: bool = False) -> Kernels:
    """Give the kernels for a device: Triton's on CUDA, the eager ones elsewhere.

    Args:
        device: where the tensors will be.
        compiled: let torch.compile make them out of the eager ones instead.

    Raises:
        ConfigError: ``compiled`` is asked for and this machine has no compiler for it.
    """
    if compiled:
        from workbench.model.compiled_kernels import CompiledKernels

        return CompiledKernels(device)
    if device.type != "cuda":
        return EagerKernels()
    if importlib.util.find_spec("triton") is None:
        logger.info("triton is not installed: elementwise work runs in separate operations")
        return EagerKernels()
    from workbench.model.fused_kernels import FusedKernels

    return FusedKernels()
