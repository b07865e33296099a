"""Small model folders as the hub has them: config, tokenizer and weights."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.model.tiny import SIZES, reference_model
from workbench.config.weight_files import BIN_FILE, BIN_INDEX_FILE

NAMED = ("<unk>", "<s>", "</s>")
CHARACTERS = [chr(number) for number in range(33, 127)]
assert len(NAMED) + len(CHARACTERS) == SIZES["vocab_size"]


def write_model_folder(folder: Path, kind: str = "llama", num_bin_shards: int = 0) -> Path:
    """Write a model of ``tiny``; its tokens are characters, each text begins with ``<s>``."""
    model = reference_model(kind)
    model.config.bos_token_id, model.config.eos_token_id = 1, 2
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = 1, 2
    model.save_pretrained(folder)
    vocabulary = {text: number for number, text in enumerate((*NAMED, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    if num_bin_shards:
        (folder / "model.safetensors").unlink()
        write_bin_files(folder, dict(model.state_dict()), num_bin_shards)
    return folder


def write_bin_files(
    folder: Path, weights: dict[str, Tensor], num_shards: int, form: dict[str, Any] | None = None
) -> None:
    """Write weights as ``torch.save`` does, in one file or in shards with their index."""
    if num_shards == 1:
        torch.save(weights, folder / BIN_FILE, **(form or {}))
        return
    names = list(weights)
    holders = {}
    for shard in range(num_shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{num_shards:05d}.bin"
        held = names[shard::num_shards]
        torch.save({name: weights[name] for name in held}, folder / file, **(form or {}))
        holders |= dict.fromkeys(held, file)
    (folder / BIN_INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": holders}))


def change_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    stated = json.loads(path.read_text("utf-8"))
    kept = {key: value for key, value in (stated | changes).items() if value is not None}
    path.write_text(json.dumps(kept), "utf-8")


def transformers_logits(folder: Path, ids: Tensor) -> Tensor:
    """Compute logits as transformers does of the folder, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits: Tensor = model(ids).logits
    return logits
