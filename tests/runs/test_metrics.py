"""A record of an earlier version is a record of this one."""

import json

import msgspec

from workbench.runs.metrics import MetricsRecord, utilization_words

# A line that version 0.1 wrote.
EARLIER = {
    "time": 1.0, "attempt": 1, "step": 2, "epoch": 0.1, "tokens": 10, "target_tokens": 5,
    "loss": 3.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "largest_gradient_norm": 1.0,
    "tokens_per_second": 100.0, "step_seconds": 0.1, "peak_gpu_bytes": [7], "peak_host_bytes": [9],
    "skipped_steps": 0, "compute_share": None, "transfer_share": None, "waiting_share": None,
    "nonfinite": [],
}  # fmt: skip


def test_a_record_written_before_there_were_shares_is_read() -> None:
    record = msgspec.json.decode(json.dumps(EARLIER), type=MetricsRecord)
    assert (record.mfu, record.up_share, record.first_step_seconds) == (None, None, None)
    assert record.peak_gpu_allocated_bytes == []
    assert utilization_words(record) == ""
    again = msgspec.json.decode(msgspec.json.encode(record), type=MetricsRecord)
    assert again == record
