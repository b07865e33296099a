"""A config's data section to rows of tokens, with everything that is wrong found on the way.

Each data set is split by position before bad rows are dropped, so that dropping one moves no
other across the border. Bad rows are errors, or with ``data.skip_bad_rows`` warnings.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from workbench.config.model_facts import read_model_facts
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.data.chat_template import (
    ChatTemplate,
    EncodedConversation,
    Rendered,
    Targets,
    to_tokens,
)
from workbench.data.findings import Finding, Findings, Severity
from workbench.data.formats import (
    BadRowError,
    Complaint,
    Conversation,
    Format,
    convert,
    recognise,
)
from workbench.data.packing import (
    MIN_PACKED_TOKENS,
    Fitted,
    Rows,
    fit_documents,
    pack,
)
from workbench.data.raw_rows import RawRow
from workbench.data.sources import read_rows, source_files
from workbench.data.token_store import TokenStore
from workbench.data.tokenizer import Tokenizer, load_tokenizer
from workbench.errors import DataError

_CHUNK_CONVERSATIONS = 256
# Measured on two cores: 5,600 short conversations take 0.8 s here and 1.5 s through two processes.
_MIN_CONVERSATIONS_FOR_PROCESSES = 20_000
_ROW_REMEDY = "correct the row, or drop it with data.skip_bad_rows"


@dataclass(frozen=True)
class Progress:
    """How far preparing is."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class NumConversations:
    """Usable conversations of each split; those of the test split are read and not tokenized."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and evaluates on.

    Attributes:
        train: rows to train on.
        validation: rows to evaluate on; there may be none.
        num_conversations: per split, before packing and truncation.
        findings: what was odd; errors too, until ``prepare`` refuses them.
        pad_id: fills rows behind their last token; never the id of end-of-text.
        stop_ids: the tokens with which the template ends an assistant's turn.
    """

    train: Rows
    validation: Rows
    num_conversations: NumConversations
    findings: Findings
    pad_id: int
    stop_ids: tuple[int, ...]


def prepare(config: Config, model_folder: Path, template: str) -> PreparedData:
    """Turn the data a config names into rows.

    Args:
        config: resolved; its data section counts, and whether there are evaluations.
        model_folder: with the tokenizer.
        template: Jinja source of the chat template.

    Raises:
        DataError: a file, template or tokenizer is wrong, or a row and none may be skipped; the
            first finding is told, and how many there are.
    """
    prepared = None
    for item in prepare_in_steps(config, model_folder, template):
        if isinstance(item, PreparedData):
            prepared = item
    assert prepared is not None, "the last item is the data"
    prepared.findings.raise_errors()
    return prepared


def prepare_in_steps(
    config: Config, model_folder: Path, template: str
) -> Iterator[Progress | PreparedData]:
    """Prepare and tell how far it is; the last item is the data, its findings not yet judged.

    Raises:
        DataError: a file, template or tokenizer is wrong.
    """
    data, findings = config.data, Findings()
    tokenizer = load_tokenizer(model_folder)
    chat_template = ChatTemplate(template, tokenizer.special_tokens)
    stop_ids = _check_stop(chat_template, tokenizer, findings)
    yield Progress("reading", 0, len(data.sources))
    splits = read_conversations(data, findings)
    _warn_of_special_tokens(splits.train + splits.validation, tokenizer, findings)
    documents: list[list[EncodedConversation]] = [[], []]
    done, total = 0, len(splits.train) + len(splits.validation)
    job = _EncodeJob(template, str(model_folder), data.targets)
    for number, conversations in enumerate((splits.train, splits.validation)):
        for chunk in _encode(conversations, job, data.num_workers):
            for conversation, outcome in chunk:
                document = _judge(conversation, outcome, data, findings)
                if document is not None:
                    documents[number].append(document)
            done += len(chunk)
            yield Progress("tokenizing", done, total)
    train, validation = documents
    num_embeddings = read_model_facts(model_folder).vocabulary_size
    _check_vocabulary(train + validation, num_embeddings, model_folder, findings)
    validation_rows = _lay_rows(validation, data, "validation", findings)
    if config.evaluation.every_steps and not len(validation_rows) and not findings.num_errors:
        _warn_of_no_validation(findings)
    yield PreparedData(
        train=_lay_rows(train, data, "training", findings),
        validation=validation_rows,
        num_conversations=NumConversations(len(train), len(validation), len(splits.test)),
        findings=findings,
        pad_id=_padding_id(tokenizer, num_embeddings),
        stop_ids=stop_ids,
    )


