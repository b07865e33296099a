"""Documents in memory, laid out as the files of a token store lay them out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.data.packing import Pieces, Row, Rows, Stream
from workbench.data.token_store import TokenStore

Document = tuple[NDArray[np.int32], NDArray[np.bool_]]


def store_of(documents: Sequence[Document]) -> TokenStore:
    """Lay ids and targets of documents end to end."""
    return TokenStore(
        ids=np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in documents)]),
        targets=np.concatenate([np.empty(0, np.bool_), *(targets for _, targets in documents)]),
        offsets=np.cumsum([0, *(ids.size for ids, _ in documents)], dtype=np.int64),
        parts=np.zeros(len(documents), dtype=np.int32),
        rows=np.arange(len(documents), dtype=np.int64),
    )


def rows_in_memory(rows: Sequence[Row]) -> Rows:
    """Give rows that exist already in the form that prepared data has."""
    documents: list[Document] = []
    for row in rows:
        ids = np.split(row.ids, row.document_starts[1:])
        documents += zip(ids, np.split(row.targets, row.document_starts[1:]), strict=True)
    store = store_of(documents)
    numbers = np.arange(len(documents), dtype=np.int64)
    begins, ends = store.offsets[:-1], store.offsets[1:]
    counts = np.array([targets.sum() for _, targets in documents], dtype=np.int64)
    borders = np.cumsum([0, *(row.document_starts.size for row in rows)], dtype=np.int64)
    return Rows(store, Pieces(numbers, begins, ends, counts), borders, (Stream(len(rows)),))
