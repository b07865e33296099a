"""What is counted as work, and what it is held against."""

import numpy as np
import pytest

from workbench.config.model_facts import ModelFacts
from workbench.config.time_plan import forward_flop_per_token
from workbench.data.loader import make_batch
from workbench.data.packing import Row
from workbench.training.utilization import Utilization, count_seen_tokens, peak_flops_of

MISTRAL = ModelFacts(
    family="mistral",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_key_value_heads=8,
    head_size=128,
    vocabulary_size=32000,
    max_positions=32768,
    sliding_window=None,
    tied=False,
)


def row(*lengths: int) -> Row:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    targets = np.ones(sum(lengths), dtype=np.bool_)
    targets[starts] = False
    return Row(np.ones(sum(lengths), np.int32), targets, starts)


def test_each_token_counts_the_length_of_its_own_document() -> None:
    batch = make_batch([row(3, 2), row(5)], num_rows=2, row_length=5, max_documents=3, pad_id=0)
    assert count_seen_tokens([batch]) == 9 + 4 + 25
    assert count_seen_tokens([batch, batch]) == 2 * 38
    assert count_seen_tokens([batch], sliding_window=3) == 9 + 4 + 15
    # In half of the blocks alone: the mean of both.
    whole = count_seen_tokens([batch])
    assert count_seen_tokens([batch], 3, sliding_fraction=0.5) == (28 + whole) / 2


def test_padding_is_no_document() -> None:
    rows = [row(3, 2), row(8), row(4, 4)]
    batch = make_batch(rows, num_rows=4, row_length=8, max_documents=3, pad_id=0)
    assert batch.num_tokens == 21 < batch.ids.size
    assert count_seen_tokens([batch]) == 9 + 4 + 64 + 16 + 16


def test_utilization_is_three_forwards_over_the_peak() -> None:
    utilization = Utilization(MISTRAL, 989e12)
    # The table of FLOP per token: 45.9 GFLOP for training on documents of 4,096 tokens.
    mfu = utilization.mfu(16384, 16384 * 4096, 16384 / 11000)
    assert mfu == pytest.approx(11000 * 45.9e9 / 989e12, rel=2e-3)
    short = utilization.mfu(16384, 16384 * 700, 16384 / 11000)
    assert short is not None
    assert mfu is not None
    assert short < mfu, "attention within short documents is less work"
    assert short == pytest.approx(11000 * 3 * forward_flop_per_token(MISTRAL, 700) / 989e12)


def test_what_is_not_known_gives_no_utilization() -> None:
    assert Utilization(MISTRAL, None).mfu(10, 100, 1.0) is None
    assert Utilization(MISTRAL, 1e12).mfu(0, 0, 1.0) is None
    assert peak_flops_of("NVIDIA H200") == 989e12
    assert peak_flops_of("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_flops_of("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_of(None) is None
    assert peak_flops_of("Matrox Millennium") is None