# ---- reading: files to conversations ---------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """Usable conversations by split, in the order of the config and its files."""

    train: list[Conversation] = field(default_factory=list)
    validation: list[Conversation] = field(default_factory=list)
    test: list[Conversation] = field(default_factory=list)


def read_conversations(data: DataSection, findings: Findings) -> Splits:
    """Read every data set and split it by position: rows before ``int(0.80 * n)`` are trained.

    Args:
        data: names the data sets.
        findings: takes what is wrong with rows.

    Raises:
        DataError: a file cannot be read, or there is no data set.
    """
    splits = Splits()
    sources = {name: source for name, source in data.sources.items() if source is not None}
    if not sources:
        raise DataError(
            "names no data set", where="data.sources", remedy="give one a name and a path"
        )
    for name, source in sources.items():
        conversations = _read_source(name, source, data, findings)
        borders = [int(share * len(conversations)) for share in data.split_at]
        parts = (
            (splits.train, conversations[: borders[0]]),
            (splits.validation, conversations[borders[0] : borders[1]]),
            (splits.test, conversations[borders[1] :]),
        )
        for split, rows in parts:
            split.extend(row for row in rows if row is not None)
    return splits


def _read_source(
    name: str, source: SourceSection, data: DataSection, findings: Findings
) -> list[Conversation | None]:
    """Read one data set, keeping None in the place of a row that cannot be used."""
    conversations: list[Conversation | None] = []
    for file in source_files(Path(source.path), source.files):
        rows = list(read_rows(file))
        form = _form(source, rows)
        if form is None:
            raise DataError(
                "has neither 'conversations' (ShareGPT) nor 'messages' (OpenAI)",
                where=rows[0].where,
                remedy=f"correct the row, or state data.sources.{name}.format",
            )
        conversations += [_read_row(row, form, data, findings) for row in rows]
    if not conversations:
        raise DataError(
            f"{source.path} holds no conversation",
            where=f"data.sources.{name}",
            remedy="give a file with rows, or null to drop this data set",
        )
    return conversations


def _form(source: SourceSection, rows: Sequence[RawRow]) -> Format | None:
    """Give the form of a file's rows; None if auto cannot tell it from the first."""
    if source.format != "auto":
        return source.format
    readable = [row for row in rows if row.problem is None]
    # A file of broken lines only is reported line by line, whatever its form would have been.
    return recognise(readable[0].value) if readable else "sharegpt"


def _read_row(
    row: RawRow, form: Format, data: DataSection, findings: Findings
) -> Conversation | None:
    severity: Severity = "warning" if data.skip_bad_rows else "error"
    if row.problem is not None:
        findings.add("broken row", Finding(severity, row.where, row.problem, _ROW_REMEDY))
        return None
    try:
        conversation, notes = convert(row.value, form, data.roles, row.where)
    except BadRowError as error:
        _add_complaints(error.complaints, row.where, severity, findings)
        return None
    _add_complaints(notes, row.where, "warning", findings)
    return conversation


def _add_complaints(
    complaints: Sequence[Complaint], where: str, severity: Severity, findings: Findings
) -> None:
    for complaint in complaints:
        place = where if complaint.turn is None else f"{where} turn {complaint.turn}"
        findings.add(complaint.kind, Finding(severity, place, complaint.what, complaint.remedy))


# ---- tokenizing: conversations to documents --------------------------------------------------


@dataclass(frozen=True)
class _EncodeJob:
    """What a process needs to know to encode conversations."""

    template: str
    model_folder: str
    targets: Targets


