import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.token_stores import Document, store_of
from workbench.data.loader import Loader, StepRows, epoch_order
from workbench.data.packing import Method, Rows, fit_documents, pack

PAD = 9999
GOLDEN_ORDER = [7, 1, 6, 4, 3, 5, 0, 2]


def rows_of(lengths: list[int], *, capacity: int = 64) -> Rows:
    """Give one-document rows whose every id is the number of the row."""
    documents = [
        (np.full(length, number, dtype=np.int32), np.arange(length) > 0)
        for number, length in enumerate(lengths)
    ]
    return packed(documents, capacity, "none")


def packed(documents: list[Document], capacity: int, method: Method) -> Rows:
    store = store_of(documents)
    return pack(store, fit_documents(store, capacity, "truncate", 0).pieces, capacity, method)


def loader(rows: Rows, **changes: object) -> Loader:
    settings: dict[str, object] = {
        "rows_per_step": 4,
        "num_microbatches": 2,
        "shuffle": True,
        "seed": 42,
        "pad_id": PAD,
        "row_length": None,
    }
    return Loader(rows, **settings | changes)  # type: ignore[arg-type]


def seen(step: StepRows) -> list[int]:
    """Name the rows of a step by the id they are full of."""
    numbers = [int(ids[0]) for batch in step.microbatches for ids in batch.ids]
    return [number for number in numbers if number != PAD]


LENGTHS = [20 + number % 5 for number in range(10)]


