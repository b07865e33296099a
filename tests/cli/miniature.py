"""A base model like the tutorial's, small enough for a test, and the data set it is tuned on.

As Mistral-7B it has never seen a conversation: its tokenizer knows no mark of ChatML.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

CONVERSATIONS = Path(__file__).parents[2] / "configs" / "demo" / "conversations.json"


def write_base_model(folder: Path) -> None:
    """Write a mistral of four blocks with random weights, in Hugging Face layout."""
    tokenizer = _tokenizer()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = MistralForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def write_mirror(folder: Path) -> None:
    """Write what stands for the hub: the data set of the tutorial's configs, by its id."""
    target = folder / "QuixiAI" / "samantha-data" / "samantha-1.1.json"
    target.parent.mkdir(parents=True)
    shutil.copy(CONVERSATIONS, target)


def _tokenizer() -> Tokenizer:
    conversations = json.loads(CONVERSATIONS.read_text("utf-8"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (turn["value"] for each in conversations for turn in each["conversations"])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer
