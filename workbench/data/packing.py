"""Documents into rows of bounded length; each row remembers where its documents begin.

Knows lengths and spans of tokens, no text; a row's tokens are read when it is asked for.
Invariant: every token of every document that is kept lies in exactly one row, and no document is
cut by the border of a row.
"""

import bisect
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.data.token_store import TokenStore

Method = Literal["none", "best_fit", "first_fit", "greedy"]

# A shorter document has next to nothing to learn from and costs attention its own boundary.
MIN_PACKED_TOKENS = 16


class Origin(Protocol):
    """Where documents came from; it names their rows."""

    def where(self, index: int) -> str:
        """Name a row, as complaints show it."""
        ...


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
class Pieces:
    """Documents, or parts of them, as spans of a store's tokens.

    Attributes:
        documents: (pieces,) int64, which document of the store.
        begins: (pieces,) int64, offset of the first token in the store.
        ends: (pieces,) int64, offset behind the last.
        num_targets: (pieces,) int64, tokens that count in the loss; the first never does.
    """

    documents: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    num_targets: NDArray[np.int64]

    def __len__(self) -> int:
        return self.documents.size

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(pieces,) int64, tokens of each."""
        return self.ends - self.begins

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Pieces":
        """Give some of the pieces, by number or by a mask."""
        return Pieces(
            self.documents[chosen],
            self.begins[chosen],
            self.ends[chosen],
            self.num_targets[chosen],
        )


@dataclass(frozen=True)
class Stream:
    """Rows that follow each other and are seen equally often.

    Attributes:
        num_rows: of the stream.
        weight: times each is seen per epoch, on average.
    """

    num_rows: int
    weight: float = 1.0


@dataclass(frozen=True)
class Rows:
    """The rows of a split, in the order of the data; made when they are asked for.

    Attributes:
        tokens: that the rows are made of.
        pieces: in the order in which they lie in the rows.
        borders: (rows + 1,) int64; row i has the pieces ``borders[i]:borders[i + 1]``.
        streams: of the rows, one behind the other; one for each weight.
        parts: by the numbers that the store has for them; empty if nobody asks ``where``.
    """

    tokens: TokenStore
    pieces: Pieces
    borders: NDArray[np.int64]
    streams: tuple[Stream, ...]
    parts: Sequence[Origin] = ()

    def __len__(self) -> int:
        return self.borders.size - 1

    def __getitem__(self, index: int) -> Row:
        first, end = self._span(index)
        begins = self.pieces.begins[first:end].tolist()
        ends = self.pieces.ends[first:end].tolist()
        spans = [slice(*span) for span in zip(begins, ends, strict=True)]
        lengths = self.pieces.lengths[first:end]
        starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        targets = np.concatenate([self.tokens.targets[span] for span in spans])
        targets[starts] = False  # what comes before a document's first token is in no document
        return Row(np.concatenate([self.tokens.ids[span] for span in spans]), targets, starts)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> tuple[str, ...]:
        """Name the file and row of each document of a row."""
        first, end = self._span(index)
        documents = self.pieces.documents[first:end].tolist()
        return tuple(
            self.parts[self.tokens.parts[document]].where(int(self.tokens.rows[document]))
            for document in documents
        )

    def _span(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return int(self.borders[index]), int(self.borders[index + 1])

    @functools.cached_property
    def row_lengths(self) -> NDArray[np.int64]:
        """(rows,) int64, tokens of each row."""
        ends = np.concatenate([[0], np.cumsum(self.pieces.lengths)])
        return np.diff(ends[self.borders])

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows; there is no padding in them."""
        return int(self.pieces.lengths.sum())

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss, over all rows."""
        return int(self.pieces.num_targets.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return int(self.row_lengths.max(initial=0))

    @property
    def seen_tokens(self) -> float:
        """Tokens of the document that a token stands in, on average over all tokens.

        Documents of 1 and 3 tokens give (1 · 1 + 3 · 3) / 4 = 2.5.
        """
        lengths = self.pieces.lengths.astype(np.float64)
        return float((lengths**2).sum() / max(1.0, lengths.sum()))

    @property
    def max_documents(self) -> int:
        """Documents of the row that has most; 0 without rows."""
        return int(np.diff(self.borders).max(initial=0))


@dataclass(frozen=True)
class Fitted:
    """Documents cut to a length, and what that cost.

    Attributes:
        pieces: none longer than the limit, none without a target.
        cut: ends that were cut off; all of their targets are counted, also the first token.
        split: (documents,) int64, documents that became several.
        short: documents or pieces dropped for being shorter than the minimum.
        without_targets: documents or pieces dropped because nothing trainable is left.
    """

    pieces: Pieces
    cut: Pieces
    split: NDArray[np.int64]
    short: Pieces
    without_targets: Pieces


def fit_documents(
    tokens: TokenStore,
    max_length: int,
    overlong: Literal["truncate", "split"],
    min_length: int,
) -> Fitted:
    """Bring every document to at most ``max_length`` tokens, keeping account of all that is lost.

    Nothing is copied: what is left are spans. With ``max_length`` 10, a document of 25 tokens
    becomes the span [0, 10) by truncate, and [0, 10), [10, 20), [20, 25) by split.

    Args:
        tokens: documents of any length.
        max_length: tokens of a row.
        overlong: cut the end off, or make several documents of it.
        min_length: shorter documents and pieces are dropped; 0 or 1 keeps all.
    """
    lengths = np.diff(tokens.offsets)
    longer = np.flatnonzero(lengths > max_length)
    none = np.empty(0, dtype=np.int64)
    num_pieces = np.ones(lengths.size, dtype=np.int64)
    if overlong == "split":
        num_pieces[longer] = -(-lengths[longer] // max_length)
    documents = np.repeat(np.arange(lengths.size, dtype=np.int64), num_pieces)
    firsts = np.cumsum(num_pieces) - num_pieces
    number_in_document = np.arange(documents.size, dtype=np.int64) - firsts[documents]
    begins = tokens.offsets[documents] + number_in_document * max_length
    ends = np.minimum(begins + max_length, tokens.offsets[documents + 1])
    pieces = Pieces(documents, begins, ends, _count_targets(tokens.targets, begins, ends))
    is_short = pieces.lengths < min_length
    has_targets = pieces.num_targets > 0
    return Fitted(
        pieces.take(~is_short & has_targets),
        cut=_ends_of(tokens, longer if overlong == "truncate" else none, max_length),
        split=longer if overlong == "split" else none,
        short=pieces.take(is_short),
        without_targets=pieces.take(~is_short & ~has_targets),
    )


def _ends_of(tokens: TokenStore, documents: NDArray[np.int64], max_length: int) -> Pieces:
    """Give what documents hold behind their first ``max_length`` tokens."""
    begins, ends = tokens.offsets[documents] + max_length, tokens.offsets[documents + 1]
    num_targets = _count_targets(tokens.targets, begins, ends) + tokens.targets[begins]
    return Pieces(documents, begins, ends, num_targets)


def _count_targets(
    targets: NDArray[np.bool_], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the targets of spans, ascending and apart, without the first token of each."""
    counts = np.zeros(begins.size, dtype=np.int64)
    has_more = np.flatnonzero(ends - begins > 1)
    if not has_more.size:
        return counts
    bounds = np.stack([begins[has_more] + 1, ends[has_more]], axis=1).reshape(-1)
    if bounds[-1] == targets.size:  # reduceat takes no bound behind the last; the end is implied
        bounds = bounds[:-1]
    counts[has_more] = np.add.reduceat(targets.view(np.uint8), bounds, dtype=np.int64)[::2]
    return counts


