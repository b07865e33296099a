"""Models of every kind beside a tokenizer that takes any text: what a run can be trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tests.inference.tiny_model import write_tiny_model
from tests.model.tiny import KINDS, ORIGINAL

# More rows than the tokenizer has tokens, as on the hub; the sum is a multiple of nothing.
_SPARE_ROWS = 17
_POSITIONS, _DYNAMIC_POSITIONS = 512, 64


def write_family_folder(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model of a kind of ``tiny``, with ChatML and a byte-level tokenizer.

    Documents of the demo are longer than the windows, and than what scaled positions are made for.
    """
    write_tiny_model(folder)
    stated = json.loads((folder / "config.json").read_text("utf-8"))
    generation = GenerationConfig.from_pretrained(folder)
    family, changes = KINDS[kind]
    numbers: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": _POSITIONS,
        "bos_token_id": stated["eos_token_id"],
        "eos_token_id": stated["eos_token_id"],
        "pad_token_id": None,  # a padding id gets no gradient in transformers
        **changes,
        "vocab_size": stated["vocab_size"] + _SPARE_ROWS,
    }
    if numbers["max_position_embeddings"] == ORIGINAL:  # positions that grow with the document
        numbers["max_position_embeddings"] = _DYNAMIC_POSITIONS
        numbers["rope_parameters"] = {**numbers["rope_parameters"], "factor": 4.0}
    torch.manual_seed(1)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(family, **numbers))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.25)  # so large that the likeliest token is no tie
        elif name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.3)
        else:
            parameter.data.uniform_(0.5, 1.5)
    model.generation_config = generation
    (folder / "model.safetensors").unlink()
    model.to(dtype).save_pretrained(folder)
    return folder
