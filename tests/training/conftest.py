import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Threads only wait for each other on tensors this small, all the more beside other tests."""
    torch.set_num_threads(1)
