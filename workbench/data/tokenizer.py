"""A model folder's tokenizer: ids, offsets and special tokens, without transformers.

Ids are those that transformers 5 gives for the folder. It takes ``tokenizer.json`` as it stands
with one exception, followed here: the class LlamaTokenizer puts its own handling of spaces in
place of the file's. Padding never shares an id with end-of-text, and nobody recognises padding by
its id anyway.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers import Tokenizer as _Backend

from workbench.config.json_file import check_plain_file, read_json_object
from workbench.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

_MOST_TOKENS = 1 << 24

# Older files of a vocabulary, from which transformers can write a tokenizer.json.
_OLDER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: (tokens,) int32.
        spans: (tokens, 2) int64, first character and the one after the last, in the text.
    """

    ids: NDArray[np.int32]
    spans: NDArray[np.int64]


class Tokenizer:
    """Text to ids and back.

    Attributes:
        special_tokens: bos_token, eos_token, pad_token, unk_token: those the folder names.
        bos_id: id of bos_token, None without one.
        eos_id: id of eos_token, None without one.
        pad_id: fills rows behind their last token; never eos_id.
        adds_bos: the tokenizer by itself begins every text with bos_token.
        adds_eos: the tokenizer by itself ends every text with eos_token.
        vocabulary_size: ids are below this.
        added_texts: texts that become one id wherever they stand.
        texts_of_special_tokens: those of them that are no text but signs, such as an end of turn.
        differs_from_file: ``tokenizer.json``, as it stands, would give other ids for some texts.
    """

    def __init__(
        self,
        backend: _Backend,
        special_tokens: dict[str, str],
        *,
        differs_from_file: bool = False,
    ) -> None:
        self.special_tokens = special_tokens
        self.differs_from_file = differs_from_file
        self.bos_id = self._id_of(backend, "bos_token")
        self.eos_id = self._id_of(backend, "eos_token")
        self.vocabulary_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.pad_id = self._choose_pad_id(backend)
        added = backend.get_added_tokens_decoder().values()
        self.added_texts = frozenset(token.content for token in added)
        self.texts_of_special_tokens = frozenset(token.content for token in added if token.special)
        ends = backend.encode("a", add_special_tokens=True).ids
        self.adds_bos = self.bos_id is not None and ends[:1] == [self.bos_id]
        self.adds_eos = self.eos_id is not None and ends[-1:] == [self.eos_id]
        self._backend = _without_post_processor(backend)

    def _id_of(self, backend: _Backend, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else backend.token_to_id(text)

    def _choose_pad_id(self, backend: _Backend) -> int:
        """Take the padding token if it is no other's, else an id that ends or begins nothing."""
        ends = {self.bos_id, self.eos_id}
        for name in ("pad_token", "unk_token"):
            found = self._id_of(backend, name)
            if found is not None and found not in ends:
                return found
        return next(number for number in range(self.vocabulary_size + 1) if number not in ends)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Turn texts into ids; special tokens are recognised in the text, none are added."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            Encoded(
                np.array(encoding.ids, dtype=np.int32),
                np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2),
            )
            for encoding in encodings
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Turn ids back into text."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str | None:
        """Give a token as the vocabulary spells it; None for an id it does not have."""
        text = self._backend.id_to_token(token_id)
        return None if text is None else str(text)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, and from the files beside it what transformers changes about it.

    Raises:
        DataError: no such folder, no tokenizer.json, or one of the files cannot be read.
    """
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    if not folder.is_dir():
        raise DataError(
            "there is no such model folder", where=str(folder), remedy="check model.path"
        )
    if not path.is_file():
        raise _no_tokenizer(folder)
    stated = read_json(folder / SPECIAL_TOKENS_FILE) | read_json(folder / TOKENIZER_CONFIG_FILE)
    check_plain_file(path, DataError)
    try:
        as_it_stands = _Backend.from_file(str(path))
    except Exception as error:
        raise DataError(
            f"cannot be read as a tokenizer: {error}",
            where=str(path),
            remedy="copy the file anew from the model's source",
        ) from error
    check_vocabulary(as_it_stands, path)
    backend = _rebuilt(as_it_stands, stated, folder) or as_it_stands
    for one in (backend, as_it_stands):
        one.no_padding()
        one.no_truncation()
        add_missing_tokens(one, stated)
    special_tokens = {
        name: text for name in _NAMED if (text := text_of(stated.get(name))) is not None
    }
    for name, text in special_tokens.items():
        if backend.token_to_id(text) is None:
            raise DataError(
                f"{name} {text!r} is not in the vocabulary",
                where=str(folder / TOKENIZER_CONFIG_FILE),
                remedy=f"add it to {TOKENIZER_FILE}, or name a token that is there",
            )
    return Tokenizer(
        backend, special_tokens, differs_from_file=_differ_behind_tokens(backend, as_it_stands)
    )


def check_vocabulary(backend: _Backend, path: Path) -> None:
    """See that a tokenizer has tokens, and no ids that the library would count up to for ever.

    Raises:
        DataError: it has none, or ids beyond any vocabulary.
    """
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if 0 <= largest < _MOST_TOKENS:
        return
    raise DataError(
        f"has ids up to {largest:,}, more than any model has" if largest >= 0 else "has no tokens",
        where=str(path),
        remedy="copy the file anew from the model's source",
    )


def _no_tokenizer(folder: Path) -> DataError:
    older = [name for name in _OLDER_FILES if (folder / name).is_file()]
    if not older:
        return DataError(
            f"has no {TOKENIZER_FILE}",
            where=str(folder),
            remedy="copy the model's tokenizer files beside its config.json",
        )
    return DataError(
        f"has {' and '.join(older)}, but no {TOKENIZER_FILE}, which is what is read here",
        where=str(folder),
        remedy="copy it from the model's source, or write it once, with sentencepiece installed: "
        'python -c "from transformers import AutoTokenizer as T; '
        f'T.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"',
    )


def has_llama_class(folder: Path) -> bool:
    """Say whether transformers reads a model folder's tokenizer by its class LlamaTokenizer.

    Args:
        folder: with tokenizer_config.json, which names a class, else config.json may.
    """
    config = read_json(folder / "config.json")
    named = read_json(folder / TOKENIZER_CONFIG_FILE).get("tokenizer_class")
    named = named or config.get("tokenizer_class")
    is_llama = isinstance(named, str) and named.removesuffix("Fast") == "LlamaTokenizer"
    # Of other families AutoTokenizer takes the file as it stands, or a class of their own.
    return is_llama and config.get("model_type") in (None, "llama")


def _rebuilt(backend: _Backend, stated: dict[str, Any], folder: Path) -> _Backend | None:
    """Build what transformers' LlamaTokenizer makes of the file; None if that class is not meant.

    It takes vocabulary and merges from the file, and replaces what is done with spaces.
    Source: LlamaTokenizer and AutoTokenizer in transformers 5.
    """
    if not has_llama_class(folder):
        return None
    description = json.loads(backend.to_str())
    model = description["model"]
    if model.get("type") != "BPE" or '"ByteLevel"' in json.dumps(
        [description["pre_tokenizer"], description["decoder"]]
    ):
        return None
    scheme = "always" if stated.get("legacy") else "first"
    if stated.get("add_prefix_space") is False:
        scheme = "never"
    description["normalizer"] = None
    description["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": False,
    }
    model |= {"fuse_unk": True, "byte_fallback": True, "dropout": None}
    return _Backend.from_str(json.dumps(description))


def _differ_behind_tokens(one: _Backend, other: _Backend) -> bool:
    """Say whether two tokenizers treat text behind an added token unlike each other."""
    if one is other:
        return False
    added = [token.content for token in one.get_added_tokens_decoder().values()]
    texts = ["a b", *(f"{text}a {text} b" for text in added)]
    return any(
        one.encode(text, add_special_tokens=False).ids
        != other.encode(text, add_special_tokens=False).ids
        for text in texts
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object beside the tokenizer; an absent file is an empty one.

    Raises:
        DataError: the file is there and is not a JSON object.
    """
    try:
        return read_json_object(path, DataError)
    except FileNotFoundError:
        return {}


def text_of(token: object) -> str | None:
    """Give a token's text: written plainly, or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def add_missing_tokens(backend: _Backend, stated: dict[str, Any]) -> None:
    """Add tokens that only tokenizer_config.json lists, in the order of their ids."""
    listed = stated.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    if any(not number.isdecimal() for number in listed):
        raise DataError(
            "lists added_tokens_decoder by other names than ids",
            where=TOKENIZER_CONFIG_FILE,
            remedy="copy the file anew from the model's source",
        )
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        text = text_of(token)
        if text is None or backend.token_to_id(text) is not None:
            continue
        switches = {
            key: token[key]
            for key in ("lstrip", "rstrip", "normalized", "single_word")
            if isinstance(token.get(key), bool)
        }
        added = AddedToken(text, special=token.get("special") is True, **switches)
        if added.special:
            backend.add_special_tokens([added])
        else:
            backend.add_tokens([added])


def _without_post_processor(backend: _Backend) -> _Backend:
    """Copy the tokenizer without its last stage, which trims spaces off the characters' spans."""
    description = json.loads(backend.to_str())
    description["post_processor"] = None
    return _Backend.from_str(json.dumps(description))
