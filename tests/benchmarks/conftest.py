"""The scripts of benchmarks/ import each other by name, as Python has it for a script's folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def same_products_afterwards() -> Iterator[None]:
    """A benchmark multiplies as a rank does; the tests after it as they always do."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
