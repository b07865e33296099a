"""What a split comes to, against data small enough to count by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workbench.data.statistics import (
    histogram,
    other_paddings,
    padding_share,
    percentiles,
    shares,
)


def lengths(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def test_percentiles_are_lengths_that_occur() -> None:
    assert percentiles(lengths(*range(10, 0, -1))) == {50: 5, 90: 9, 95: 10, 99: 10, 100: 10}


def test_shares_count_whole_conversations_and_kept_tokens() -> None:
    found = {share.length: share for share in shares(lengths(100, 600, 1300, 2000), 200)}
    assert sorted(found) == [200, 512, 1300, 2048, 4096]
    assert found[1300].conversations == 0.75
    assert found[1300].tokens == (100 + 600 + 1300 + 1300) / 4000
    assert found[200].tokens == (100 + 200 + 200 + 200) / 4000
    assert (found[2048].conversations, found[2048].tokens) == (1.0, 1.0)


def test_the_config_s_length_is_not_repeated() -> None:
    assert [share.length for share in shares(lengths(5), 512)] == [512, 1300, 2048, 4096]


def test_one_bar_ends_where_conversations_are_cut() -> None:
    bars = histogram(lengths(10, 20, 30, 64, 65, 100), 64)
    assert any(bar.high == 64 for bar in bars)
    assert sum(bar.count for bar in bars if bar.low > 64) == 2


def test_a_length_on_an_edge_is_counted_below_it() -> None:
    bars = histogram(lengths(10, 10, 11, 20, 100), 4096)
    assert [(bar.low, bar.high, bar.count) for bar in bars[:3]] == [
        (1, 10, 2),
        (11, 20, 2),
        (21, 30, 0),
    ]


def test_one_long_conversation_does_not_squeeze_the_others_into_one_bar() -> None:
    bars = histogram(lengths(*range(1, 200), 100_000), 4096)
    assert max(bar.count for bar in bars) < 100
    assert (bars[-1].high, bars[-1].count) == (100_000, 1)


def test_a_single_conversation_has_a_histogram() -> None:
    bars = histogram(lengths(1), 512)
    assert [(bar.low, bar.high, bar.count) for bar in bars] == [(1, 1, 1)]


@given(
    st.lists(st.integers(1, 9000), min_size=1, max_size=60),
    st.integers(16, 5000),
)
def test_every_conversation_is_in_exactly_one_bar(numbers: list[int], max_length: int) -> None:
    bars = histogram(lengths(*numbers), max_length)
    assert sum(bar.count for bar in bars) == len(numbers)
    assert bars[0].low == 1
    assert [bar.low for bar in bars[1:]] == [bar.high + 1 for bar in bars[:-1]]
    assert bars[-1].high >= max(numbers)
    assert len(bars) <= 14
    for bar in bars:
        assert bar.count == sum(bar.low <= number <= bar.high for number in numbers)
        assert not bar.low <= max_length < bar.high or max(numbers) <= max_length


@pytest.mark.parametrize(("row_length", "positions"), [(None, 2 * 3 + 2 * 2), (8, 2 * 8 + 2 * 8)])
def test_padding_counts_the_empty_rows_of_the_last_step(
    row_length: int | None, positions: int
) -> None:
    share, num_positions = padding_share(np.array([3, 1, 2]), 2, row_length)
    assert num_positions == positions
    assert share == pytest.approx(1 - 6 / positions)


def test_packing_and_rows_of_their_own_are_compared() -> None:
    found = {
        (each.packing, each.pad_to): each
        for each in other_paddings(lengths(6, 5, 3, 2, 4, 25), 10, 1, seed=0)
    }
    # Of 25 tokens 10 are kept: 30 tokens, which just fill three rows of ten.
    assert (found["best_fit", "context"].rows, found["best_fit", "context"].share) == (3, 0.0)
    assert (found["none", "context"].rows, found["none", "context"].share) == (6, 0.5)
    assert found["none", "longest"].share == 0.0, "a step of one row has nothing to pad"
