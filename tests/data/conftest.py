"""A byte-level tokenizer trained in the test, and the model folders made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence, TemplateProcessing
from tokenizers.trainers import BpeTrainer

TEXTS = [
    "Hello, what is your name? My name is Samantha.",
    "user assistant system the weather in Zürich is fine, and so am I.\n\nReally?",
    "The quick brown fox jumps over the lazy dog. 0123456789",
]
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
VOCABULARY_SIZE = 400

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Give a function that writes a model folder: tokenizer and config, no weights."""

    def make(
        name: str = "model",
        *,
        tokens: list[str] = [*CHATML_TOKENS, "<|pad|>"],  # noqa: B006  never changed
        adds_bos: bool = False,
        vocab_size: int | None = None,
        **config: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        backend = Backend(BPE())
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.decoder = ByteLevelDecoder()
        backend.train_from_iterator(
            TEXTS,
            BpeTrainer(
                vocab_size=VOCABULARY_SIZE,
                special_tokens=[AddedToken(token, special=True) for token in tokens],
                initial_alphabet=ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        backend.post_processor = ByteLevelProcessor(trim_offsets=True)
        if adds_bos:
            bos = config["bos_token"]
            template = TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
            )
            backend.post_processor = Sequence([backend.post_processor, template])
        backend.save(str(folder / "tokenizer.json"))
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
        size = vocab_size or backend.get_vocab_size()
        (folder / "config.json").write_text(json.dumps(model_config(size)))
        return folder

    return make


def model_config(vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }


@pytest.fixture
def chatml_folder(make_folder: MakeFolder) -> Path:
    return make_folder(eos_token="<|im_end|>", pad_token="<|pad|>")
