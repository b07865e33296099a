"""A GGUF file holds the model: read back by the library, by transformers, and run by llama.cpp."""

import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.inference.tiny_model import write_tiny_model
from tests.model.tiny import KINDS, reference_model
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.model import gguf_file
from workbench.model.families import read_dimensions
from workbench.model.gguf_file import layout_of, write_gguf
from workbench.model.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_fields

if TYPE_CHECKING:
    import llama_cpp

gguf = pytest.importorskip("gguf")
HAS_ENGINE = importlib.util.find_spec("llama_cpp") is not None
needs_engine = pytest.mark.skipif(not HAS_ENGINE, reason="llama-cpp-python is not installed")

ROWS = 320
REFUSED = {
    "qwen3, tied, biases": "attention_bias",
    "qwen3, mixed and llama3": "llama3",
    "smollm3, untied, windows where nothing is turned": "no_rope_layers",
    "seed_oss": "head_dim",
    "seed_oss, all biases": "head_dim",
    "internlm3, biases, dynamic": "head_dim",
}
WIDE: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96}
TEXT = "Hello, my name is Samantha. What's your name? 1234 tokens — über\n\n  naïve  end"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def write_model(
    folder: Path, tokenizer_of: Path, family: str, dtype: torch.dtype, **changes: object
) -> Path:
    """Write a random model of a family with another model's tokenizer."""
    shutil.copytree(tokenizer_of, folder)
    (folder / "model.safetensors").unlink()
    # Only what is no model's dimension stays.
    sizes = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": None,
    }
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **(WIDE | sizes | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.15)
        elif name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.5)
        else:
            parameter.data.uniform_(0.5, 1.5)
    generation = (folder / "generation_config.json").read_text()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)
    return folder


def changes_of(kind: str) -> tuple[str, dict[str, object]]:
    family, changes = KINDS[kind]
    return family, {key: value for key, value in changes.items() if key != "vocab_size"}


CARRIED = [kind for kind in KINDS if kind not in REFUSED]


@pytest.mark.parametrize("kind", ["q8_0", "bf16", "f16"])
def test_a_file_read_by_transformers_gives_the_models_logits(
    tiny: Path, tmp_path: Path, kind: str
) -> None:
    """transformers has a reader of its own, which lays rows back and dequantises."""
    ids = torch.randint(ROWS, (2, 24), generator=torch.Generator().manual_seed(0))
    for family in ("llama", "qwen2", "mistral"):
        folder = write_model(tmp_path / family, tiny, family, torch.bfloat16, sliding_window=None)
        (name, _) = write_gguf(folder, kind, "tiny")
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        with torch.inference_mode():
            expected, found = ours(ids).logits, theirs(ids).logits
        difference = float((expected - found).norm() / expected.norm())
        assert difference < {"q8_0": 8e-2, "bf16": 1e-6, "f16": 2e-3}[kind], (family, difference)


@pytest.mark.parametrize("kind", CARRIED)
def test_every_tensor_and_field_is_found_again(tiny: Path, tmp_path: Path, kind: str) -> None:
    family, changes = changes_of(kind)
    folder = write_model(tmp_path / "model", tiny, family, torch.float32, **changes)
    notices: list[str] = []
    files = write_gguf(
        folder, "bf16", "a tiny/model", warn=lambda what, remedy: notices.append(what)
    )
    assert list(files) == ["a-tiny-model-bf16.gguf", "Modelfile"]
    dims = read_dimensions(folder)
    reader = gguf.GGUFReader(folder / "a-tiny-model-bf16.gguf")
    architecture = reader.get_field("general.architecture").contents()
    assert reader.get_field(f"{architecture}.block_count").contents() == dims.num_layers
    assert reader.get_field(f"{architecture}.rope.freq_base").contents() == dims.rope_theta
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert ("output.weight" in found) == (not dims.tied)
    assert found["token_embd.weight"].shape.tolist() == [dims.hidden_size, ROWS]
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert len(reader.get_field("tokenizer.ggml.tokens").data) == ROWS
    limits = [notice for notice in notices if "context" in notice]
    is_limited = "window" in kind or "mixed" in kind or "slide" in kind or kind == "cwm"
    assert bool(limits) == (is_limited or "dynamic" in kind)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_llama_cpp_does_not_compute_is_refused_by_its_field(kind: str) -> None:
    dims = read_dimensions(reference_model(kind).config.to_dict())
    with pytest.raises(RunError, match=REFUSED[kind]):
        layout_of(dims, "model")