def pack(
    tokens: TokenStore,
    pieces: Pieces,
    capacity: int,
    method: Method,
    *,
    weights: NDArray[np.float64] | None = None,
    parts: Sequence[Origin] = (),
) -> Rows:
    """Lay documents into rows of at most ``capacity`` tokens.

    Rows are ordered by their first document, and documents within a row keep their order.
    Documents of different weight share no row; those of one weight form a stream of rows.

    Args:
        tokens: that the pieces are spans of.
        pieces: none longer than ``capacity``.
        capacity: tokens of a row.
        method: see ``assign``.
        weights: (pieces,) float64, times each is seen per epoch; None is 1 for all.
        parts: that name the documents.
    """
    if weights is None:
        weights = np.ones(len(pieces), dtype=np.float64)
    lengths = pieces.lengths
    order: list[int] = []
    sizes: list[int] = []
    streams: list[Stream] = []
    for weight in dict.fromkeys(weights.tolist()):
        chosen = np.flatnonzero(weights == weight)
        numbers = chosen.tolist()
        groups = assign(lengths[chosen].tolist(), capacity, method)
        order += [numbers[index] for group in groups for index in group]
        sizes += [len(group) for group in groups]
        streams.append(Stream(len(groups), weight))
    borders = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    in_order = pieces.take(np.array(order, dtype=np.int64))
    return Rows(tokens, in_order, borders, tuple(streams), parts)


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
    """Find each first row with room in a tree whose nodes know the most room below them."""
    num_leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    most_room = [capacity] * (2 * num_leaves)  # rows not begun yet have all of it
    groups: list[list[int]] = []
    for index, length in enumerate(lengths):
        node = 1
        while node < num_leaves:
            node *= 2
            if most_room[node] < length:
                node += 1
        row = node - num_leaves
        if row == len(groups):
            groups.append([])
        groups[row].append(index)
        most_room[node] -= length
        while node > 1:
            node //= 2
            most_room[node] = max(most_room[2 * node], most_room[2 * node + 1])
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
