"""The rows of a step as a person reads them: documents, tokens, and why each is no target.

Reads the very batches that the loader gives a run; nothing is rendered or masked a second time.
Invariant: the targets shown are those of the batch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.config.schema.config import Config
from workbench.control.data_records import Document, Row, Split, Step, Token
from workbench.data.batch import Batch
from workbench.data.chat_template import ChatTemplate
from workbench.data.packing import Rows
from workbench.data.prepare import PreparedData
from workbench.data.statistics import loader_of, num_steps
from workbench.data.token_texts import token_texts
from workbench.data.tokenizer import Tokenizer
from workbench.data.turns import Turns
from workbench.errors import DataError


class Preview:
    """Reads steps and documents of one split.

    Args:
        config: of the run.
        prepared: its data.
        split: which rows; there is at least one.
        tokenizer: of the model.
        template: with which the data was prepared.
    """

    def __init__(
        self,
        config: Config,
        prepared: PreparedData,
        split: Split,
        tokenizer: Tokenizer,
        template: ChatTemplate,
    ) -> None:
        self._config, self._split, self._tokenizer = config, split, tokenizer
        self._rows: Rows = prepared.train if split == "train" else prepared.validation
        self._num_documents = np.diff(self._rows.borders)  # (rows,)
        self.loader = loader_of(config, prepared, split)
        self._num_steps = num_steps(config, self.loader, split)
        self._stop_text = template.stop_text
        self._turns = Turns(template)

    def step(self, step: int, num_rows: int | None) -> Iterator[Step | Row]:
        """Give a step of the run and its rows.

        Args:
            step: from 1; of an evaluation for validation.
            num_rows: give only so many rows; None gives all.

        Raises:
            DataError: the run has no such step.
        """
        if not 1 <= step <= self._num_steps:
            run = "an evaluation" if self._split == "validation" else "the run"
            raise DataError(
                f"{run} has {self._num_steps:,} steps",
                where=f"step {step:,}",
                remedy=f"name one from 1 to {self._num_steps:,}",
            )
        rows = self.loader.step(step - 1)
        indices = self.loader.row_numbers(step - 1)
        yield self._head(
            step,
            num_rows=len(indices),
            num_all_rows=sum(len(batch.ids) for batch in rows.microbatches),
            row_length=rows.microbatches[0].row_length,
            num_tokens=rows.num_tokens,
            num_targets=rows.num_targets,
        )
        numbered = zip(indices, _rows_of(rows.microbatches), strict=False)
        for number, (index, (batch, at)) in enumerate(numbered, start=1):
            if num_rows is not None and number > num_rows:
                break
            yield self._row(number, index, batch.ids[at], batch.targets[at])

    def document(self, number: int) -> Iterator[Step | Row]:
        """Give one document alone in a row.

        Args:
            number: from 1, in the order of the rows of the split.

        Raises:
            DataError: the split has no such document.
        """
        ends = np.cumsum(self._num_documents)
        total = int(ends[-1])
        if not 1 <= number <= total:
            raise DataError(
                f"the {self._split} split has {total:,} documents",
                where=f"document {number:,}",
                remedy=f"name one from 1 to {total:,}",
            )
        index = int(np.searchsorted(ends, number))
        row = self._rows[index]
        at = number - 1 - int(ends[index] - self._num_documents[index])
        begin, end = np.append(row.document_starts, row.ids.size)[at : at + 2]
        document = self._document(
            number,
            self._rows.where(index)[at],
            row.ids[begin:end],
            row.targets[begin:end],
            start=int(begin),
        )
        yield self._head(
            None,
            num_rows=1,
            num_all_rows=1,
            row_length=row.ids.size,
            num_tokens=len(document.tokens),
            num_targets=document.num_targets,
        )
        yield Row(number=1, index=index + 1, documents=[document], num_padding=0)

    def _head(
        self,
        step: int | None,
        *,
        num_rows: int,
        num_all_rows: int,
        row_length: int,
        num_tokens: int,
        num_targets: int,
    ) -> Step:
        return Step(
            split=self._split,
            step=step,
            num_steps=self._num_steps,
            steps_per_epoch=self.loader.steps_per_epoch,
            num_rows=num_rows,
            num_empty_rows=num_all_rows - num_rows,
            row_length=row_length,
            num_tokens=num_tokens,
            num_targets=num_targets,
            num_documents=int(self._num_documents.sum()),
            template=self._config.data.chat_template,
            targets=self._config.data.targets,
            overlong=self._config.data.overlong,
        )

    def _row(
        self, number: int, index: int, ids: NDArray[np.int32], targets: NDArray[np.bool_]
    ) -> Row:
        row = self._rows[index]
        size = row.ids.size
        starts = row.document_starts.tolist()
        first = 1 + int(self._num_documents[:index].sum())
        documents = [
            self._document(first + at, where, ids[start:end], targets[start:end], start=start)
            for at, (where, start, end) in enumerate(
                zip(self._rows.where(index), starts, [*starts[1:], size], strict=True)
            )
        ]
        return Row(number=number, index=index + 1, documents=documents, num_padding=ids.size - size)

    def _document(
        self,
        number: int,
        where: str,
        ids: NDArray[np.int32],
        targets: NDArray[np.bool_],
        *,
        start: int,
    ) -> Document:
        pieces, offsets = self._rows.pieces, self._rows.tokens.offsets
        conversation = pieces.documents[number - 1]  # pieces lie in the order of their rows
        return Document(
            number=number,
            where=where,
            start=start,
            tokens=tokens_of(
                ids.tolist(), targets.tolist(), self._tokenizer, self._stop_text, self._turns
            ),
            num_before=int(pieces.begins[number - 1] - offsets[conversation]),
            num_behind=int(offsets[conversation + 1] - pieces.ends[number - 1]),
        )


def _rows_of(batches: Sequence[Batch]) -> Iterator[tuple[Batch, int]]:
    for batch in batches:
        for at in range(len(batch.ids)):
            yield batch, at


# ---- one document ----------------------------------------------------------------------------


def tokens_of(
    ids: Sequence[int],
    targets: Sequence[bool],
    tokenizer: Tokenizer,
    stop_text: str,
    turns: Turns,
) -> list[Token]:
    """Say what each token of a document is, how it reads, and why it is no target.

    Args:
        ids: of the document, from its first token.
        targets: which of them count in the loss.
        tokenizer: that made them.
        stop_text: what ends an assistant's turn.
        turns: of the template that made the document.
    """
    texts = token_texts(ids, tokenizer)
    stops = _stops([text.text for text in texts], targets, stop_text)
    reasons = _reasons([text.text for text in texts], turns)
    return [
        Token(
            id=number,
            piece=text.piece,
            text=text.text,
            is_target=is_target,
            is_special=text.piece in tokenizer.texts_of_special_tokens,
            is_stop=is_stop,
            why_not="" if is_target else "first of its document" if at == 0 else reason,
            part=text.part,
        )
        for at, (number, text, is_target, is_stop, reason) in enumerate(
            zip(ids, texts, targets, stops, reasons, strict=True)
        )
    ]


def _stops(texts: Sequence[str], targets: Sequence[bool], stop_text: str) -> list[bool]:
    """Find the tokens that hold the stop at the end of each stretch that is trained."""
    stops = [False] * len(texts)
    end = len(texts)
    while stop_text and end:
        begin = end
        while begin and targets[begin - 1]:
            begin -= 1
        if "".join(texts[begin:end]).endswith(stop_text):
            left = len(stop_text)
            for at in reversed(range(begin, end)):
                stops[at] = left > 0
                left -= len(texts[at])
        end = begin if begin < end else end - 1
    return stops


_TURNS = {
    "system": "system turn",
    "user": "user turn",
    "tool": "tool turn",
    "assistant": "assistant turn left out",
    "": "context",
    None: "template",
}


def _reasons(texts: Sequence[str], turns: Turns) -> list[str]:
    """Say whose each token is: that of the stretch in which its last character lies."""
    stretches = turns.stretches("".join(texts))
    if not stretches:
        return ["context"] * len(texts)
    reasons = []
    at = number = 0
    for text in texts:
        start, at = at, at + len(text)
        while number < len(stretches) - 1 and stretches[number].end < at:
            number += 1
        stretch = stretches[number]
        reaches_over = stretch.role == "assistant" and start < stretch.begin
        reasons.append("begins before its turn" if reaches_over else _TURNS[stretch.role])
    return reasons
