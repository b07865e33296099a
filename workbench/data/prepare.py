"""A config's data section to rows of tokens, with everything that is wrong found on the way.

Each data set is split by position before bad rows are dropped, so that dropping one moves no
other across the border. Bad rows are errors, or with ``data.skip_bad_rows`` warnings. Tokens come
from the cache (``tokenized``); cutting and packing them is done at every start.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.config.model_facts import read_model_facts
from workbench.config.schema.config import Config
from workbench.data.chat_template import ChatTemplate
from workbench.data.findings import Finding, Findings
from workbench.data.losses import losses
from workbench.data.packing import MIN_PACKED_TOKENS, Rows, fit_documents, pack
from workbench.data.stops import stops_of
from workbench.data.token_store import TokenStore
from workbench.data.tokenized import (
    Inputs,
    Progress,
    Tokenized,
    find_tokenized,
    finish,
    make_key,
    open_inputs,
    tokenize,
)
from workbench.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "NumConversations",
    "PreparedData",
    "Progress",
    "find_prepared",
    "prepare",
    "prepare_in_steps",
]


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
        stop_ids: tokens with which the template ends an assistant's turn; none where the end is
            ordinary pieces of text, each of which stands in the middle of replies too.
        lengths_train: (conversations,) int32, tokens of every conversation that can be trained
            on, before cutting.
        lengths_validation: (conversations,) int32, the same of the validation split.
        cache: folder of the tokens; None if they could not be kept.
        was_cached: the tokens were there already.
    """

    train: Rows
    validation: Rows
    num_conversations: NumConversations
    findings: Findings
    pad_id: int
    stop_ids: tuple[int, ...]
    lengths_train: NDArray[np.int32]
    lengths_validation: NDArray[np.int32]
    cache: Path | None
    was_cached: bool


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
        DataError: a file, template or tokenizer is wrong, or there is no space for tokens.
    """
    findings = Findings()
    tokenizer = load_tokenizer(model_folder)
    stop_ids = _check_stop(ChatTemplate(template, tokenizer.special_tokens), tokenizer, findings)
    inputs = yield from open_inputs(config.data, model_folder, template, findings)
    key = yield from make_key(inputs)
    tokenized = find_tokenized(key)
    was_cached = tokenized is not None
    if tokenized is None:
        tokenized = yield from tokenize(inputs, key, findings)
    yield Progress("packing", 0, 1)
    prepared = _lay_out(config, inputs, tokenized, tokenizer, findings, stop_ids, was_cached)
    yield Progress("packing", 1, 1)
    yield prepared


def find_prepared(config: Config, model_folder: Path, template: str) -> PreparedData | None:
    """Give the data if its tokens are in the cache; None if they would have to be made.

    Raises:
        DataError: a file, template or tokenizer is wrong.
    """
    findings = Findings()
    tokenizer = load_tokenizer(model_folder)
    stop_ids = _check_stop(ChatTemplate(template, tokenizer.special_tokens), tokenizer, findings)
    inputs = finish(open_inputs(config.data, model_folder, template, findings))
    tokenized = find_tokenized(finish(make_key(inputs)))
    if tokenized is None:
        return None
    return _lay_out(config, inputs, tokenized, tokenizer, findings, stop_ids, was_cached=True)


def _lay_out(
    config: Config,
    inputs: Inputs,
    tokenized: Tokenized,
    tokenizer: Tokenizer,
    findings: Findings,
    stop_ids: tuple[int, ...],
    was_cached: bool,
) -> PreparedData:
    """Cut and pack tokens, and add what is odd about them to the findings."""
    findings.update(tokenized.findings)
    summary = tokenized.summary
    num_embeddings = read_model_facts(inputs.model_folder).vocabulary_size
    _check_vocabulary(summary.highest_id, num_embeddings, inputs.model_folder, findings)
    _warn_of_spaces(tokenizer, inputs.model_folder, findings)
    train = _lay_rows(tokenized.train, inputs, "training", findings)
    validation = _lay_rows(tokenized.validation, inputs, "validation", findings)
    if config.evaluation.every_steps and not len(validation) and not findings.num_errors:
        _warn_of_no_validation(findings)
    return PreparedData(
        train=train,
        validation=validation,
        num_conversations=NumConversations(summary.train, summary.validation, summary.test),
        findings=findings,
        pad_id=_padding_id(tokenizer, num_embeddings),
        stop_ids=stop_ids,
        lengths_train=tokenized.train.lengths,
        lengths_validation=tokenized.validation.lengths,
        cache=tokenized.folder,
        was_cached=was_cached,
    )


# ---- tokenizer and template --------------------------------------------------------------------


def _check_stop(
    template: ChatTemplate, tokenizer: Tokenizer, findings: Findings
) -> tuple[int, ...]:
    """Find the tokens that end a turn; warn if its end is ordinary pieces of text."""
    pieces = [tokenizer.token_text(number) or "" for number in template.stop_ids(tokenizer)]
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
    return tuple(sorted(stops_of(template, tokenizer)[0]))


def _check_vocabulary(
    highest_id: int, num_embeddings: int, model_folder: Path, findings: Findings
) -> None:
    """Refuse ids that the model's embedding has no row for."""
    if highest_id >= num_embeddings:
        findings.add(
            "vocabulary",
            Finding(
                "error",
                str(model_folder),
                f"the tokenizer gives id {highest_id}, the model's vocab_size is {num_embeddings}",
                "use the tokenizer that belongs to the model",
            ),
        )


def _warn_of_spaces(tokenizer: Tokenizer, model_folder: Path, findings: Findings) -> None:
    """Report a folder whose files give programs that read them differently other ids."""
    if tokenizer.differs_from_file:
        findings.add(
            "spaces behind tokens",
            Finding(
                "warning",
                str(model_folder),
                "tokenizer.json and the class LlamaTokenizer disagree about spaces, as behind "
                "special tokens; ids are those of the class, as in transformers 5",
                "nothing, or state tokenizer_class: PreTrainedTokenizerFast in "
                "tokenizer_config.json if the model will be served by what reads tokenizer.json "
                "alone",
            ),
        )


def _padding_id(tokenizer: Tokenizer, num_embeddings: int) -> int:
    """Take the tokenizer's padding if the embedding has a row for it, else any id that has one."""
    if tokenizer.pad_id < num_embeddings:
        return tokenizer.pad_id
    ends = {tokenizer.bos_id, tokenizer.eos_id}
    return next(number for number in range(num_embeddings) if number not in ends)


# ---- documents to rows -------------------------------------------------------------------------


def _lay_rows(store: TokenStore, inputs: Inputs, split: str, findings: Findings) -> Rows:
    data = inputs.data
    min_length = 0 if data.packing == "none" else MIN_PACKED_TOKENS
    fitted = fit_documents(store, data.max_length, data.overlong, min_length)
    for kind, finding in losses(fitted, store, inputs.parts, data, split):
        findings.add(kind, finding)
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
    weights = None
    if split == "training":
        of_part = [source.weight for source in inputs.sources for _ in source.parts]
        weights = np.array(of_part, dtype=np.float64)[store.parts[fitted.pieces.documents]]
    return pack(
        store,
        fitted.pieces,
        data.max_length,
        data.packing,
        weights=weights,
        parts=inputs.parts,
    )


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
