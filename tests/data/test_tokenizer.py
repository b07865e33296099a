"""A folder's tokenizer gives the ids that transformers gives; what cannot be read says so."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from tests.data.conftest import TEXTS, MakeFolder, model_config
from workbench.config.schema.config import Config
from workbench.config.schema.data import DataSection, SourceSection
from workbench.config.template_source import template_source
from workbench.data.prepare import prepare
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import DataError

SAMPLES = [
    "Hello, what is your name?",
    "<s>[INST] Hello [/INST] My name </s><s>[INST]what[/INST]",
    "<|im_start|>user\nthe weather  in Zürich 🙂<|im_end|>\n<|im_start|>assistant\n",
    " </s> Samantha\t</s>",
    "<s>",
    "",
]
CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]


@pytest.fixture(scope="module")
def llama_json() -> str:
    """Train a tokenizer.json like that of Llama 2: a space goes before each piece of text."""
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False)
    )
    signs = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in signs])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend.to_str()


def write_folder(
    folder: Path, llama_json: str, stated: dict[str, object], family: str = "llama"
) -> Path:
    (folder / "tokenizer.json").write_text(llama_json)
    (folder / "config.json").write_text(json.dumps(model_config(600) | {"model_type": family}))
    stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize("switches", [{}, {"add_bos_token": True}, {"add_bos_token": False},
                                      {"add_bos_token": True, "add_eos_token": True}])  # fmt: skip
@pytest.mark.parametrize("legacy", [{}, {"legacy": True}, {"legacy": False}])
@pytest.mark.parametrize("name", CLASSES)
def test_ids_are_those_of_transformers_for_the_class_that_is_stated(
    tmp_path: Path, llama_json: str, name: str, legacy: dict[str, bool], switches: dict[str, bool]
) -> None:
    folder = write_folder(tmp_path, llama_json, {"tokenizer_class": name, **legacy, **switches})
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in SAMPLES:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        (encoded,) = ours.encode([text])
        assert encoded.ids.tolist() == expected
        assert all(0 <= begin <= end <= len(text) for begin, end in encoded.spans.tolist())
        whole = [ours.bos_id] * ours.adds_bos + expected + [ours.eos_id] * ours.adds_eos
        assert whole == theirs(text)["input_ids"]
        assert ours.decode(expected) == theirs.decode(expected)


@pytest.mark.parametrize(
    ("stated", "differs"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, True),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": True}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({}, False),
    ],
)
def test_it_is_known_where_the_file_alone_would_give_other_ids(
    tmp_path: Path, llama_json: str, stated: dict[str, object], differs: bool
) -> None:
    assert load_tokenizer(write_folder(tmp_path, llama_json, stated)).differs_from_file == differs


def test_a_mistral_folder_is_read_as_its_file_stands(tmp_path: Path, llama_json: str) -> None:
    folder = write_folder(tmp_path, llama_json, {"tokenizer_class": CLASSES[0]}, "mistral")
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in SAMPLES:
        assert (
            ours.encode([text])[0].ids.tolist() == theirs(text, add_special_tokens=False).input_ids
        )
    assert not ours.differs_from_file


def test_a_byte_level_file_is_read_as_it_stands_whatever_its_class(make_folder: MakeFolder) -> None:
    folder = make_folder(tokens=["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"})
    )
    ours = load_tokenizer(folder)
    (encoded,) = ours.encode(["<s> Hello,  what"])
    expected = Backend.from_file(str(folder / "tokenizer.json")).encode("<s> Hello,  what").ids
    assert encoded.ids.tolist() == expected
    assert not ours.differs_from_file


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["tokenizer.model"], r"has tokenizer\.model, but no tokenizer\.json.*save_pretrained"),
        (["vocab.json", "merges.txt"], r"has vocab\.json and merges\.txt, but no tokenizer\.json"),
        ([], r"has no tokenizer\.json; copy the model's tokenizer files"),
    ],
)
def test_a_folder_without_tokenizer_json_says_what_to_do(
    tmp_path: Path, files: list[str], told: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x0a")
    with pytest.raises(DataError, match=told):
        load_tokenizer(tmp_path)


def test_a_folder_that_is_not_there_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such model folder"):
        load_tokenizer(tmp_path / "away")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_check_reports_a_file_that_alone_would_give_other_ids(
    tmp_path: Path, llama_json: str
) -> None:
    folder = write_folder(tmp_path, llama_json, {"tokenizer_class": "LlamaTokenizer"})
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "My name is Samantha."}]
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"conversations": turns}] * 5))
    data = DataSection(sources={"rows": SourceSection(path=str(rows))})
    prepared = prepare(Config(data=data), folder, template_source("chatml", folder))
    assert [found.what for found in prepared.findings if "disagree about spaces" in found.what]