class _Encoder:
    """Encodes chunks; made once per process."""

    def __init__(self, job: _EncodeJob) -> None:
        self._tokenizer = load_tokenizer(Path(job.model_folder))
        self._template = ChatTemplate(job.template, self._tokenizer.special_tokens)
        self._targets = job.targets

    def encode(
        self, conversations: Sequence[Conversation]
    ) -> list[EncodedConversation | DataError]:
        """Encode conversations; one that the template refuses gives its error."""
        outcomes: list[EncodedConversation | DataError] = []
        rendered: list[Rendered | DataError] = []
        for conversation in conversations:
            try:
                rendered.append(self._template.mark(conversation, self._targets))
            except DataError as error:
                rendered.append(error)
        texts = [item.text for item in rendered if not isinstance(item, DataError)]
        encoded = iter(self._tokenizer.encode(texts))
        for item in rendered:
            if isinstance(item, DataError):
                outcomes.append(item)
            else:
                outcomes.append(to_tokens(item, next(encoded), self._tokenizer))
        return outcomes


_Chunk = list[tuple[Conversation, EncodedConversation | DataError]]


def _encode(
    conversations: Sequence[Conversation], job: _EncodeJob, num_workers: int
) -> Iterator[_Chunk]:
    """Encode in order, chunk by chunk; in processes of their own when there is much to do.

    One process beside this one would only add its start, so it takes two to be used.
    """
    chunks = [
        conversations[start : start + _CHUNK_CONVERSATIONS]
        for start in range(0, len(conversations), _CHUNK_CONVERSATIONS)
    ]
    if num_workers < 2 or len(conversations) < _MIN_CONVERSATIONS_FOR_PROCESSES:
        encoder = _Encoder(job)
        for chunk in chunks:
            yield list(zip(chunk, encoder.encode(chunk), strict=True))
        return
    # spawn: a fork of a process that has threads, as one with torch has, may hang.
    with ProcessPoolExecutor(
        num_workers, get_context("spawn"), initializer=_start_worker, initargs=(job,)
    ) as pool:
        try:
            for chunk, outcomes in zip(chunks, pool.map(_encode_in_worker, chunks), strict=True):
                yield list(zip(chunk, outcomes, strict=True))
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenizes died, perhaps for lack of memory",
                where="data.num_workers",
                remedy="set data.num_workers: 0",
            ) from error


_worker_encoder: list[_Encoder] = []


def _start_worker(job: _EncodeJob) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each: the processes are parallel
    _worker_encoder.append(_Encoder(job))


def _encode_in_worker(
    conversations: Sequence[Conversation],
) -> list[EncodedConversation | DataError]:
    return _worker_encoder[0].encode(conversations)


def _judge(
    conversation: Conversation,
    outcome: EncodedConversation | DataError,
    data: DataSection,
    findings: Findings,
) -> EncodedConversation | None:
    """Make a document of what can be trained on, and a finding of what cannot."""
    severity: Severity = "warning" if data.skip_bad_rows else "error"
    if isinstance(outcome, DataError):
        findings.add(
            outcome.what, Finding(severity, conversation.where, outcome.what, outcome.remedy)
        )
        return None
    if not outcome.mask.any():
        what = "has no trainable token"
        findings.add(what, Finding(severity, conversation.where, what, _ROW_REMEDY))
        return None
    if not outcome.num_stops:
        what = "never trains the token that ends the assistant's turn"
        remedy = "use a template that writes one after each answer, such as chatml"
        findings.add(what, Finding(severity, conversation.where, what, remedy))
        return None
    return outcome


def _check_stop(
    template: ChatTemplate, tokenizer: Tokenizer, findings: Findings
) -> tuple[int, ...]:
    """Find the tokens that end a turn; warn if they are ordinary pieces of text."""
    stop_ids = template.stop_ids(tokenizer)
    pieces = [tokenizer.token_text(number) or "" for number in stop_ids]
    if any(piece not in tokenizer.added_texts for piece in pieces):
        findings.add(
            "stop in pieces",
            Finding(
                "warning",
                "data.chat_template",
                f"the end of a turn, {template.stop_text!r}, is {len(pieces)} ordinary pieces for "
                "this tokenizer; all of them are trained",
                "add it to the model as a token, or choose the model's own template",
            ),
        )
    return stop_ids


