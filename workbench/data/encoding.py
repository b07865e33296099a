"""Rows of a data set to tokens and targets: read, checked, rendered, tokenized, judged.

Works on parts of files by row numbers, so that it can be done by any number of processes: no text
passes between them, and what comes back are arrays and findings in the order of the rows.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.data.chat_template import ChatTemplate, Rendered, Targets, to_tokens
from workbench.data.duplicates import Split, digest
from workbench.data.findings import Finding
from workbench.data.formats import (
    DROPPING,
    ROW_REMEDY,
    BadRowError,
    Complaint,
    Conversation,
    Role,
    convert,
)
from workbench.data.raw_rows import Part, RawRow
from workbench.data.token_store import Documents
from workbench.data.tokenizer import Encoded, load_tokenizer
from workbench.errors import DataError

# A batch is what is tokenized at once. It ends early at so many characters, for a token takes a
# hundred times its text while the tokenizer holds it.
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Rows that follow each other in one part and belong to one split.

    Attributes:
        part: its number in the job.
        start: first row.
        stop: the one after the last.
        split: the test split is read and checked, not tokenized.
    """

    part: int
    start: int
    stop: int
    split: Split


@dataclass(frozen=True)
class EncodeJob:
    """All that a process needs to know to encode rows; it may be pickled.

    Attributes:
        parts: that chunks name by number.
        model_folder: with the tokenizer.
        template: Jinja source of the chat template.
        targets: turns that are trained.
        roles: further role names found in the data.
        skip_bad_rows: bad rows are warnings.
    """

    parts: tuple[Part, ...]
    model_folder: Path
    template: str
    targets: Targets
    roles: Mapping[str, Role]
    skip_bad_rows: bool


@dataclass(frozen=True)
class EncodedBatch:
    """What some rows of a chunk came to.

    Attributes:
        chunk: that they belong to.
        num_rows: rows read.
        num_usable: those that can be used; of the test split, those that are conversations.
        documents: those that can be trained on, as tokens; none of the test split.
        digests: row and hash of each conversation, to tell those that say the same.
        findings: with their kinds, in the order of the rows.
        ends_chunk: no other of its chunk follows.
    """

    chunk: Chunk
    num_rows: int
    num_usable: int
    documents: Documents
    digests: tuple[tuple[int, bytes], ...]
    findings: tuple[tuple[str, Finding], ...]
    ends_chunk: bool


@dataclass
class _Batch:
    """Rows on their way: those that could be rendered wait for their tokens."""

    chunk: Chunk
    num_rows: int = 0
    num_characters: int = 0
    rendered: list[tuple[int, Conversation, Rendered]] = field(default_factory=list)
    digests: list[tuple[int, bytes]] = field(default_factory=list)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    ends_chunk: bool = False


