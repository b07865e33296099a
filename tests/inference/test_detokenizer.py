"""Text appears as early as it can be read, and never in halves."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders

from workbench.inference.detokenizer import Detokenizer
from workbench.inference.stop import TextPart

TEXT = "naïve €5 🙂, 日本語. é"


def decode_bytes(ids: Sequence[int]) -> str:
    """Decode as byte-level tokenizers do, a byte being a token."""
    return bytes(ids).decode(errors="replace")


def decode_pieces(ids: Sequence[int]) -> str:
    """Decode as SentencePiece tokenizers do: bytes in runs, the first space dropped."""
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    words = ["▁Hello", "▁world", "!"]
    return str(decoder.decode([words[i] if i < 3 else f"<0x{i:02X}>" for i in ids]))


def shown(parts: Sequence[TextPart]) -> str:
    return "".join(part.text for part in parts if part.is_shown)


@pytest.mark.parametrize("decode", [decode_bytes, decode_pieces])
def test_half_a_character_is_never_given_out(decode: object) -> None:
    assert callable(decode)
    detokenizer = Detokenizer(decode, {})
    pieces = [shown(detokenizer.feed(byte)) for byte in TEXT.encode()]
    assert "".join(pieces) == TEXT
    assert pieces.count("") == len(TEXT.encode()) - len(TEXT)
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.finish() == []


def test_spaces_between_words_are_kept_and_the_first_is_dropped() -> None:
    detokenizer = Detokenizer(decode_pieces, {})
    assert [shown(detokenizer.feed(i)) for i in (0, 1, 2)] == ["Hello", " world", "!"]


def test_half_a_character_at_the_end_is_left_out() -> None:
    detokenizer = Detokenizer(decode_bytes, {})
    given = [shown(detokenizer.feed(byte)) for byte in "ab€".encode()[:-1]]
    assert "".join(given) == "ab"
    assert detokenizer.finish() == []


def test_bytes_that_are_no_text_do_not_hold_back_the_rest() -> None:
    detokenizer = Detokenizer(decode_bytes, {})
    given = "".join(shown(detokenizer.feed(byte)) for byte in [0xFF] * 20 + [0x61])
    assert given == "\ufffd" * 20 + "a"


def test_a_special_token_is_said_but_not_shown() -> None:
    detokenizer = Detokenizer(decode_bytes, {300: "<|end|>"})
    assert shown(detokenizer.feed(0x61)) == "a"
    # The half character before it will never be completed.
    assert detokenizer.feed(0xE2) == []
    assert detokenizer.feed(300) == [TextPart("<|end|>", is_shown=False)]
    assert detokenizer.feed(0x62) == [TextPart("b")]


def test_a_real_byte_level_tokenizer_gives_its_text_back(tiny_model: object) -> None:
    tokenizer = Tokenizer.from_file(f"{tiny_model}/tokenizer.json")
    detokenizer = Detokenizer(lambda ids: tokenizer.decode(list(ids)), {})
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) > len(TEXT)
    assert "".join(shown(detokenizer.feed(i)) for i in ids) == TEXT