def test_numbers_that_f16_cannot_hold_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", tiny, "llama", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data[3, 3] = 70_000.0
    model.save_pretrained(folder)
    with pytest.raises(RunError, match=r"token_embd\.weight holds numbers beyond 65,504"):
        write_gguf(folder, "f16", "tiny")
    write_gguf(folder, "bf16", "tiny")


def test_a_file_that_is_not_what_was_written_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for a disk, or a library, that changes one number."""
    folder = write_model(tmp_path / "model", tiny, "llama", torch.float32)
    encode = gguf_file._encoded

    def wrong(library: ModuleType, part: gguf_file._Part) -> NDArray[Any]:
        numbers = encode(library, part)
        if part.name == "blk.1.ffn_up.weight":
            numbers = numbers.copy()
            numbers.reshape(-1)[5] += 1
        return numbers

    monkeypatch.setattr(gguf_file, "_encoded", wrong)
    for kind in ("q8_0", "f16", "bf16"):
        with pytest.raises(WorkbenchError, match=r"numbers of blk\.1\.ffn_up\.weight"):
            write_gguf(folder, kind, "tiny")


def test_without_the_library_the_remedy_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", tiny, "llama", torch.float32)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'workbench\[gguf\]'"):
        write_gguf(folder, "bf16", "tiny")


# ---- tokenizers ----------------------------------------------------------------------------------


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **named: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


def byte_pairs(pre_tokenizer: object, **options: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


def split_by(pattern: str) -> object:
    from tokenizers import Regex

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def sentence_pieces() -> Tokenizer:
    """Train a vocabulary of the kind that Llama 2 and Mistral have: pieces, bytes, no cutting."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False)
    # Pieces do not cross words, as in a vocabulary that SentencePiece has made.
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trained.train_from_iterator([TEXT] * 4, trainer)
    description = json.loads(trained.to_str())
    description["pre_tokenizer"] = None
    # Bytes are ordinary tokens of the vocabulary, and every way to put a piece together is listed.
    description["added_tokens"] = description["added_tokens"][:3]
    vocabulary = description["model"]["vocab"]
    made = [left + right for left, right in description["model"]["merges"]]
    description["model"]["merges"] = [
        [text[:at], text[at:]]
        for text in made
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    return Tokenizer.from_str(json.dumps(description))


def test_pre_tokenizers_are_told_by_their_patterns(tmp_path: Path) -> None:
    for number, (pattern, name) in enumerate(PRE_TOKENIZERS.items()):
        folder = save_tokenizer(
            tmp_path / str(number),
            byte_pairs(split_by(pattern), ignore_merges=name in ("llama-bpe", "tekken")),
            eos_token="<|endoftext|>",
        )
        fields = tokenizer_fields(folder, load_tokenizer(folder), 300)
        assert (fields.kind, fields.pre, fields.notices) == ("gpt2", name, ())
        assert fields.tokens[0] == "<|endoftext|>"
        assert fields.special["eos"] == 0
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    folder = save_tokenizer(tmp_path / "digits", byte_pairs(digits))
    assert tokenizer_fields(folder, load_tokenizer(folder), 400).pre == "smollm"


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    for number, (tokenizer, words) in enumerate(
        [
            (byte_pairs(split_by(r"\d+|\D+")), "pattern"),
            (byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=True)), "add_prefix_space"),
        ]
    ):
        folder = save_tokenizer(tmp_path / str(number), tokenizer)
        with pytest.raises(RunError, match=words) as raised:
            tokenizer_fields(folder, load_tokenizer(folder), 400)
        assert "without --gguf" in raised.value.remedy
    lowered = byte_pairs(pre_tokenizers.ByteLevel(False))
    lowered.normalizer = normalizers.Lowercase()
    folder = save_tokenizer(tmp_path / "lowered", lowered)
    with pytest.raises(RunError, match="Lowercase"):
        tokenizer_fields(folder, load_tokenizer(folder), 400)
    with pytest.raises(RunError, match="the embedding 20 rows"):
        tokenizer_fields(folder, load_tokenizer(folder), 20)