def test_every_epoch_shows_every_row_once_in_an_order_of_its_own() -> None:
    rows = rows_of([5] * 5 + [9] * 2 + [5] * 3 + [30] * 3)
    each = loader(rows)
    assert each.steps_per_epoch == 4
    epochs = [
        [number for step in range(4) for number in seen(each.step(4 * epoch + step))]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_an_epoch_shows_each_row_once_and_all_of_its_tokens(
    lengths: list[int], rows_per_step: int, num_microbatches: int, seed: int, shuffle: bool
) -> None:
    each = loader(
        rows_of(lengths),
        rows_per_step=rows_per_step,
        num_microbatches=num_microbatches,
        seed=seed,
        shuffle=shuffle,
    )
    for epoch in range(3):
        steps = range(epoch * each.steps_per_epoch, (epoch + 1) * each.steps_per_epoch)
        shown = [each.step(index) for index in steps]
        assert sorted(number for step in shown for number in seen(step)) == list(
            range(len(lengths))
        )
        assert sum(step.num_tokens for step in shown) == sum(lengths)
        assert sum(step.num_targets for step in shown) == sum(lengths) - len(lengths)
        assert [each.row_numbers(index) for index in steps] == [seen(step) for step in shown]


def test_a_step_is_a_function_of_its_number_and_the_seed() -> None:
    rows = rows_of(LENGTHS)
    forwards = [loader(rows).step(index) for index in range(6)]
    again = loader(rows)
    for index in reversed(range(6)):
        for one, other in zip(
            forwards[index].microbatches, again.step(index).microbatches, strict=True
        ):
            assert np.array_equal(one.ids, other.ids)
            assert np.array_equal(one.targets, other.targets)
            assert np.array_equal(one.document_starts, other.document_starts)
    assert seen(loader(rows, seed=1).step(5)) != seen(forwards[5])


def test_without_shuffling_the_order_is_the_datas() -> None:
    each = loader(rows_of([5] * 10), shuffle=False)
    order = [number for index in range(6) for number in seen(each.step(index))]
    assert order == [*range(10), *range(10)]


def test_the_order_of_an_epoch_never_changes_between_versions() -> None:
    assert epoch_order(8, seed=42, epoch=0).tolist() == GOLDEN_ORDER
    assert sorted(epoch_order(1000, seed=42, epoch=3).tolist()) == list(range(1000))


@pytest.mark.parametrize("row_length", [None, 64])
def test_all_microbatches_of_a_step_have_one_shape(row_length: int | None) -> None:
    each = loader(rows_of(LENGTHS), row_length=row_length, num_microbatches=3)
    for index in range(each.steps_per_epoch):
        step = each.step(index)
        shapes = {
            (batch.ids.shape, batch.targets.shape, batch.document_starts.shape)
            for batch in step.microbatches
        }
        assert len(step.microbatches) == 3
        assert len(shapes) == 1
        (ids_shape, _, _) = shapes.pop()
        longest = max(LENGTHS[number] for number in seen(step))
        assert ids_shape == (2, row_length or longest)


def test_the_last_step_is_filled_with_rows_that_count_nothing() -> None:
    each = loader(rows_of([6] * 5), rows_per_step=4, num_microbatches=4, shuffle=False)
    last = each.step(1)
    counts = [(batch.num_targets, batch.num_tokens) for batch in last.microbatches]
    assert counts == [(5, 6), (0, 0), (0, 0), (0, 0)]
    masked = last.microbatches[3]
    assert set(masked.ids.flatten().tolist()) == {PAD}
    assert masked.document_starts.tolist() == [[0, 6]]
    assert (last.num_targets, last.num_tokens) == (5, 6)


def test_padding_is_a_document_of_its_own() -> None:
    documents = [(np.full(length, 3, dtype=np.int32), np.arange(length) > 0) for length in (3, 2)]
    rows = packed(documents, 8, "greedy")
    each = loader(rows, rows_per_step=1, num_microbatches=1, row_length=8)
    (batch,) = each.step(0).microbatches
    assert batch.ids.tolist() == [[3, 3, 3, 3, 3, PAD, PAD, PAD]]
    assert batch.targets.astype(int).tolist() == [[0, 1, 1, 0, 1, 0, 0, 0]]
    assert batch.document_starts.tolist() == [[0, 3, 5]]
    assert (batch.ids.dtype, batch.document_starts.dtype) == (np.int32, np.int32)
    assert (batch.num_tokens, batch.num_targets) == (5, 3)


def test_the_longest_row_comes_in_the_first_step() -> None:
    lengths = [5] * 21
    lengths[17] = 60
    each = loader(rows_of(lengths))
    assert each.step(0).microbatches[0].row_length == 60
    assert all(each.step(index).microbatches[0].row_length == 5 for index in range(1, 6))


def test_epochs_are_counted_by_complete_steps() -> None:
    each = loader(rows_of([5] * 10))
    assert [each.step(index).epoch for index in (0, 2, 4)] == pytest.approx([1 / 3, 1.0, 5 / 3])


# ---- several sources, mixed by weight --------------------------------------------------------


def mixed(sizes_and_weights: list[tuple[int, float]], longest: int | None = None) -> Rows:
    """Give one-document rows, ids the number of the row; one of them may be the longest."""
    weights = [weight for size, weight in sizes_and_weights for _ in range(size)]
    documents = [
        (
            np.full(9 if at == longest else 5, at, dtype=np.int32),
            np.arange(9 if at == longest else 5) > 0,
        )
        for at in range(len(weights))
    ]
    store = store_of(documents)
    pieces = fit_documents(store, 64, "truncate", 0).pieces
    return pack(store, pieces, 64, "none", weights=np.array(weights))


def epochs_of(each: Loader, num_epochs: int) -> list[list[int]]:
    steps = each.steps_per_epoch
    return [
        [number for step in range(steps) for number in seen(each.step(steps * epoch + step))]
        for epoch in range(num_epochs)
    ]


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_weight_gives_its_share_of_every_epoch(shuffle: bool) -> None:
    rows = mixed([(10, 1.0), (9, 0.5), (4, 2.0), (7, 1.5)])
    each = loader(rows, shuffle=shuffle, rows_per_step=7)
    epochs = epochs_of(each, 6)
    assert each.steps_per_epoch == 5
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=30)
        assert [part.sum() for part in np.split(counts, [10, 19, 23])] == [10, 5, 8, 11]
        assert set(counts[:10]) == {1}
        assert set(counts[19:23]) == {2}
        assert counts[23:].min() >= 1
    first_two = np.bincount(epochs[0] + epochs[1], minlength=30)
    assert first_two[10:19].min() == 1  # a weight of a half has shown every row in two epochs
    total = np.bincount(np.concatenate(epochs), minlength=30)
    assert np.ptp(total[10:19]) <= 1
    assert np.ptp(total[23:]) <= 1
    assert (epochs[0][:10] == list(range(10))) == (not shuffle)


def test_a_mixed_step_is_a_function_of_its_number_and_the_seed() -> None:
    rows = mixed([(10, 1.0), (9, 0.3), (4, 2.5)])
    forwards = [seen(loader(rows).step(index)) for index in range(30)]
    again = loader(rows)
    assert [seen(again.step(index)) for index in reversed(range(30))] == forwards[::-1]
    assert [seen(loader(rows, seed=1).step(index)) for index in range(30)] != forwards


def test_one_source_of_weight_one_is_seen_as_if_it_had_none() -> None:
    rows = mixed([(23, 1.0)])
    each = loader(rows, rows_per_step=23, num_microbatches=1)
    for epoch in (1, 2):
        assert seen(each.step(epoch)) == epoch_order(23, seed=42, epoch=epoch).tolist()


def test_the_longest_row_of_a_lightly_weighted_source_comes_in_the_first_step() -> None:
    for longest in range(10, 30):
        each = loader(mixed([(10, 1.0), (20, 0.1)], longest=longest))
        assert longest in seen(each.step(0))


def test_a_source_of_next_to_no_weight_is_seen_all_the_same() -> None:
    each = loader(mixed([(4, 1.0), (3, 0.01)]), rows_per_step=5)
    assert sorted(number for epoch in epochs_of(each, 3) for number in epoch if number > 3) == [
        4,
        5,
        6,
    ]
