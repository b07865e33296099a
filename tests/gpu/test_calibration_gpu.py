"""What a GPU reaches when it is measured, and that measuring leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from workbench.runs.rates_file import read_rates
from workbench.training.engine.calibration import measure_rates, rates_here

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_rates_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cuda", 0)
    before = torch.cuda.memory_reserved(device)
    torch.cuda.manual_seed(5)
    expected = torch.rand(4, device=device)
    torch.cuda.manual_seed(5)
    first = rates_here(device)
    assert torch.equal(torch.rand(4, device=device), expected)
    assert first.basis.startswith("measured here")
    kept = read_rates(torch.cuda.get_device_name(device), str(torch.__version__))
    assert kept is not None
    assert rates_here(device) == first
    assert torch.cuda.memory_reserved(device) <= before + (2 << 20)
    assert torch.cuda.max_memory_reserved(device) <= before + (2 << 20)


def test_what_is_measured_is_possible() -> None:
    rates = measure_rates(torch.device("cuda", 0))
    # No card has more than ten times an H200's, and none that trains has less than a hundredth.
    assert 1e13 < rates.products < 1e16
    assert 5e10 < rates.memory < 5e13
    for link in (rates.up, rates.down, rates.both):
        assert 5e8 < link < 1e12
    assert rates.both <= 1.1 * min(rates.up, rates.down)


def test_without_room_the_table_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4, device)
    try:
        assert not rates_here(device).basis.startswith("measured here")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert not list(tmp_path.rglob("rates-*"))