def test_pieces_are_scored_by_the_order_of_their_merges(tmp_path: Path) -> None:
    folder = save_tokenizer(
        tmp_path / "pieces", sentence_pieces(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fields = tokenizer_fields(folder, load_tokenizer(folder), 310)
    assert (fields.kind, fields.adds_space, fields.merges) == ("llama", True, None)
    assert fields.notices == ()
    assert fields.scores is not None
    types = [int(each) for each in fields.types]
    assert types[:4] == [2, 3, 3, 6]
    assert types.count(6) == 256
    merged = [number for number, score in enumerate(fields.scores) if score > min(fields.scores)]
    assert len(merged) > 10
    assert [fields.scores[number] for number in merged] == sorted(
        (fields.scores[number] for number in merged), reverse=True
    )


# ---- the engine ----------------------------------------------------------------------------------


def engine_of(path: Path) -> "llama_cpp.Llama":
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False, logits_all=True)


@needs_engine
@pytest.mark.parametrize("kind", CARRIED)
def test_llama_cpp_says_what_transformers_says(tiny: Path, tmp_path: Path, kind: str) -> None:
    family, changes = changes_of(kind)
    folder = write_model(tmp_path / "model", tiny, family, torch.bfloat16, **changes)
    context = layout_of(read_dimensions(folder), "model").context
    (name, _) = write_gguf(folder, "bf16", "tiny")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = engine_of(folder / name)
    length = min(64, context)
    ids = torch.randint(4, 290, (length,), generator=torch.Generator().manual_seed(3))
    engine.eval(ids.tolist())
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0].numpy()
    found = np.array(engine.scores[:length])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-2
    # The likeliest token is the same, or as good as.
    behind = expected.max(1) - np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
    assert float(behind.max()) < 0.1


@needs_engine
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_runs_eight_bits(tiny: Path, tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", tiny, family, torch.bfloat16, head_dim=16)
    (name, _) = write_gguf(folder, "q8_0", "tiny")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = engine_of(folder / name)
    ids = torch.randint(4, 290, (64,), generator=torch.Generator().manual_seed(3))
    engine.eval(ids.tolist())
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0].numpy()
    found = np.array(engine.scores[:64])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1


@needs_engine
def test_llama_cpp_greedily_writes_the_same_tokens(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (name, _) = write_gguf(folder, "f16", "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.encode("<|im_start|>user\nHello, my name is Samantha<|im_end|>\n")
    engine = engine_of(folder / name)
    assert (
        engine.tokenize(b"<|im_start|>user\nHello, my name is Samantha<|im_end|>\n", special=True)
        == prompt
    )
    found: list[int] = []
    for token in engine.generate(prompt, temp=0.0, repeat_penalty=1.0):
        found.append(token)
        if len(found) == 60 or token in (0, 3):
            break
    made = reference.generate(torch.tensor([prompt]), max_new_tokens=len(found), do_sample=False)
    assert found == made[0, len(prompt) :].tolist()
    assert len(found) > 3


GREEDY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, rows without tokens": ("llama", {"vocab_size": 333}),
    **{f"llama, {kind}": changes_of(f"llama, {kind}") for kind in ("linear", "llama3", "yarn")},
    "mistral, a window of 112": ("mistral", {"sliding_window": 112, "head_dim": 16}),
    "ministral, a window of 112": ("ministral", {"sliding_window": 112, "head_dim": 16}),
    "qwen2": changes_of("qwen2"),
    "qwen2, tied, yarn": changes_of("qwen2, tied, yarn"),
    "qwen3": changes_of("qwen3"),
    "smollm3": changes_of("smollm3"),
}


@needs_engine
@pytest.mark.parametrize("form", ["q8_0", "bf16", "f16"])
@pytest.mark.parametrize("kind", GREEDY)
def test_llama_cpp_says_a_hundred_tokens_that_transformers_would_say(
    tiny: Path, tmp_path: Path, kind: str, form: str
) -> None:
    """Each is the likeliest, or as good as: llama.cpp rounds what goes into a product."""
    family, changes = GREEDY[kind]
    folder = write_model(tmp_path / "model", tiny, family, torch.bfloat16, **changes)
    assert layout_of(read_dimensions(folder), "model").context >= 112
    (name, _) = write_gguf(folder, form, "tiny")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = engine_of(folder / name)
    prompt = torch.randint(4, 290, (8,), generator=torch.Generator().manual_seed(5)).tolist()
    said: list[int] = []
    for token in engine.generate(prompt, temp=0.0, repeat_penalty=1.0):
        said.append(token)
        if len(said) == 100:
            break
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(said)[:, None])[:, 0]
    behind = (logits.max(1).values - chosen) / logits.std(1)
    allowed, num_equal = {"q8_0": (0.5, 75), "bf16": (0.05, 90), "f16": (0.02, 90)}[form]
    assert float(behind.max()) < allowed
    assert int((behind == 0).sum()) >= num_equal
    assert len(set(said)) > 5


