import json
from pathlib import Path

import pytest

from tests.demo.golden_losses import GOLDEN, NUM_STEPS, first_losses


def test_the_demo_begins_with_the_losses_that_were_recorded(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))["losses"]
    assert len(golden) == NUM_STEPS
    # Sums are taken in another order on another processor, and five updates carry that on.
    assert first_losses(tmp_path / "run") == pytest.approx(golden, rel=1e-4)
