"""A model folder's tokenizer as llama.cpp knows tokenizers: one of two kinds, by name and lists.

``gpt2`` merges byte pairs in the pieces that a named pre-tokenizer cuts; ``llama`` merges pieces of
a SentencePiece vocabulary by score. What neither can express is refused by name: a model that
reads other tokens than it was trained on is a broken one. Knows no weights.

Source: llama.cpp, ``src/llama-vocab.cpp``, for the pre-tokenizers' names and their patterns.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as Backend

from workbench.config.template_source import own_template
from workbench.config.weight_files import some
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import stops_of
from workbench.data.tokenizer import TOKENIZER_FILE, Tokenizer, has_llama_class, read_json
from workbench.errors import RunError

_SPACE = "▁"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str, digits: str) -> str:
    """Give a pattern that cuts where a word's case changes."""
    words = f"{_BEFORE}{_UPPER}*{_LOWER}+{ending}|{_BEFORE}{_UPPER}+{_LOWER}*{ending}"
    return f"{words}|{digits}|{_CASED_ENDS}"


PRE_TOKENIZERS: dict[str, str] = {
    rf"{_SHORTENED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_ENDS}": "llama-bpe",
    rf"{_SHORTENED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_ENDS}": "qwen2",
    _cased("", r"\p{N}"): "tekken",
    _cased(f"{_SHORTENED}?", r"\p{N}{1,3}"): "gpt-4o",
    _WORDS: "gpt-2",
}
"""Patterns as tokenizer.json spells them, and what llama.cpp calls them."""

# Of these llama.cpp takes a piece that is a token as it is, without merging.
_TAKE_WHOLE = ("llama-bpe", "tekken")


class TokenType(IntEnum):
    """What llama.cpp wants to know of each token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class TokenizerFields:
    """What a GGUF file says of its tokenizer.

    Attributes:
        kind: ``tokenizer.ggml.model``.
        pre: name of the pre-tokenizer.
        tokens: text of each row of the embedding.
        types: of each token.
        scores: of each token; of kind llama only.
        merges: in order, "a b"; of kind gpt2 only.
        special: ids by name: bos, eos, unk, pad, and eot for what ends a turn.
        adds_bos: every text begins with bos.
        adds_eos: every text ends with eos.
        adds_space: a space is put before every text.
        notices: in what llama.cpp may read texts otherwise, in words.
    """

    kind: Literal["gpt2", "llama"]
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None
    merges: list[str] | None
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    notices: tuple[str, ...]


def tokenizer_fields(folder: Path, tokenizer: Tokenizer, num_rows: int) -> TokenizerFields:
    """Describe the tokenizer of a model folder.

    Args:
        folder: with tokenizer.json.
        tokenizer: the same, loaded.
        num_rows: of the embedding; those behind the last token become tokens nobody uses.

    Raises:
        RunError: llama.cpp has no tokenizer like this one.
        DataError: a file cannot be read.
    """
    path = folder / TOKENIZER_FILE
    description = read_json(path)
    model = description.get("model") or {}
    if model.get("type") not in ("BPE", None) or not model.get("merges"):
        raise _refusal(path, f"model.type: {model.get('type')!r} without merges")
    if tokenizer.vocabulary_size > num_rows:
        raise RunError(
            f"has {tokenizer.vocabulary_size:,} tokens, the embedding {num_rows:,} rows",
            where=str(path),
            remedy="use tokenizer and weights of the same model, or publish without --gguf",
        )
    tokens = [
        tokenizer.token_text(number) or f"[PAD{number}]"
        if number < tokenizer.vocabulary_size
        else f"[PAD{number}]"
        for number in range(num_rows)
    ]
    merges = [
        (str(merge[0]), str(merge[1])) if isinstance(merge, list) else _split(str(merge))
        for merge in model["merges"]
    ]
    notices: list[str] = []
    if '"ByteLevel"' in json.dumps(description.get("pre_tokenizer")):
        kind: Literal["gpt2", "llama"] = "gpt2"
        pre = _pre_tokenizer(description, path)
        _check_normalizer(description, path)
        notices += _whole_pieces(description, pre)
        scores, spelled = None, [" ".join(merge) for merge in merges]
        adds_space = False
    else:
        kind, pre, spelled = "llama", "default", None
        scores = _scores(tokens, merges)
        adds_space = _adds_space(tokenizer)
        notices += _unequal_merges(tokens, merges, tokenizer)
        if (
            adds_space
            and has_llama_class(folder)
            and not read_json(folder / "tokenizer_config.json").get("legacy")
        ):
            notices.append("a space is put behind special tokens too, not only before the text")
    notices += _found_otherwise(description, tokenizer)
    return TokenizerFields(
        kind=kind,
        pre=pre,
        tokens=tokens,
        types=[_type_of(number, text, model, tokenizer) for number, text in enumerate(tokens)],
        scores=scores,
        merges=spelled,
        special=_special(folder, tokenizer),
        adds_bos=tokenizer.adds_bos,
        adds_eos=tokenizer.adds_eos,
        adds_space=adds_space,
        notices=tuple(notices),
    )


def _refusal(path: Path, what: str) -> RunError:
    return RunError(
        f"{what}: llama.cpp has no such tokenizer",
        where=str(path),
        remedy="publish without --gguf",
    )


def _split(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _type_of(number: int, text: str, model: Mapping[str, Any], tokenizer: Tokenizer) -> TokenType:
    if number >= tokenizer.vocabulary_size or tokenizer.token_text(number) is None:
        return TokenType.UNUSED
    if text == model.get("unk_token"):
        return TokenType.UNKNOWN
    if text in tokenizer.texts_of_special_tokens:
        return TokenType.CONTROL
    if text in tokenizer.added_texts:
        return TokenType.USER_DEFINED
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    if is_byte and model.get("byte_fallback"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _found_otherwise(description: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Name the added tokens that llama.cpp finds elsewhere: it looks for their text alone."""
    names: dict[str, list[str]] = {}
    for token in description.get("added_tokens") or []:
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
        if token.get("normalized") and tokenizer.token_text(token["id"]) != token["content"]:
            flags.append("normalized")
        if flags:
            names.setdefault(" and ".join(flags), []).append(str(token["content"]))
    return [
        f"{some(found)} {'is' if len(found) == 1 else 'are'} found by the text alone, "
        f"without regard to {flags}"
        for flags, found in names.items()
    ]


