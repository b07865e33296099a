"""Each token of a document reads as what the tokenizer decodes, also within a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.models import Model as BackendModel

from tests.demo.demo_files import MODEL
from workbench.data.token_texts import TokenText, token_texts
from workbench.data.tokenizer import Tokenizer, load_tokenizer

DEMO = load_tokenizer(MODEL)


def read(text: str, tokenizer: Tokenizer = DEMO) -> list[TokenText]:
    return token_texts(tokenizer.encode([text])[0].ids.tolist(), tokenizer)


def tokenizer_of(model: BackendModel, decoder: decoders.Decoder) -> Tokenizer:
    backend = Backend(model)
    backend.decoder = decoder
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return Tokenizer(backend, {})


def sentencepiece() -> Tokenizer:
    """Make a tokenizer of whole words and single bytes, as those of llama 2 are."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hi", "▁you", "▁", "!"]
    model = BPE(
        {word: number for number, word in enumerate(words)},
        [],
        unk_token="<unk>",
        byte_fallback=True,
    )
    return tokenizer_of(
        model,
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


def test_a_character_of_several_tokens_is_the_last_one_s_and_each_shows_its_bytes() -> None:
    texts = read("a🎉b")
    parts = [text for text in texts if text.part]
    assert len(parts) > 1, "the demo's vocabulary has no token for it"
    assert [text.text for text in parts] == [*[""] * (len(parts) - 1), "🎉"]
    assert bytes.fromhex("".join(text.part for text in parts)) == "🎉".encode()


def test_whole_characters_show_no_bytes() -> None:
    texts = read("<|im_start|>user\nHello there<|im_end|>")
    assert [text.part for text in texts] == [""] * len(texts)
    assert texts[0] == TokenText("<|im_start|>", "<|im_start|>")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_texts_of_a_document_are_the_document(text: str) -> None:
    ids = DEMO.encode([text])[0].ids.tolist()
    assert "".join(each.text for each in token_texts(ids, DEMO)) == DEMO.decode(ids)


def test_half_a_character_at_the_end_of_a_piece_reads_as_the_tokenizer_decodes_it() -> None:
    ids = DEMO.encode(["a🎉"])[0].ids.tolist()[:-1]
    texts = token_texts(ids, DEMO)
    assert "".join(text.text for text in texts) == DEMO.decode(ids)
    assert texts[-1].part


def test_pieces_of_sentencepiece_read_without_the_space_before_a_text() -> None:
    tokenizer = sentencepiece()
    ids = [257, 258, 0xC3 + 1, 0xBC + 1, 260]
    assert tokenizer.decode(ids) == "Hi youü!"
    texts = token_texts(ids, tokenizer)
    assert [text.text for text in texts] == ["Hi", " you", "", "ü", "!"]
    assert [text.part for text in texts] == ["", "", "c3", "bc", ""]


def test_a_vocabulary_of_no_known_spelling_is_read_by_decoding() -> None:
    words = {"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}
    tokenizer = tokenizer_of(WordPiece(words, unk_token="[UNK]"), decoders.WordPiece())
    texts = token_texts([1, 2, 3], tokenizer)
    assert [text.text for text in texts] == ["play", "ing", " now"]
    assert [text.piece for text in texts] == ["play", "##ing", "now"]


def test_an_id_without_a_piece_is_named() -> None:
    assert token_texts([DEMO.vocabulary_size + 5], DEMO)[0].piece.startswith("[")


@pytest.mark.parametrize("ids", [[], [2]])
def test_short_documents_are_read_too(ids: list[int]) -> None:
    assert len(token_texts(ids, DEMO)) == len(ids)
