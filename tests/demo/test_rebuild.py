import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tests.demo.demo_files import DEMO, MODEL, read_rows
from workbench.config.find import shipped_templates
from workbench.data.tokenizer import load_tokenizer
from workbench.model.families import read_dimensions

# Beyond the conversations: other scripts, marks above letters, signs, spaces at both ends.
FOREIGN = [
    "",
    " ",
    "  two  spaces ",
    "naïve café, 20 °C",
    "Привет 你好 👩‍👩‍👧",
    "a\tb\r\n\nc",
    "\x00\x7f",
]


def rebuild(output: Path, threads: str) -> dict[str, bytes]:
    subprocess.run(
        [sys.executable, DEMO / "rebuild.py", "--output", output],
        check=True,
        capture_output=True,
        timeout=60,
        env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PATH": ""},
    )
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.parametrize("threads", ["1", "3"])
def test_rebuilding_gives_the_same_bytes(tmp_path: Path, threads: str) -> None:
    shipped = {path.name: path.read_bytes() for path in MODEL.iterdir()}
    assert len(shipped) == 5
    assert rebuild(tmp_path / "model", threads) == shipped


def test_every_text_comes_back_from_its_tokens() -> None:
    ours, theirs = load_tokenizer(MODEL), AutoTokenizer.from_pretrained(MODEL)
    texts = [turn["value"] for row in read_rows() for turn in row["conversations"]]
    assert len(texts) > 600
    for text in [*texts, *FOREIGN]:
        ids = ours.encode([text])[0].ids.tolist()
        assert ours.decode(ids) == text
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == text


def test_padding_is_neither_the_end_of_a_turn_nor_of_a_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3]
    assert tokenizer.encode("<|im_start|>user\n")[0] == 2
    assert tokenizer.decode([2, 3, 1], skip_special_tokens=True) == ""


def test_the_model_is_a_llama_that_stops_at_the_end_of_its_turn() -> None:
    config, dims = AutoConfig.from_pretrained(MODEL), read_dimensions(MODEL)
    assert config.architectures == ["LlamaForCausalLM"]
    assert dims.num_layers >= 4
    assert dims.num_key_value_heads < dims.num_heads
    assert dims.vocabulary_size == len(AutoTokenizer.from_pretrained(MODEL))
    assert dims.rope_theta == 10_000.0
    assert dims.max_positions >= 512
    assert config.eos_token_id == 3
    assert GenerationConfig.from_pretrained(MODEL).eos_token_id == [3, 0]
    assert not list(MODEL.glob("*.safetensors")), "the demo draws its weights from the seed"


def test_the_template_is_the_shipped_chatml() -> None:
    own = (MODEL / "chat_template.jinja").read_text("utf-8")
    assert own == (shipped_templates() / "chatml.jinja").read_text("utf-8")
    assert "chat_template" not in json.loads((MODEL / "tokenizer_config.json").read_text("utf-8"))