def _special(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Name the special tokens; one that ends a turn beside the one that ends a text is eot."""
    found: dict[str, int | None] = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for name in ("unk", "pad"):
        text = tokenizer.special_tokens.get(f"{name}_token")
        ids = [
            number
            for number in range(tokenizer.vocabulary_size)
            if text is not None and tokenizer.token_text(number) == text
        ]
        found[name] = ids[0] if ids else None
    if (source := own_template(folder)) is not None:
        ends = stops_of(ChatTemplate(source, tokenizer.special_tokens), tokenizer)[0]
        found["eot"] = next((number for number in ends if number != tokenizer.eos_id), None)
    return {name: number for name, number in found.items() if number is not None}


# ---- byte pairs ----------------------------------------------------------------------------------


def _pre_tokenizer(description: Mapping[str, Any], path: Path) -> str:
    """Name the pre-tokenizer as llama.cpp does."""
    stated = description["pre_tokenizer"]
    stages = stated["pretokenizers"] if stated.get("type") == "Sequence" else [stated]
    shapes = []
    for stage in stages:
        if stage.get("add_prefix_space"):
            raise _refusal(path, "pre_tokenizer.add_prefix_space")
        match stage.get("type"):
            case "Split":
                pattern = stage.get("pattern", {})
                shapes.append(str(pattern.get("Regex", pattern.get("String"))))
            case "Digits" if stage.get("individual_digits"):
                shapes.append("digits")
            case "ByteLevel":
                shapes += [_WORDS] if stage.get("use_regex", True) else []
            case kind:
                raise _refusal(path, f"pre_tokenizer.type {kind!r}")
    if shapes == ["digits", _WORDS]:
        return "smollm"
    if len(shapes) == 1 and shapes[0] in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[shapes[0]]
    raise _refusal(path, f"pre_tokenizer pattern {' then '.join(shapes)!r}")


def _check_normalizer(description: Mapping[str, Any], path: Path) -> None:
    normalizer = description.get("normalizer") or {}
    stages = normalizer.get("normalizers", [normalizer] if normalizer else [])
    # What people type is composed already: NFC changes next to nothing, and no reader does it.
    if others := [stage.get("type") for stage in stages if stage.get("type") != "NFC"]:
        raise _refusal(path, f"normalizer {others}")


def _whole_pieces(description: Mapping[str, Any], pre: str) -> list[str]:
    """Say whether it matters that llama.cpp takes known pieces whole where the file merges."""
    states = bool(description["model"].get("ignore_merges"))
    takes = pre in _TAKE_WHOLE
    if states == takes:
        return []
    other = json.loads(json.dumps(description))
    other["model"]["ignore_merges"] = takes
    one, two = (Backend.from_str(json.dumps(each)) for each in (description, other))
    texts = [one.decode([number]) for number in sorted(description["model"]["vocab"].values())]
    differing = sum(
        first.ids != second.ids
        for first, second in zip(one.encode_batch(texts), two.encode_batch(texts), strict=True)
    )
    if not differing:
        return []
    return [f"{differing:,} words are merged otherwise (ignore_merges)"]


# ---- SentencePiece -------------------------------------------------------------------------------


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Give each token the rank of the merge that makes it: what is merged first scores highest."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [float(-ranks.get(text, len(merges))) for text in tokens]


def _adds_space(tokenizer: Tokenizer) -> bool:
    ids = tokenizer.encode(["a"])[0].ids
    return bool(len(ids)) and str(tokenizer.token_text(int(ids[0]))).startswith(_SPACE)


def _unequal_merges(
    tokens: list[str], merges: list[tuple[str, str]], tokenizer: Tokenizer
) -> list[str]:
    """Say whether pieces could be merged that the file merges not: by score any two can."""
    known, listed = set(tokens), set(merges)
    made = {left + right for left, right in merges}
    differing = sum(
        (text[:at], text[at:]) not in listed
        for text in made
        for at in range(1, len(text))
        if text[:at] in known and text[at:] in known
    )
    added = sum(
        any(text[:at] in known and text[at:] in known for at in range(1, len(text)))
        for text in known - made - tokenizer.added_texts
        if not (text.startswith("<0x") or text.startswith("[PAD"))
    )
    if not differing + added:
        return []
    return [f"{differing + added:,} pairs of pieces are merged that tokenizer.json does not merge"]
