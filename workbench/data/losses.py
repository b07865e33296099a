"""What cutting and dropping costs: of a split as a whole, and then each row that it befalls.

Knows lengths, targets and places, no text. Invariant: a row that is dropped is not told as cut.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from workbench.config.schema.data import DataSection
from workbench.data.findings import Finding
from workbench.data.packing import MIN_PACKED_TOKENS, Fitted, Pieces
from workbench.data.raw_rows import Part
from workbench.data.token_store import TokenStore

_WHOLE_REMEDY = "raise data.max_length to keep them whole"
_LONGER_REMEDY = "raise data.max_length, or set data.overlong: split"
_SHORT_REMEDY = "set data.packing: none to keep them"


def losses(
    fitted: Fitted, tokens: TokenStore, parts: Sequence[Part], data: DataSection, split: str
) -> Iterator[tuple[str, Finding]]:
    """Tell what was cut off and what was dropped: first how much it is, then which rows.

    Args:
        fitted: what is left of the documents, and what is not.
        tokens: of the split, before cutting.
        parts: that name the rows.
        data: the config's section, by which they were cut.
        split: its name, as complaints show it.

    Yields:
        The kind of a finding, and the finding; all are warnings.
    """
    of = f"of {len(tokens):,} {split} conversations"
    splits = data.overlong == "split"
    dropped = f"pieces {of}" if splits else of
    longer = f"{of} are longer than {data.max_length:,} tokens"
    if fitted.split.size:
        what = f"{fitted.split.size:,} {longer} and become several"
        yield what, Finding("warning", "data.max_length", what, _WHOLE_REMEDY)
    if len(fitted.cut):
        num_tokens = int(fitted.cut.lengths.sum())
        what = f"{len(fitted.cut):,} {longer}; {num_tokens:,} tokens are cut off"
        yield what, Finding("warning", "data.max_length", what, _LONGER_REMEDY)
        is_kept = ~np.isin(fitted.cut.documents, fitted.without_targets.documents)
        for where, what in _cut(fitted.cut.take(is_kept), tokens, parts):
            yield f"cut, {split}", Finding("warning", where, what, _LONGER_REMEDY)
    if len(fitted.without_targets):
        remedy = _WHOLE_REMEDY if splits else _LONGER_REMEDY
        what = f"{len(fitted.without_targets):,} {dropped} have nothing to train within "
        what += f"{data.max_length:,} tokens and are dropped"
        yield what, Finding("warning", "data.max_length", what, remedy)
        for where, span in _dropped(fitted.without_targets, tokens, parts):
            what = f"has nothing to train in {span}, {'which are' if splits else 'and is'} dropped"
            yield f"without targets, {split}", Finding("warning", where, what, remedy)
    if len(fitted.short):
        what = f"{len(fitted.short):,} {dropped} have fewer than {MIN_PACKED_TOKENS} tokens and "
        what += "are dropped"
        yield what, Finding("warning", "data.packing", what, _SHORT_REMEDY)
        for where, span in _dropped(fitted.short, tokens, parts):
            what = f"{span} are dropped: fewer than {MIN_PACKED_TOKENS} are no document"
            yield f"short, {split}", Finding("warning", where, what, _SHORT_REMEDY)


def _cut(cut: Pieces, tokens: TokenStore, parts: Sequence[Part]) -> Iterator[tuple[str, str]]:
    """Name each row whose end was cut off, and say what it loses by that."""
    sizes = tokens.lengths[cut.documents].tolist()
    # Between two answers stands at least what begins the second.
    is_within = (tokens.targets[cut.begins] & tokens.targets[cut.begins - 1]).tolist()
    rows = zip(cut.documents.tolist(), cut.lengths.tolist(), cut.num_targets.tolist(), strict=True)
    for (document, num_cut, num_targets), size, cuts_answer in zip(
        rows, sizes, is_within, strict=True
    ):
        part = parts[tokens.parts[document]]
        what = f"has {size:,} tokens; the last {num_cut:,} are cut off"
        if part.form == "text":
            what += ", the end of its text"
        elif not num_targets:
            what += ", none of them trained"
        elif cuts_answer:
            what += ", with the end of an answer and its stop token"
        else:
            what += ", with all of the answers in them"
        yield part.where(int(tokens.rows[document])), what


def _dropped(
    dropped: Pieces, tokens: TokenStore, parts: Sequence[Part]
) -> Iterator[tuple[str, str]]:
    """Name each row of which pieces are dropped, and say which of its tokens they hold."""
    documents, firsts = np.unique(dropped.documents, return_index=True)
    num_dropped = np.add.reduceat(dropped.lengths, firsts).tolist()
    begins = (dropped.begins[firsts] - tokens.offsets[documents]).tolist()
    sizes = tokens.lengths[documents].tolist()
    for document, begin, number, size in zip(
        documents.tolist(), begins, num_dropped, sizes, strict=True
    ):
        if number == size:
            span = f"its {size:,} tokens"
        elif begin == 0:
            span = f"the first {number:,} of its {size:,} tokens"
        elif begin + number == size:
            span = f"the last {number:,} of its {size:,} tokens"
        else:
            span = f"{number:,} of its {size:,} tokens"
        yield parts[tokens.parts[document]].where(int(tokens.rows[document])), span
