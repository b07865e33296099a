"""Where a rank computes, and what torch is told before the first tensor is made.

Plain values in; knows no config. Invariant: after ``prepare_torch`` every generator of the process
stands where the seed puts it.
"""

import os
import random

import numpy as np
import torch

from workbench.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""The precisions that a config can name."""


def choose_device_type(wanted: str) -> str:
    """Turn ``training.device`` into cpu or cuda.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "there is no CUDA device here",
            where="training.device",
            remedy="set training.device: auto, or start it where a GPU is",
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def prepare_torch(seed: int, *, matmul_precision: str, deterministic: bool = False) -> None:
    """Set the precision of fp32 products, and every generator by one seed.

    Args:
        seed: of python's, numpy's and torch's generators; each rank has its own.
        matmul_precision: as ``torch.set_float32_matmul_precision`` takes it.
        deterministic: refuse what does not repeat bit for bit.
    """
    torch.set_float32_matmul_precision(matmul_precision)
    if deterministic:
        allow_deterministic_algorithms_only()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def allow_deterministic_algorithms_only() -> None:
    """Have torch refuse what does not repeat bit for bit."""
    # What cuBLAS needs to repeat by its own documentation; it reads it before its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
