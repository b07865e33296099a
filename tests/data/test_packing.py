from typing import Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.token_stores import Document, store_of
from workbench.data.packing import Method, Pieces, Rows, assign, fit_documents, pack
from workbench.data.token_store import TokenStore

METHODS: tuple[Method, ...] = get_args(Method)
CAPACITY = 32


def document(length: int, first: int = 0) -> Document:
    ids = np.arange(first, first + length, dtype=np.int32)
    return ids, np.arange(length) > 0


def documents(lengths: list[int]) -> TokenStore:
    """Give documents whose ids say where each token came from."""
    return store_of([document(length, first=1000 * at) for at, length in enumerate(lengths)])


def whole(tokens: TokenStore) -> Pieces:
    numbers = np.arange(len(tokens), dtype=np.int64)
    begins, ends = tokens.offsets[:-1], tokens.offsets[1:]
    return Pieces(numbers, begins, ends, ends - begins - 1)


def pieces_in(rows: Rows) -> list[list[int]]:
    """Take rows apart at their documents' starts."""
    found: list[list[int]] = []
    for row in rows:
        assert row.document_starts[0] == 0
        found += [ids.tolist() for ids in np.split(row.ids, row.document_starts[1:])]
    return found


@given(st.lists(st.integers(1, CAPACITY), max_size=60), st.sampled_from(METHODS))
def test_no_token_is_lost_and_no_document_crosses_a_row(lengths: list[int], method: Method) -> None:
    tokens = documents(lengths)
    rows = pack(tokens, whole(tokens), CAPACITY, method)
    assert all(0 < row.ids.size <= CAPACITY for row in rows)
    assert sorted(pieces_in(rows)) == [
        ids.tolist() for ids in np.split(tokens.ids, tokens.offsets[1:-1]) if ids.size
    ]
    assert rows.num_tokens == sum(lengths) == sum(row.ids.size for row in rows)
    assert rows.num_targets == sum(lengths) - len(lengths)
    assert rows.row_lengths.tolist() == [row.ids.size for row in rows]
    assert rows.longest == max((row.ids.size for row in rows), default=0)
    seen = [length for length in lengths for _ in range(length)]
    assert rows.seen_tokens == pytest.approx(sum(seen) / max(1, len(seen)))
    assert rows.max_documents == max((row.document_starts.size for row in rows), default=0)


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=100), max_size=30),
    st.sampled_from(METHODS),
    st.sampled_from(["truncate", "split"]),
    st.sampled_from([0, 1, 6]),
    st.integers(6, CAPACITY),
)
def test_fitting_and_packing_equal_cutting_each_document_by_hand(
    targets: list[list[bool]],
    method: Method,
    overlong: Literal["truncate", "split"],
    min_length: int,
    max_length: int,
) -> None:
    given_documents = [
        (np.arange(1000 * at, 1000 * at + len(each), dtype=np.int32), np.array([False, *each[1:]]))
        for at, each in enumerate(targets)
    ]
    expected: list[tuple[list[int], list[bool]]] = []
    num_cut = num_long = num_short = num_without_targets = 0
    for ids, is_target in given_documents:
        num_long += ids.size > max_length
        last = max_length if overlong == "truncate" else ids.size
        num_cut += max(ids.size - last, 0)
        for start in range(0, min(last, ids.size), max_length):
            counted = is_target[start : start + max_length].copy()
            counted[0] = False
            if counted.size < min_length:
                num_short += 1
            elif not counted.any():
                num_without_targets += 1
            else:
                expected.append((ids[start : start + max_length].tolist(), counted.tolist()))
    tokens = store_of(given_documents)
    fitted = fit_documents(tokens, max_length, overlong, min_length)
    rows = pack(tokens, fitted.pieces, max_length, method)
    found = []
    for row in rows:
        assert row.ids.size <= max_length
        assert not row.targets[row.document_starts].any()
        for ids, is_target in zip(
            np.split(row.ids, row.document_starts[1:]),
            np.split(row.targets, row.document_starts[1:]),
            strict=True,
        ):
            found.append((ids.tolist(), is_target.tolist()))
    assert sorted(found) == sorted(expected)
    assert rows.num_targets == sum(sum(is_target) for _, is_target in expected)
    assert fitted.cut.lengths.sum() == num_cut
    assert (len(fitted.cut), fitted.split.size) == (
        (num_long, 0) if overlong == "truncate" else (0, num_long)
    )
    assert (len(fitted.short), len(fitted.without_targets)) == (num_short, num_without_targets)


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


