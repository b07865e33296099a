"""What the data worker says on its stdout: one record per line, typed for both of its ends.

``python -m workbench.data`` writes them, ``jobs/data_worker`` reads them. Knows neither tokens nor
files. Invariant: what is ``Done`` comes last, and nothing that is said before it is taken back.
"""

from typing import Literal

import msgspec

Split = Literal["train", "validation"]
Severity = Literal["error", "warning"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line on the data worker's stdout."""


class Progress(Record, frozen=True, tag="progress"):
    """How far preparing is; ``total`` 0 where it is not known."""

    stage: str
    done: int
    total: int


class Finding(Record, frozen=True, tag="finding"):
    """One thing that is wrong with the data; an error keeps a run from starting."""

    severity: Severity
    where: str
    what: str
    remedy: str


class Refused(Record, frozen=True, tag="refused"):
    """What was asked for is not there, such as a step beyond the run's end; nothing follows."""

    where: str
    what: str
    remedy: str


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a config's data comes to.

    Attributes:
        train_conversations: usable ones, before cutting and packing; so for the other splits.
        longest_row: tokens of the longest training row.
        seen_tokens: of the document that a token of training stands in, on average over tokens.
        most_documents: of the training row that holds most.
        longest_validation_row: tokens of the longest validation row.
        steps_per_epoch: optimizer steps in which every training row is seen.
    """

    train_conversations: int
    validation_conversations: int
    test_conversations: int
    train_rows: int
    train_tokens: int
    train_targets: int
    longest_row: int
    validation_rows: int
    validation_tokens: int
    validation_targets: int
    steps_per_epoch: int
    seen_tokens: float
    most_documents: int
    longest_validation_row: int


class Done(Record, frozen=True, tag="done"):
    """The last record.

    Attributes:
        prepared: there is prepared data; False only where ``counts`` finds none.
        counts: what it comes to; None where there is none.
        num_errors: findings that keep a run from starting, shown or not.
        num_warnings: the other findings, shown or not.
        num_hidden: findings that were counted in a last line in place of being shown.
        cache: folder of the prepared data, None where it is not kept.
        cache_bytes: its size.
        was_cached: it was there already.
    """

    prepared: bool
    counts: Counts | None = None
    num_errors: int = 0
    num_warnings: int = 0
    num_hidden: int = 0
    cache: str | None = None
    cache_bytes: int = 0
    was_cached: bool = False


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One token of a document.

    Attributes:
        id: its number.
        piece: how the vocabulary spells it.
        text: the characters that it completes; a character of several tokens is the last one's.
        is_target: it counts in the loss.
        is_special: it is a sign, such as an end of turn, and no text.
        is_stop: it belongs to what ends a trained turn.
        why_not: why it is no target; "" for a target.
        part: its bytes in hexadecimal where they are only a part of a character; else "".
    """

    id: int
    piece: str
    text: str
    is_target: bool
    is_special: bool = False
    is_stop: bool = False
    why_not: str = ""
    part: str = ""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, or a piece of one, in its row.

    Attributes:
        number: among the documents of its split, from 1, in the order of the rows.
        where: file and row it comes from.
        start: position of its first token in the row.
        tokens: all of them; positions begin anew at each document.
        num_before: tokens of its conversation before it, which another document holds.
        num_behind: tokens of its conversation behind it, cut off or held by another document.
    """

    number: int
    where: str
    start: int
    tokens: list[Token]
    num_before: int = 0
    num_behind: int = 0

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return sum(token.is_target for token in self.tokens)


class Step(Record, frozen=True, tag="step"):
    """The rows that follow: those of one step of the run, or the row of one document.

    Attributes:
        split: where they come from.
        step: of the run, from 1; of the evaluation for validation; None for a document.
        num_steps: of the whole run, or of an evaluation.
        steps_per_epoch: in which every row is seen.
        num_rows: of this step that hold data.
        num_empty_rows: fully masked rows that fill the step up.
        row_length: tokens of each row, padding included.
        num_tokens: of the step, without padding.
        num_targets: of the step: the number its loss is divided by.
        num_documents: of the split.
        template: the chat template, as the config names it.
        targets: which turns are trained.
        overlong: what happens to conversations over the config's length.
    """

    split: Split
    step: int | None
    num_steps: int
    steps_per_epoch: int
    num_rows: int
    num_empty_rows: int
    row_length: int
    num_tokens: int
    num_targets: int
    num_documents: int
    template: str
    targets: str
    overlong: Literal["truncate", "split"]


class Row(Record, frozen=True, tag="row"):
    """One row of the step, as the model gets it.

    Attributes:
        number: in the step, from 1.
        index: among the rows of the split, from 1.
        documents: end to end, from position 0.
        num_padding: tokens behind the last one.
    """

    number: int
    index: int
    documents: list[Document]
    num_padding: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(len(document.tokens) for document in self.documents)

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return sum(document.num_targets for document in self.documents)


class Bar(msgspec.Struct, frozen=True):
    """Conversations of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    count: int


class Share(msgspec.Struct, frozen=True):
    """What a length takes in.

    Attributes:
        length: tokens of a row.
        conversations: share of them that is not longer, 0 to 1.
        tokens: share of all tokens that is left when longer ones are cut off.
    """

    length: int
    conversations: float
    tokens: float


class Padding(msgspec.Struct, frozen=True, kw_only=True):
    """What one way to lay rows costs in an epoch.

    Attributes:
        packing: method, "none" for a row for each document.
        pad_to: longest row of the step, or context.
        rows: of an epoch.
        share: of all positions that are padding, 0 to 1.
        is_configured: the way of the config.
    """

    packing: str
    pad_to: str
    rows: int
    share: float
    is_configured: bool = False


class Statistics(Record, frozen=True, tag="statistics"):
    """What a split comes to.

    Attributes:
        split: which one.
        num_conversations: usable ones.
        num_documents: in its rows: pieces count, dropped ones do not.
        num_rows: of the split.
        max_length: where longer conversations are cut.
        num_longer: conversations above it.
        percentiles: length by percentile: 50, 90, 95, 99, 100.
        mean_length: tokens of a conversation.
        histogram: ascending; one bar ends at ``max_length`` where conversations are longer.
        shares: what 512, 1,300, 2,048, 4,096 tokens and the config's length take in.
        paddings: the config's way, and others.
        tokens_per_step: mean, without padding.
        targets_per_step: mean.
        positions_per_step: mean, with padding.
        steps_per_epoch: in which every row is seen; batches of an evaluation for validation.
        num_steps: of the whole run; as ``steps_per_epoch`` for validation.
        documents_per_row: mean.
        target_share: of all tokens that count in the loss, 0 to 1.
    """

    split: Split
    num_conversations: int
    num_documents: int
    num_rows: int
    max_length: int
    num_longer: int
    percentiles: dict[int, int]
    mean_length: float
    histogram: list[Bar]
    shares: list[Share]
    paddings: list[Padding]
    tokens_per_step: float
    targets_per_step: float
    positions_per_step: float
    steps_per_epoch: int
    num_steps: int
    documents_per_row: float
    target_share: float


AnyRecord = Progress | Finding | Refused | Done | Step | Row | Statistics
