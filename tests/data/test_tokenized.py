from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workbench.data.formats import Format
from workbench.data.raw_rows import RawRow
from workbench.data.sources import Source
from workbench.data.tokenized import chunks_of


@dataclass(frozen=True)
class Counted:
    """A part of which only the number of rows matters."""

    num_rows: int
    label: str = "counted"
    form: Format = "text"

    def fingerprint(self) -> str:
        return "0" * 64

    def rows(self, start: int, stop: int) -> Iterator[RawRow]:
        raise NotImplementedError

    def where(self, index: int) -> str:
        return f"row {index + 1}"


SIZES = st.lists(st.one_of(st.integers(0, 12), st.integers(1020, 1030)), min_size=1, max_size=5)
SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(st.lists(SIZES, min_size=1, max_size=3), SHARES)
def test_chunks_hold_every_row_once_in_order_and_in_its_split(
    sizes: list[list[int]], split_at: list[float]
) -> None:
    sources = [Source("name", 1.0, tuple(Counted(size) for size in each)) for each in sizes]
    expected, part = [], 0
    for source in sources:
        borders = [int(share * source.num_rows) for share in split_at]
        position = 0
        for each in source.parts:
            for row in range(each.num_rows):
                split = sum(position >= border for border in borders)
                expected.append((part, row, ("train", "validation", "test")[split]))
                position += 1
            part += 1
    chunks = list(chunks_of(sources, split_at))
    found = [
        (chunk.part, row, chunk.split) for chunk in chunks for row in range(chunk.start, chunk.stop)
    ]
    assert found == expected
    assert all(0 < chunk.stop - chunk.start <= 1024 for chunk in chunks)
