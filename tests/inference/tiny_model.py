"""A random llama with a byte-level tokenizer and ChatML: a model folder in a second."""

import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.runs.checkpoints import complete_checkpoint
from workbench.runs.layout import RunFolder
from workbench.runs.manifest import hash_file, write_manifest

CONTEXT = 1024

CHATML = (
    "{%- for message in messages -%}\n"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}\n"
)


def write_tiny_model(folder: Path, seed: int = 0, *, hidden_size: int = 32) -> Path:
    """Write config, weights, tokenizer and template; the same seed gives the same model.

    The four heads are a quarter as wide as ``hidden_size``: vLLM has kernels from 32 on.
    """
    folder.mkdir(parents=True)
    tokenizer = _make_tokenizer()
    vocabulary_size = tokenizer.get_vocab_size()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        # Larger than usual, so that the likeliest token is never a matter of rounding.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[
            tokenizer.token_to_id("<|endoftext|>"),
            tokenizer.token_to_id("<|im_end|>"),
        ],
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
    )
    model.save_pretrained(folder)
    return folder


def add_checkpoint(run: RunFolder, model: Path, step: int) -> Path:
    """Make a complete checkpoint of a model folder, with its manifest."""
    partial = run.partial_checkpoint(step)
    shutil.copytree(model, partial)
    files = {path.name: hash_file(path) for path in partial.iterdir()}
    write_manifest(partial, files, step, num_ranks=1)
    return complete_checkpoint(run, step)


def _make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Hello, my name is Samantha. What is your name?"] * 4, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")]
    )
    return tokenizer
