import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.data.packing import (
    Document,
    Method,
    assign,
    fit_documents,
    join,
    pack,
)

METHODS: tuple[Method, ...] = ("none", "best_fit", "first_fit", "greedy")
CAPACITY = 32


def document(length: int, first: int = 0) -> Document:
    ids = np.arange(first, first + length, dtype=np.int32)
    targets = np.ones(length, dtype=np.bool_)
    targets[:1] = False
    return Document(ids, targets)


def documents(lengths: list[int]) -> list[Document]:
    """Give documents whose ids say where each token came from."""
    return [document(length, first=1000 * number) for number, length in enumerate(lengths)]


@given(st.lists(st.integers(1, CAPACITY), max_size=60), st.sampled_from(METHODS))
def test_no_token_is_lost_and_no_document_crosses_a_row(lengths: list[int], method: Method) -> None:
    given_documents = documents(lengths)
    rows = pack(given_documents, CAPACITY, method)
    found = []
    for row in rows.rows:
        assert 0 < row.ids.size <= CAPACITY
        assert row.document_starts[0] == 0
        found += np.split(row.ids, row.document_starts[1:])
    expected = sorted(tuple(each.ids.tolist()) for each in given_documents)
    assert sorted(tuple(each.tolist()) for each in found) == expected
    assert rows.num_tokens == sum(lengths)
    assert rows.num_targets == sum(lengths) - len(lengths)


@given(st.lists(st.integers(1, CAPACITY), max_size=60), st.sampled_from(METHODS))
def test_rows_keep_the_order_of_the_data(lengths: list[int], method: Method) -> None:
    groups = assign(lengths, CAPACITY, method)
    assert all(group == sorted(group) for group in groups)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))


@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_best_fit_equals_its_slow_definition(lengths: list[int]) -> None:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(CAPACITY - length)
    filled = sorted(
        CAPACITY - sum(lengths[index] for index in group)
        for group in assign(lengths, CAPACITY, "best_fit")
    )
    assert filled == sorted(rooms)


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("none", [[0], [1], [2], [3], [4]]),
        ("best_fit", [[0, 4], [1, 2, 3]]),
        ("first_fit", [[0, 2], [1, 3], [4]]),
        ("greedy", [[0], [1, 2, 3], [4]]),
    ],
)
def test_each_method_by_hand(method: Method, groups: list[list[int]]) -> None:
    assert assign([6, 5, 3, 2, 4], 10, method) == groups


@pytest.mark.parametrize(
    ("method", "least"), [("greedy", 0.95), ("first_fit", 0.96), ("best_fit", 0.98)]
)
def test_rows_of_conversations_are_as_full_as_expected(method: Method, least: float) -> None:
    # Lengths as of chats: most short, a few long, in a context that holds several.
    lengths = np.random.default_rng(0).lognormal(4.8, 0.7, 3000).astype(int).clip(16, 4096)
    groups = assign([int(length) for length in lengths], 4096, method)
    assert lengths.sum() / (len(groups) * 4096) >= least


def test_the_first_token_of_each_document_in_a_row_is_no_target() -> None:
    always = Document(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.bool_))
    row = join([always, always])
    assert row.document_starts.tolist() == [0, 3]
    assert row.targets.tolist() == [False, True, True, False, True, True]


def test_an_overlong_document_is_cut_and_counted() -> None:
    fitted = fit_documents(documents([10, 25]), 10, "truncate", 0)
    assert [each.ids.size for each in fitted.documents] == [10, 10]
    assert (fitted.num_truncated, fitted.num_cut_tokens, fitted.num_split) == (1, 15, 0)


def test_an_overlong_document_is_split_when_asked_and_no_token_is_lost() -> None:
    fitted = fit_documents(documents([10, 25]), 10, "split", 0)
    assert [each.ids.size for each in fitted.documents] == [10, 10, 10, 5]
    assert np.concatenate([each.ids for each in fitted.documents[1:]]).tolist() == list(
        range(1000, 1025)
    )
    assert not any(each.targets[0] for each in fitted.documents)
    assert (fitted.num_split, fitted.num_truncated, fitted.num_cut_tokens) == (1, 0, 0)


def test_short_documents_and_pieces_without_targets_are_dropped_and_counted() -> None:
    late = Document(np.arange(20, dtype=np.int32), np.arange(20) >= 15)
    fitted = fit_documents([document(15), document(16), late], 10, "split", 6)
    assert [each.ids.size for each in fitted.documents] == [10, 10, 6, 10]
    assert (fitted.num_short, fitted.num_without_targets) == (1, 1)