class Encoder:
    """Encodes chunks; made once per process.

    Args:
        job: what to encode, and how.

    Raises:
        DataError: the tokenizer or the template is wrong.
    """

    def __init__(self, job: EncodeJob) -> None:
        self._job = job
        self._tokenizer = load_tokenizer(job.model_folder)
        self._template = ChatTemplate(job.template, self._tokenizer.special_tokens)
        signs = sorted(self._tokenizer.texts_of_special_tokens)
        self._signs = re.compile("|".join(map(re.escape, signs))) if signs else None

    def encode(self, chunks: Iterable[Chunk]) -> Iterator[EncodedBatch]:
        """Encode chunks in order, reading and rendering one batch while another is tokenized.

        The tokenizer works outside the interpreter's lock, so the two take no time from each
        other where there are two cores.

        Raises:
            DataError: a file cannot be read any more.
        """
        waiting: deque[tuple[_Batch, Future[list[Encoded]]]] = deque()
        with ThreadPoolExecutor(1, "tokenizer") as beside:
            for batch in self._batches(chunks):
                texts = [rendered.text for _, _, rendered in batch.rendered]
                waiting.append((batch, beside.submit(self._tokenizer.encode, texts)))
                if len(waiting) > 1:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())

    def _batches(self, chunks: Iterable[Chunk]) -> Iterator[_Batch]:
        for chunk in chunks:
            batch = _Batch(chunk)
            rows = self._job.parts[chunk.part].rows(chunk.start, chunk.stop)
            for number, row in enumerate(rows, start=chunk.start):
                if batch.num_rows >= _BATCH_ROWS or batch.num_characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch = _Batch(chunk)
                self._read(number, row, batch)
            batch.ends_chunk = True
            yield batch

    def _read(self, number: int, row: RawRow, batch: _Batch) -> None:
        """Make a row a conversation and render it, noting what is wrong with it."""
        batch.num_rows += 1
        conversation = self._convert(row, batch)
        if conversation is None:
            return
        batch.digests.append((number, digest(conversation)))
        if batch.chunk.split == "test":
            return
        self._warn_of_signs(conversation, batch)
        try:
            rendered = self._template.mark(conversation, self._job.targets)
        except DataError as error:
            finding = self._refused(conversation.where, error.what, error.remedy)
            batch.findings.append((error.what, finding))
            return
        batch.rendered.append((number, conversation, rendered))
        batch.num_characters += len(rendered.text)

    def _convert(self, row: RawRow, batch: _Batch) -> Conversation | None:
        if row.problem is not None:
            finding = self._refused(row.where, row.problem, row.remedy or ROW_REMEDY)
            batch.findings.append(("broken row", finding))
            return None
        form = self._job.parts[batch.chunk.part].form
        try:
            conversation, notes = convert(row.value, form, self._job.roles, row.where)
        except BadRowError as error:
            for complaint in error.complaints:
                place = _place(complaint, row.where)
                finding = self._refused(place, complaint.what, complaint.remedy)
                batch.findings.append((complaint.kind, finding))
            return None
        for note in notes:
            finding = Finding("warning", _place(note, row.where), note.what, note.remedy)
            batch.findings.append((note.kind, finding))
        return conversation

    def _refused(self, where: str, what: str, remedy: str) -> Finding:
        """Tell of a row that cannot be used: what to do, unless it is dropped as was asked."""
        if self._job.skip_bad_rows:
            return Finding("warning", where, what, remedy.removesuffix(DROPPING))
        return Finding("error", where, what, remedy)

    def _warn_of_signs(self, conversation: Conversation, batch: _Batch) -> None:
        """Report text that will be read as special tokens."""
        if self._signs is None:
            return
        where = conversation.where
        texts = [(f"{where} turn {turn.turn}", turn.content) for turn in conversation.messages]
        if conversation.text is not None:
            texts.append((where, conversation.text))
        for place, text in texts:
            found = self._signs.search(text)
            if found is not None:
                what = f"contains {found.group()!r}, which becomes a special token"
                remedy = "remove it from the text if that is not meant"
                finding = Finding("warning", place, what, remedy)
                batch.findings.append(("special token in text", finding))

    def _finish(self, batch: _Batch, tokens: Future[list[Encoded]]) -> EncodedBatch:
        """Lay the trainable documents of a batch end to end."""
        ids, targets, rows = [], [], []
        for (number, conversation, rendered), encoded in zip(
            batch.rendered, tokens.result(), strict=True
        ):
            document = to_tokens(rendered, encoded, self._tokenizer)
            is_text = conversation.text is not None
            flaw = _flaw(has_targets=bool(document.mask.any()), stops=is_text or document.num_stops)
            if flaw is None:
                if document.num_straddled:
                    batch.findings.append(("straddled", _straddled(conversation.where)))
                ids.append(document.ids)
                targets.append(document.mask)
                rows.append(number)
            else:
                what, remedy = flaw
                finding = self._refused(conversation.where, what, remedy)
                batch.findings.append((what, finding))
        lengths = np.array([each.size for each in ids], dtype=np.int64)
        documents = Documents(
            np.concatenate([np.empty(0, np.int32), *ids]),
            np.concatenate([np.empty(0, np.bool_), *targets]),
            lengths,
            np.array(rows, dtype=np.int64),
        )
        return EncodedBatch(
            batch.chunk,
            batch.num_rows,
            len(batch.digests) if batch.chunk.split == "test" else len(rows),
            documents,
            tuple(batch.digests),
            tuple(batch.findings),
            batch.ends_chunk,
        )


def _straddled(where: str) -> Finding:
    return Finding(
        "warning",
        where,
        "a turn that is trained begins within a token that holds what stands before it too, so "
        "its first word or part of one is not trained",
        "let the template's generation prompt end in a newline or a sign, or take the blanks off "
        "the turn's beginning",
    )


def _place(complaint: Complaint, where: str) -> str:
    return where if complaint.turn is None else f"{where} turn {complaint.turn}"


def _flaw(*, has_targets: bool, stops: int | bool) -> tuple[str, str] | None:
    """Say why a document would train wrongly, and the remedy; None if it would not."""
    if not has_targets:
        return "has no trainable token", ROW_REMEDY
    if not stops:
        return (
            "never trains the token that ends the assistant's turn",
            "use a template that writes one after each answer, such as chatml",
        )
    return None
