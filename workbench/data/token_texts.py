"""What each token of a document reads as, also where a character is made of several tokens.

Knows nothing of masks. Invariant: the texts of a document's tokens, joined, are the document as the
tokenizer decodes it.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workbench.data.tokenizer import Tokenizer

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Four bytes make the longest character; what is unreadable after that many tokens is no text.
_MOST_HELD_TOKENS = 4


class TokenText(NamedTuple):
    """How one token reads.

    Attributes:
        piece: as the vocabulary spells it.
        text: the characters it completes: of the tokens of a character the last one's.
        part: its bytes in hexadecimal, where it holds only a part of a character; else "".
    """

    piece: str
    text: str
    part: str = ""


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[TokenText]:
    """Say how each token of a document reads.

    How a vocabulary spells bytes is tried, and believed only if it gives what the tokenizer
    decodes. The three tokens of ``€`` read "", "", "€", with the parts e2, 82 and ac.
    """
    pieces = [tokenizer.token_text(number) or f"[{number}]" for number in ids]
    decoded = tokenizer.decode(ids)
    for spelled in (_bytes_of_byte_level, _bytes_of_sentencepiece):
        found = _read_bytes(pieces, tokenizer.added_texts, spelled, decoded)
        if found is not None:
            return found
    return _read_by_decoding(ids, pieces, tokenizer)


def _read_bytes(
    pieces: Sequence[str],
    added_texts: frozenset[str],
    spelled: Callable[[str], bytes | None],
    decoded: str,
) -> list[TokenText] | None:
    """Read pieces as the bytes they spell; None if that is not what the tokenizer decodes."""
    contents: list[bytes] = []
    for piece in pieces:
        content = piece.encode() if piece in added_texts else spelled(piece)
        if content is None:
            return None
        contents.append(content)
    texts = _characters(pieces, contents)
    whole = "".join(text.text for text in texts)
    if whole == decoded:
        return texts
    if contents and whole == f" {decoded}":
        # Such tokenizers put a space before a text, and take it away again when they decode.
        return _characters(pieces, [contents[0].removeprefix(b" "), *contents[1:]])
    return None


def _characters(pieces: Sequence[str], contents: Sequence[bytes]) -> list[TokenText]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = []
    for number, (piece, content) in enumerate(zip(pieces, contents, strict=True)):
        begins_inside = bool(decoder.getstate()[0])
        text = decoder.decode(content, final=number == len(pieces) - 1)
        is_part = begins_inside or bool(decoder.getstate()[0])
        texts.append(TokenText(piece, text, content.hex(" ") if is_part else ""))
    return texts


def _byte_alphabet() -> dict[str, int]:
    """Give the byte for which each character stands in the pieces of a byte-level vocabulary.

    Printable bytes stand for themselves, the others for characters from U+0100 on, in order.
    Source: the vocabulary of GPT-2 (Radford et al. 2019).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


def _bytes_of_byte_level(piece: str) -> bytes | None:
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:
        return None


def _bytes_of_sentencepiece(piece: str) -> bytes | None:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _read_by_decoding(
    ids: Sequence[int], pieces: Sequence[str], tokenizer: Tokenizer
) -> list[TokenText]:
    """Read tokens by decoding a little more each time, behind what has been read already."""
    texts: list[TokenText] = []
    context = given = 0  # ids[context:given] are read once more, as a token may read by its place
    for number, piece in enumerate(pieces):
        known = tokenizer.decode(ids[context:given])
        text = tokenizer.decode(ids[context : number + 1])[len(known) :]
        is_last = number == len(pieces) - 1
        is_half = text.endswith(_UNREADABLE) and number + 1 - given < _MOST_HELD_TOKENS
        if is_half and not is_last:
            texts.append(TokenText(piece, ""))
        else:
            texts.append(TokenText(piece, text))
            context, given = given, number + 1
    return texts
