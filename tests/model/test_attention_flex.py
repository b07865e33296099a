"""What flex attention is told of the documents; the compiled kernel itself needs a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.attention_rows import starts_of
from workbench.errors import ConfigError
from workbench.model.attention import choose_method
from workbench.model.attention_flex import flex_blocks, visible_blocks
from workbench.model.attention_twin import visible


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    window=st.none() | st.integers(1, 500),
)
def test_blocks_hide_nothing_that_a_query_sees(lengths: list[int], window: int | None) -> None:
    row_length = sum(lengths)
    starts = starts_of([lengths])
    part, wholly = visible_blocks(starts, row_length, window)
    padded = -row_length % 128
    mask = visible(starts, row_length, window)[0, 0]
    blocks = torch.nn.functional.pad(mask, (0, padded, 0, padded)).unfold(0, 128, 128)
    blocks = blocks.unfold(1, 128, 128).flatten(2)  # queries, keys, pairs
    real = torch.nn.functional.pad(torch.ones_like(mask), (0, padded, 0, padded))
    real = real.unfold(0, 128, 128).unfold(1, 128, 128).flatten(2)
    assert not (part & wholly).any()
    assert not (blocks.any(-1) & ~(part | wholly)[0]).any()
    assert (blocks | ~real).all(-1)[wholly[0]].all()


def test_without_a_window_a_block_listed_is_a_block_seen() -> None:
    starts = starts_of([[100, 300, 1, 111]])
    part, wholly = visible_blocks(starts, 512, None)
    blocks = visible(starts, 512, None)[0, 0].unfold(0, 128, 128).unfold(1, 128, 128).flatten(2)
    assert torch.equal(part[0], blocks.any(-1) & ~blocks.all(-1))
    assert torch.equal(wholly[0], blocks.all(-1))
    assert wholly.any()


def test_the_mask_asks_of_a_pair_what_the_twin_allows() -> None:
    starts = starts_of([[100, 57], [157, 0]])
    mask = flex_blocks(starts, 157, 30)
    row, query, key = torch.meshgrid(
        torch.arange(2), torch.arange(157), torch.arange(157), indexing="ij"
    )
    assert torch.equal(mask.mask_mod(row, row, query, key), visible(starts, 157, 30)[:, 0])


def test_flex_is_refused_where_it_cannot_train() -> None:
    with pytest.raises(ConfigError, match=r"model\.attention: flex attention has no backward on"):
        choose_method("flex", torch.device("cpu"), torch.bfloat16)