def _warn_of_special_tokens(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, findings: Findings
) -> None:
    """Report turns whose text will be read as special tokens."""
    texts = sorted(tokenizer.texts_of_special_tokens)
    if not texts:
        return
    pattern = re.compile("|".join(re.escape(text) for text in texts))
    for conversation in conversations:
        for message in conversation.messages:
            found = pattern.search(message.content)
            if found is not None:
                findings.add(
                    "special token in text",
                    Finding(
                        "warning",
                        f"{conversation.where} turn {message.turn}",
                        f"contains {found.group()!r}, which becomes a special token",
                        "remove it from the text if that is not meant",
                    ),
                )


def _check_vocabulary(
    documents: Sequence[EncodedConversation], rows: int, model_folder: Path, findings: Findings
) -> None:
    """Refuse ids that the model's embedding has no row for."""
    highest = max((int(document.ids.max()) for document in documents), default=0)
    if highest >= rows:
        findings.add(
            "vocabulary",
            Finding(
                "error",
                str(model_folder),
                f"the tokenizer gives id {highest}, the model's vocab_size is {rows}",
                "use the tokenizer that belongs to the model",
            ),
        )


def _padding_id(tokenizer: Tokenizer, num_embeddings: int) -> int:
    """Take the tokenizer's padding if the embedding has a row for it, else any id that has one."""
    if tokenizer.pad_id < num_embeddings:
        return tokenizer.pad_id
    ends = {tokenizer.bos_id, tokenizer.eos_id}
    return next(number for number in range(num_embeddings) if number not in ends)


# ---- packing: documents to rows --------------------------------------------------------------


def _lay_rows(
    documents: Sequence[EncodedConversation], data: DataSection, split: str, findings: Findings
) -> Rows:
    min_length = 0 if data.packing == "none" else MIN_PACKED_TOKENS
    store = TokenStore(
        ids=np.concatenate([np.empty(0, np.int32), *(document.ids for document in documents)]),
        targets=np.concatenate([np.empty(0, np.bool_), *(document.mask for document in documents)]),
        offsets=np.cumsum([0, *(document.ids.size for document in documents)], dtype=np.int64),
        parts=np.zeros(len(documents), dtype=np.int32),
        rows=np.arange(len(documents), dtype=np.int64),
    )
    fitted = fit_documents(store, data.max_length, data.overlong, min_length)
    _report_losses(fitted, len(documents), data, split, findings)
    if split == "training" and not len(fitted.pieces) and not findings.num_errors:
        findings.add(
            "empty",
            Finding(
                "error",
                "data.sources",
                "nothing is left to train on",
                "add conversations, raise data.max_length, or move data.split_at",
            ),
        )
    return pack(store, fitted.pieces, data.max_length, data.packing)


def _warn_of_no_validation(findings: Findings) -> None:
    findings.add(
        "no validation",
        Finding(
            "warning",
            "evaluation.every_steps",
            "no validation conversation is left, so nothing is evaluated",
            "move data.split_at, add conversations, or set evaluation.every_steps: 0",
        ),
    )


def _report_losses(
    fitted: Fitted, num_documents: int, data: DataSection, split: str, findings: Findings
) -> None:
    of = f"of {num_documents} {split} conversations"
    longer = f"{of} are longer than {data.max_length} tokens"
    losses = (
        (
            fitted.num_truncated,
            "data.max_length",
            f"{fitted.num_truncated} {longer}; {fitted.num_cut_tokens} tokens are cut off",
            "raise data.max_length, or set data.overlong: split",
        ),
        (
            fitted.num_split,
            "data.max_length",
            f"{fitted.num_split} {longer} and become several",
            "raise data.max_length to keep them whole",
        ),
        (
            fitted.num_short,
            "data.packing",
            f"{fitted.num_short} {of} have fewer than {MIN_PACKED_TOKENS} tokens and are dropped",
            "set data.packing: none to keep them",
        ),
        (
            fitted.num_without_targets,
            "data.max_length",
            f"{fitted.num_without_targets} {of} have nothing to train within {data.max_length} "
            "tokens and are dropped",
            "raise data.max_length, or set data.overlong: split",
        ),
    )
    for number, where, what, remedy in losses:
        if number:
            findings.add(what, Finding("warning", where, what, remedy))