@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_first_fit_equals_its_slow_definition(lengths: list[int]) -> None:
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[other] for other in row) + length <= CAPACITY:
                row.append(index)
                break
        else:
            rows.append([index])
    assert assign(lengths, CAPACITY, "first_fit") == rows


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


def test_documents_of_different_weight_share_no_row() -> None:
    tokens = documents([4] * 12)
    weights = np.array([1.0, 0.5, 1.0, 2.0] * 3)
    rows = pack(tokens, whole(tokens), CAPACITY, "best_fit", weights=weights)
    assert [(stream.num_rows, stream.weight) for stream in rows.streams] == [
        (1, 1.0),
        (1, 0.5),
        (1, 2.0),
    ]
    found = [sorted(int(first) // 1000 for first in row.ids[row.document_starts]) for row in rows]
    assert found == [[0, 2, 4, 6, 8, 10], [1, 5, 9], [3, 7, 11]]


def test_a_row_names_the_documents_in_it() -> None:
    class File:
        def where(self, index: int) -> str:
            return f"file row {index + 1}"

    tokens = documents([4, 30, 5])
    rows = pack(tokens, whole(tokens), CAPACITY, "first_fit", parts=[File()])
    assert [rows.where(index) for index in range(len(rows))] == [
        ("file row 1", "file row 3"),
        ("file row 2",),
    ]
    with pytest.raises(IndexError, match="row 2 of 2"):
        rows.where(2)


def test_the_first_token_of_each_document_in_a_row_is_no_target() -> None:
    tokens = store_of([(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.bool_))] * 2)
    row = pack(tokens, whole(tokens), CAPACITY, "greedy")[0]
    assert row.document_starts.tolist() == [0, 3]
    assert row.targets.tolist() == [False, True, True, False, True, True]


def test_an_overlong_document_is_cut_and_counted() -> None:
    fitted = fit_documents(documents([10, 25]), 10, "truncate", 0)
    assert fitted.pieces.lengths.tolist() == [10, 10]
    assert (fitted.cut.documents.tolist(), fitted.cut.lengths.tolist()) == ([1], [15])
    assert fitted.split.size == 0


def test_what_is_cut_off_counts_its_first_token_among_its_targets() -> None:
    tokens = store_of([(np.arange(8, dtype=np.int32), np.arange(8) >= 5)])
    for max_length, num_targets in ((4, 3), (5, 3), (6, 2), (7, 1)):
        cut = fit_documents(tokens, max_length, "truncate", 0).cut
        assert (cut.begins.tolist(), cut.num_targets.tolist()) == ([max_length], [num_targets])


def test_an_overlong_document_is_split_when_asked_and_no_token_is_lost() -> None:
    fitted = fit_documents(documents([10, 25]), 10, "split", 0)
    assert fitted.pieces.lengths.tolist() == [10, 10, 10, 5]
    assert fitted.pieces.begins.tolist() == [0, 10, 20, 30]
    assert fitted.pieces.num_targets.tolist() == [9, 9, 9, 4]
    assert (fitted.split.tolist(), len(fitted.cut)) == ([1], 0)


def test_short_documents_and_pieces_without_targets_are_dropped_and_counted() -> None:
    late = (np.arange(20, dtype=np.int32), np.arange(20) >= 15)
    fitted = fit_documents(store_of([document(15), document(16), late]), 10, "split", 6)
    assert fitted.pieces.lengths.tolist() == [10, 10, 6, 10]
    assert (len(fitted.short), len(fitted.without_targets)) == (1, 1)
