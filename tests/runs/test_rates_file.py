"""Rates that were measured are found again, and a bad file is as good as none."""

import os
from pathlib import Path

import pytest

from workbench.config.rates import MeasuredRates
from workbench.runs.rates_file import rates_path, read_rates, write_rates

SEEN = MeasuredRates(products=720e12, memory=4.2e12, up=55e9, down=54e9, both=51e9)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_was_measured_is_found_by_gpu_and_torch(tmp_path: Path) -> None:
    assert read_rates("NVIDIA H200", "2.11.0+cu130") is None
    write_rates("NVIDIA H200", "2.11.0+cu130", SEEN)
    assert read_rates("NVIDIA H200", "2.11.0+cu130") == SEEN
    assert read_rates("NVIDIA H200", "2.12.0") is None
    assert read_rates("NVIDIA H100", "2.11.0+cu130") is None
    assert read_rates(None) is None
    path = tmp_path / "workbench" / "rates-nvidia-h200-2.11.0-cu130.json"
    assert rates_path("NVIDIA H200", "2.11.0+cu130") == path
    assert path.is_file()


def test_without_torch_the_newest_counts() -> None:
    older = MeasuredRates(products=1e12, memory=1e12, up=1e9, down=1e9, both=1e9)
    write_rates("NVIDIA H200", "2.12.0", older)
    write_rates("NVIDIA H200", "2.11.0", SEEN)
    path = rates_path("NVIDIA H200", "2.12.0")
    later = rates_path("NVIDIA H200", "2.11.0").stat().st_mtime + 60
    os.utime(path, (later, later))
    assert read_rates("NVIDIA H200") == older


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{not json",
        b'{"gpu": "NVIDIA H200"}',
        b'{"gpu":"NVIDIA H200","torch":"2","products":0,"memory":1e12,"up":1e9,"down":1e9,'
        b'"both":1}',
        b'{"gpu":"Another","torch":"2","products":1e12,"memory":1e12,"up":1e9,"down":1e9,'
        b'"both":1e9}',
    ],
)
def test_a_file_that_cannot_be_true_is_as_good_as_none(content: bytes) -> None:
    path = rates_path("NVIDIA H200", "2")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_rates("NVIDIA H200", "2") is None
    assert read_rates("NVIDIA H200") is None
    # An older one that can be true counts.
    write_rates("NVIDIA H200", "1", SEEN)
    os.utime(rates_path("NVIDIA H200", "1"), (1, 1))
    assert read_rates("NVIDIA H200") == SEEN
