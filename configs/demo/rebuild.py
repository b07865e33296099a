"""Rebuild the demo's tokenizer and model description from its conversations, byte for byte.

    python configs/demo/rebuild.py                 # into configs/demo/model
    python configs/demo/rebuild.py --output DIR    # elsewhere, to compare

The tokenizer is a byte-level BPE, so it can spell any text, and is trained on the values of
`conversations.json` alone. The model has no weights: the demo draws them from its seed. The one
invariant: same conversations, same `tokenizers` release, same bytes.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHATML_NAME = "chat_template.jinja"
CHATML = HERE.parent.parent / "chat_templates" / "chatml.jinja"

VOCABULARY_SIZE = 1536
# Their ids are their places here. Padding has a token of its own, so that a stop is never masked.
SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, PAD, TURN_START, TURN_END = SPECIAL_TOKENS

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "float32",
    "eos_token_id": SPECIAL_TOKENS.index(TURN_END),
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    # With 0.02 the loss, once low, jumps at a constant rate and the ten answers come and go; with
    # 0.08 answers are learned by the letter (validation 0.5). Seen over 220 to 280 steps at 1e-3.
    "initializer_range": 0.04,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": SPECIAL_TOKENS.index(PAD),
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCABULARY_SIZE,
}

GENERATION = {
    "do_sample": False,
    "eos_token_id": [SPECIAL_TOKENS.index(TURN_END), SPECIAL_TOKENS.index(END_OF_TEXT)],
    "max_new_tokens": 128,
    "pad_token_id": SPECIAL_TOKENS.index(PAD),
}

TOKENIZER = {
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "eos_token": TURN_END,
    "model_max_length": MODEL["max_position_embeddings"],
    "pad_token": PAD,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def read_texts(conversations: Path) -> list[str]:
    """Give every value of the conversations, in the order of the file."""
    rows = json.loads(conversations.read_text(encoding="utf-8"))
    return [turn["value"] for row in rows for turn in row["conversations"]]


def train_tokenizer(texts: list[str]) -> str:
    """Train the byte-level BPE and give the text of its `tokenizer.json`.

    All 256 bytes are in the vocabulary whatever the texts contain. Merges end early, and the
    vocabulary stays below `VOCABULARY_SIZE`, where no pair is left that occurs twice.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True) + "\n"


def as_json(content: dict[str, Any]) -> str:
    """Give the content as indented JSON, keys in order, newline at the end."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def rebuild(output: Path) -> list[Path]:
    """Write the model folder: description, generation settings, tokenizer and template.

    Args:
        output: the folder to write into; made when missing, files in it are replaced.

    Returns:
        The files written.
    """
    output.mkdir(parents=True, exist_ok=True)
    texts = {
        "config.json": as_json(MODEL),
        "generation_config.json": as_json(GENERATION),
        "tokenizer.json": train_tokenizer(read_texts(HERE / "conversations.json")),
        "tokenizer_config.json": as_json(TOKENIZER),
    }
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    shutil.copyfile(CHATML, output / CHATML_NAME)
    return [output / name for name in (*texts, CHATML_NAME)]


def main() -> None:
    """Read the command line, rebuild, and name what was written."""
    parser = argparse.ArgumentParser(description="Rebuild the demo's tokenizer and model config.")
    parser.add_argument("--output", type=Path, default=HERE / "model", help="folder to write into")
    # One thread: the trainer must not depend on how its work was divided.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for path in rebuild(parser.parse_args().output):
        print(path)


if __name__ == "__main__":
    main()
