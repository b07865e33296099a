"""Adds tokens to a model: what its files say afterwards, and how the new rows begin.

Rules: a named token that is in the vocabulary only moves the name; one that is not takes the row of
the token it replaces as its beginning, else zero for padding and the mean of all rows for others.
What is in the vocabulary already is left as it is and told. Works on the files' JSON, so whatever
is not about tokens stays to the letter. Invariant: what is planned here was asked of the tokenizer
library itself; ids are those that it gives.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor

from workbench.config.added_tokens_file import COPY, AddedTokens, NamedToken
from workbench.data.tokenizer import (
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    add_missing_tokens,
    check_vocabulary,
    read_json,
    text_of,
)
from workbench.errors import ConfigError, DataError

GENERATION_FILE = "generation_config.json"
_OLDER_FILE = "added_tokens.json"

_WITH_IDS = ("bos_token", "eos_token", "pad_token")
_ROW_CHUNK = 8192


@dataclass(frozen=True)
class NewRow:
    """A row of the embedding, and of a head of its own, that begins anew.

    Attributes:
        token_id: its place.
        token: whose row it is.
        init: ``zero``, ``mean``, or ``copy``.
        source: the row that is copied, else None.
    """

    token_id: int
    token: str
    init: str
    source: int | None = None


@dataclass
class TokenPlan:
    """What adding tokens comes to.

    Attributes:
        files: JSON files of the tokenizer that change, by name.
        config: keys of config.json that change.
        generation: of generation_config.json; None where nothing of it changes.
        rows: that begin anew, by id.
        num_rows: of the embedding afterwards.
        renamed: named tokens that become others: name to the old one, None without, and the new.
        num_tokens: rows that stood for tokens before; padding behind them is no part of a mean.
        notices: what was left as it was, and why.
    """

    num_rows: int
    num_tokens: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] | None = None
    rows: dict[int, NewRow] = field(default_factory=dict)
    renamed: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def plan_tokens(folder: Path, wanted: AddedTokens, num_rows: int) -> TokenPlan:
    """Plan which tokens are added to a model folder; nothing is written.

    Args:
        folder: with tokenizer.json and config.json.
        wanted: what shall be there.
        num_rows: of the embedding as it is.

    Raises:
        ConfigError: a row shall be copied from a token that is not there.
        DataError: the tokenizer cannot be read, or does not take a token as one.
    """
    stated = _read_object(folder / TOKENIZER_FILE)
    try:
        backend = Backend.from_str(json.dumps(stated))
    except Exception as error:
        raise DataError(
            f"cannot be read as a tokenizer: {error}",
            where=str(folder / TOKENIZER_FILE),
            remedy="copy the file anew from the model's source",
        ) from error
    check_vocabulary(backend, folder / TOKENIZER_FILE)
    beside = read_json(folder / SPECIAL_TOKENS_FILE) | read_json(folder / TOKENIZER_CONFIG_FILE)
    add_missing_tokens(backend, beside)
    planning = _Planning(folder, backend, beside, num_rows)
    for name, token in wanted.named.items():
        planning.name(name, token)
    for text in wanted.special_tokens:
        planning.add(text, is_special=True)
    for text in wanted.regular_tokens:
        planning.add(text, is_special=False)
    return planning.finish(stated)


class _Planning:
    """The tokenizer as it becomes, and what has been done to it."""

    def __init__(
        self, folder: Path, backend: Backend, beside: Mapping[str, Any], num_rows: int
    ) -> None:
        self._folder, self._backend = folder, backend
        self._vocabulary = dict(backend.get_vocab(with_added_tokens=True))
        num_tokens = 1 + max(self._vocabulary.values(), default=-1)
        self._named = {name: text_of(beside.get(name)) for name in (*_WITH_IDS, "unk_token")}
        self._before = dict(self._named)
        self._plan = TokenPlan(num_rows, min(num_rows, num_tokens))

    def name(self, name: str, wanted: NamedToken) -> None:
        """Let a named token be this one."""
        old, text = self._named[name], wanted.token
        if wanted.if_missing and old is not None:
            self._plan.notices.append(f"{name} is {old} already and stays")
            return
        self._named[name] = text
        if text in self._vocabulary:
            what = "already" if text == old else "now; it is in the vocabulary, its row stays"
            self._plan.notices.append(f"{name} is {text} {what}")
            self._register(text, is_special=True)
            return
        init = wanted.init
        if init is None and old in self._vocabulary:
            init = f"{COPY}{old}"
        self._new(text, init or ("zero" if name == "pad_token" else "mean"), is_special=True)

    def add(self, text: str, *, is_special: bool) -> None:
        """Let a text be one token."""
        if text in self._vocabulary:
            self._plan.notices.append(f"{text} is in the vocabulary already, its row stays")
            if is_special:
                self._register(text, is_special=True)
            return
        self._new(text, "mean", is_special=is_special)

    def _new(self, text: str, init: str, *, is_special: bool) -> None:
        source = self._row_of(text, init.removeprefix(COPY)) if init.startswith(COPY) else None
        self._register(text, is_special=is_special)
        token_id = self._backend.token_to_id(text)
        if token_id is None or token_id in self._vocabulary.values():
            raise DataError(
                f"does not take {text!r} as a token of its own",
                where=str(self._folder / TOKENIZER_FILE),
                remedy="choose another text",
            )
        self._vocabulary[text] = token_id
        self._plan.rows[token_id] = NewRow(
            token_id, text, "copy" if source is not None else init, source
        )

    def _row_of(self, text: str, copied: str) -> int:
        """Give the row that a new one copies: one of the model as it is."""
        found = self._vocabulary.get(copied)
        if found is None or found in self._plan.rows or found >= self._plan.num_rows:
            raise ConfigError(
                f"{text!r} shall be a copy of {copied!r}, which has no row",
                where="added tokens",
                remedy="name a token of the model's own vocabulary",
            )
        return found

    def _register(self, text: str, *, is_special: bool) -> None:
        """Let the library find a text before anything else, as one token, wherever it stands.

        A normalized one would be found at the beginning of words alone where a normalizer puts
        spaces before texts, as those of Llama 2 and Mistral do.
        """
        token = AddedToken(text, special=is_special, normalized=False)
        if is_special:
            self._backend.add_special_tokens([token])
        else:
            self._backend.add_tokens([token])

    def finish(self, stated: dict[str, Any]) -> TokenPlan:
        """Write down what has come of it."""
        plan = self._plan
        # Tokens that the tokenizer had and the model had no row for get one now.
        for text, token_id in self._vocabulary.items():
            if token_id >= plan.num_rows and token_id not in plan.rows:
                init = "zero" if text == self._named["pad_token"] else "mean"
                plan.rows[token_id] = NewRow(token_id, text, init)
                plan.notices.append(f"{text} (id {token_id}) had no row; it begins as {init}")
        num_tokens = 1 + max(self._vocabulary.values(), default=-1)
        plan.num_rows = max(plan.num_rows, num_tokens)
        plan.rows = dict(sorted(plan.rows.items()))
        plan.config = {"vocab_size": plan.num_rows}
        changed = {
            name: text
            for name, text in self._named.items()
            if text is not None and text != self._before[name]
        }
        plan.renamed = {name: (self._before[name], text) for name, text in changed.items()}
        self._change_tokenizer_files(stated, changed)
        self._change_ids(changed)
        return plan

    def _change_tokenizer_files(self, stated: dict[str, Any], changed: Mapping[str, str]) -> None:
        files = self._plan.files
        added = json.loads(self._backend.to_str())["added_tokens"]
        replaced = {
            old: (new, self._vocabulary[new])
            for name, new in changed.items()
            if (old := self._before[name]) is not None and name in ("bos_token", "eos_token")
        }
        processor = _replaced(stated.get("post_processor"), replaced)
        files[TOKENIZER_FILE] = {**stated, "added_tokens": added, "post_processor": processor}
        config = read_json(self._folder / TOKENIZER_CONFIG_FILE)
        config |= changed
        if isinstance(listed := config.get("added_tokens_decoder"), dict):
            for token in added:
                kept = {key: value for key, value in token.items() if key != "id"}
                listed[str(token["id"])] = kept
        files[TOKENIZER_CONFIG_FILE] = config
        if (self._folder / SPECIAL_TOKENS_FILE).is_file():
            files[SPECIAL_TOKENS_FILE] = read_json(self._folder / SPECIAL_TOKENS_FILE)
            files[SPECIAL_TOKENS_FILE] |= changed
        if (self._folder / _OLDER_FILE).is_file():
            older = read_json(self._folder / _OLDER_FILE)
            files[_OLDER_FILE] = older | {
                row.token: row.token_id for row in self._plan.rows.values()
            }

    def _change_ids(self, changed: Mapping[str, str]) -> None:
        """Let config.json and generation_config.json name the ids; an old end still ends."""
        plan, config = self._plan, read_json(self._folder / "config.json")
        ids = {
            f"{name}_id": self._vocabulary[changed[name]] for name in _WITH_IDS if name in changed
        }
        plan.config |= ids
        if not ids:
            return
        has_file = (self._folder / GENERATION_FILE).is_file()
        generation = read_json(self._folder / GENERATION_FILE)
        if "eos_token_id" in ids:
            old_token = self._before["eos_token"]
            old = [
                *_as_list(generation.get("eos_token_id", config.get("eos_token_id"))),
                *_as_list(None if old_token is None else self._vocabulary.get(old_token)),
            ]
            generation |= ids | {"eos_token_id": list(dict.fromkeys([ids["eos_token_id"], *old]))}
            plan.generation = generation
        elif has_file:
            plan.generation = generation | ids


def _as_list(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int)]


def _replaced(processor: Any, tokens: Mapping[str, tuple[str, int]]) -> Any:  # noqa: ANN401
    """Let a post-processor put the new first and last token where it put the old ones."""
    if not isinstance(processor, dict):
        return processor
    if processor.get("type") == "Sequence":
        parts = processor.get("processors") or []
        return {**processor, "processors": [_replaced(part, tokens) for part in parts]}
    if processor.get("type") != "TemplateProcessing":
        return processor
    new = dict(processor)
    for key in ("single", "pair"):
        new[key] = [_replaced_piece(piece, tokens) for piece in processor.get(key) or []]
    special = dict(processor.get("special_tokens") or {})
    for old, (text, token_id) in tokens.items():
        if special.pop(old, None) is not None:
            special[text] = {"id": text, "ids": [token_id], "tokens": [text]}
    return {**new, "special_tokens": special}


def _replaced_piece(piece: dict[str, Any], tokens: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    special = piece.get("SpecialToken")
    if not isinstance(special, dict) or special.get("id") not in tokens:
        return piece
    return {"SpecialToken": {**special, "id": tokens[special["id"]][0]}}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"has no {path.name}, so nothing can be added to it",
            where=str(path.parent),
            remedy="copy the model's tokenizer files beside its config.json",
        )
    return read_json(path)


# ---- rows ----------------------------------------------------------------------------------------


def with_new_rows(matrix: Tensor, plan: TokenPlan) -> Tensor:
    """Give an embedding or a head with its new rows.

    Args:
        matrix: (rows, width), a floating dtype.
        plan: which rows begin anew, and how.

    Returns:
        (``plan.num_rows``, width), the matrix's dtype; rows that are not new, bit for bit.
    """
    old_rows, width = matrix.shape
    grown = torch.zeros((plan.num_rows, width), dtype=matrix.dtype)
    grown[:old_rows] = matrix
    mean = _mean(matrix[: plan.num_tokens]).to(matrix.dtype)
    for row in plan.rows.values():
        if row.init == "copy":
            assert row.source is not None, row
            grown[row.token_id] = matrix[row.source]
        elif row.init == "mean":
            grown[row.token_id] = mean
        else:
            grown[row.token_id] = 0
    return grown


def _mean(matrix: Tensor) -> Tensor:
    """Average rows in float64, without a wide copy of them all."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for begin in range(0, len(matrix), _ROW_CHUNK):
        total += matrix[begin : begin + _ROW_CHUNK].double().sum(0)
    return total / max(1, len(matrix))
