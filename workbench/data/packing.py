"""Documents into rows of bounded length; each row remembers where its documents begin.

Knows lengths and arrays, no text. Invariant: every token of every document that is kept lies in
exactly one row, and no document is cut by the border of a row.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["none", "best_fit", "first_fit", "greedy"]

# A shorter document has next to nothing to learn from and costs attention its own boundary.
MIN_PACKED_TOKENS = 16


@dataclass(frozen=True)
class Document:
    """One conversation, or a piece of one, as tokens.

    Attributes:
        ids: (tokens,) int32.
        targets: (tokens,) bool, True where the token counts in the loss; the first is False.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """Documents end to end, without padding.

    Attributes:
        ids: (tokens,) int32.
        targets: (tokens,) bool; False at each document's first token.
        document_starts: (documents,) int32, ascending from 0.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    document_starts: NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """The rows of a split, in the order of the data.

    Attributes:
        rows: each of at most the capacity they were packed for.
    """

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows; there is no padding in them."""
        return sum(row.ids.size for row in self.rows)

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss, over all rows."""
        return sum(int(row.targets.sum()) for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return max((row.ids.size for row in self.rows), default=0)

    @property
    def max_documents(self) -> int:
        """Documents of the row that has most; 0 without rows."""
        return max((row.document_starts.size for row in self.rows), default=0)


@dataclass(frozen=True)
class Fitted:
    """Documents cut to a length, and what that cost.

    Attributes:
        documents: none longer than the limit, none without a target.
        num_truncated: documents whose end was cut off.
        num_cut_tokens: tokens lost that way.
        num_split: documents that became several.
        num_short: documents or pieces dropped for being shorter than the minimum.
        num_without_targets: documents or pieces dropped because nothing trainable is left.
    """

    documents: tuple[Document, ...]
    num_truncated: int = 0
    num_cut_tokens: int = 0
    num_split: int = 0
    num_short: int = 0
    num_without_targets: int = 0


def fit_documents(
    documents: Sequence[Document],
    max_length: int,
    overlong: Literal["truncate", "split"],
    min_length: int,
) -> Fitted:
    """Bring every document to at most ``max_length`` tokens, counting all that is lost.

    Args:
        documents: of any length.
        max_length: tokens of a row.
        overlong: cut the end off, or make several documents of it.
        min_length: shorter documents and pieces are dropped; 0 or 1 keeps all.
    """
    kept: list[Document] = []
    num_truncated = num_cut_tokens = num_split = num_short = num_without_targets = 0
    for document in documents:
        size = document.ids.size
        pieces = [document]
        if size > max_length and overlong == "truncate":
            num_truncated += 1
            num_cut_tokens += size - max_length
            pieces = [Document(document.ids[:max_length], document.targets[:max_length])]
        elif size > max_length:
            num_split += 1
            pieces = [_piece(document, start, max_length) for start in range(0, size, max_length)]
        for piece in pieces:
            if piece.ids.size < min_length:
                num_short += 1
            elif not piece.targets.any():
                num_without_targets += 1
            else:
                kept.append(piece)
    return Fitted(
        tuple(kept), num_truncated, num_cut_tokens, num_split, num_short, num_without_targets
    )


def _piece(document: Document, start: int, max_length: int) -> Document:
    targets = document.targets[start : start + max_length].copy()
    targets[0] = False  # its predecessor is in another document
    return Document(document.ids[start : start + max_length], targets)


def pack(documents: Sequence[Document], capacity: int, method: Method) -> Rows:
    """Lay documents into rows of at most ``capacity`` tokens.

    Rows are ordered by their first document, and documents within a row keep their order.

    Args:
        documents: none longer than ``capacity``.
        capacity: tokens of a row.
        method: see ``assign``.
    """
    groups = assign([document.ids.size for document in documents], capacity, method)
    return Rows(tuple(join([documents[index] for index in group]) for group in groups))


def join(documents: Sequence[Document]) -> Row:
    """Lay documents end to end: lengths 3 and 2 begin at [0, 3]."""
    lengths = [document.ids.size for document in documents]
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
    targets = np.concatenate([document.targets for document in documents])
    targets[starts] = False
    ids = np.concatenate([document.ids for document in documents]).astype(np.int32)
    return Row(ids, targets, starts)


def assign(lengths: Sequence[int], capacity: int, method: Method) -> list[list[int]]:
    """Say which documents share a row.

    Args:
        lengths: tokens of each document, 1 to ``capacity``.
        capacity: tokens of a row.
        method: none gives each document its own row; best_fit takes the longest first, each into
            the fullest row that still takes it; first_fit takes them as they come, each into the
            first row with room; greedy fills one row and begins the next when one does not fit.

    Returns:
        Indices per row, ascending; rows ordered by their first index. Lengths [6, 5, 3, 2, 4] and
        a capacity of 10 give [[0, 4], [1, 2, 3]] by best_fit.
    """
    assert all(0 < length <= capacity for length in lengths), "fit_documents comes first"
    if method == "none":
        return [[index] for index in range(len(lengths))]
    if method == "best_fit":
        groups = _best_fit(lengths, capacity)
    elif method == "first_fit":
        groups = _first_fit(lengths, capacity)
    else:
        groups = _greedy(lengths, capacity)
    return sorted(sorted(group) for group in groups)


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    groups: list[list[int]] = []
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of rows_by_room, ascending
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(groups), capacity
            groups.append([])
        else:
            room = rooms[at]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rows_by_room[room]
                rooms.pop(at)
        groups[row].append(index)
        left = room - length
        if left:
            if left not in rows_by_room:
                rows_by_room[left] = []
                bisect.insort(rooms, left)
            rows_by_room[left].append(row)
    return groups


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = np.zeros(len(lengths), dtype=np.int64)
    for index, length in enumerate(lengths):
        fitting = np.flatnonzero(room[: len(groups)] >= length)
        if fitting.size:
            row = int(fitting[0])
        else:
            row = len(groups)
            groups.append([])
            room[row] = capacity
        groups[row].append(index)
        room[row] -= length
    return groups


def _greedy(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room:
            groups.append([])
            room = capacity
        groups[-1].append(index)
        room -= length
    return groups
