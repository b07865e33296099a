import numpy as np
import pytest

from workbench.data.loader import Loader, StepRows, epoch_order
from workbench.data.packing import Document, Rows, pack

PAD = 9999
GOLDEN_ORDER = [7, 1, 6, 4, 3, 5, 0, 2]


def rows_of(lengths: list[int], *, capacity: int = 64) -> Rows:
    """Give one-document rows whose every id is the number of the row."""
    documents = [
        Document(np.full(length, number, dtype=np.int32), np.arange(length) > 0)
        for number, length in enumerate(lengths)
    ]
    return pack(documents, capacity, "none")


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
    documents = [
        Document(np.full(length, 3, dtype=np.int32), np.arange(length) > 0) for length in (3, 2)
    ]
    rows = pack(documents, 8, "greedy")
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