SPACES = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    " \n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u200b",
    "\u3000",
    "\ufeff",
]
WORDS = [
    "Hello",
    "name",
    " is",
    "tokens",
    "CamelCase",
    "ABCdef",
    "_x",
    "DON'T",
    "don't",
    "I'LL",
    "'s",
]
ODD = [
    "123",
    "12345",
    "7",
    " 42",
    "½",
    "Ⅷ",
    "é",
    "ß",
    "İ",
    "ǅ",
    "ﬁ",
    "日本語",
    "العربية",
    "🪁",
    "👨\u200d👩",
]
SIGNS = ["—", "…", "...", "!!!", "#$%", "/", "//\n", "▁", "\x7f", "<|im_end|>", "<tool>"]


@needs_engine
@pytest.mark.parametrize("added", ["", "special", "regular"])
@pytest.mark.parametrize("name", [*PRE_TOKENIZERS.values(), "smollm", "pieces"])
def test_llama_cpp_reads_text_as_the_tokenizer_does(
    tiny: Path, tmp_path: Path, name: str, added: str
) -> None:
    named = {"eos_token": "<|endoftext|>"}
    if name == "pieces":
        tokenizer = sentence_pieces()
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    elif name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer = byte_pairs(
            pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        )
    else:
        pattern = next(pattern for pattern, each in PRE_TOKENIZERS.items() if each == name)
        tokenizer = byte_pairs(split_by(pattern), ignore_merges=name in ("llama-bpe", "tekken"))
    if added:
        is_special = added == "special"
        token = AddedToken("<tool>", special=is_special, normalized=False)
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])
    folder = write_model(tmp_path / "model", tiny, "llama", torch.float32)
    (folder / "tokenizer_config.json").unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    notices: list[str] = []
    (file, _) = write_gguf(folder, "bf16", "tiny", warn=lambda what, _: notices.append(what))
    assert not [notice for notice in notices if notice.startswith("GGUF")]
    engine = engine_of(folder / file)
    chance = random.Random(name)
    texts = [TEXT, "", "Hello", " two  spaces", "What's 42?", "日本 tokens", "name name\nname"]
    texts += ["<|im_end|>\n", "a<|im_end|> b", "<tool>", "a<tool>b", " <tool> "]
    texts += [
        "".join(chance.choices(SPACES + WORDS + ODD + SIGNS, k=chance.randrange(1, 9)))
        for _ in range(400)
    ]
    expected = [each.ids.tolist() for each in load_tokenizer(folder).encode(texts)]
    found = [engine.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    assert [text for text, one, two in zip(texts, found, expected, strict=True) if one != two] == []


def test_added_tokens_that_llama_cpp_finds_elsewhere_are_told(tmp_path: Path) -> None:
    tokenizer = byte_pairs(split_by(next(iter(PRE_TOKENIZERS))), ignore_merges=True)
    tokenizer.add_special_tokens([AddedToken("<a>", lstrip=True), AddedToken("<b>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("<c>")])
    folder = save_tokenizer(tmp_path / "bytes", tokenizer)
    assert tokenizer_fields(folder, load_tokenizer(folder), 320).notices == (
        "<a> is found by the text alone, without regard to lstrip",
        "<b> is found by the text alone, without regard to rstrip",
        "word is found by the text alone, without regard to single_word",
    )
    pieces = sentence_pieces()
    pieces.add_tokens([AddedToken("<c>", normalized=True), AddedToken("<d>", normalized=False)])
    folder = save_tokenizer(tmp_path / "pieces", pieces)
    assert tokenizer_fields(folder, load_tokenizer(folder), 320).notices == (
        "<c> is found by the text alone, without regard to normalized",
    )
