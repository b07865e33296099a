"""The small files that make a checkpoint a whole Hugging Face folder.

Config, tokenizer, template and generation config, as bytes by name. Read once, at the start: what
happens to the source model later changes no checkpoint.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.config.weight_files import file_inside

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def files_beside_weights(
    model_folder: Path, *, template: str, dtype: str, stop_ids: Iterable[int], pad_id: int
) -> dict[str, bytes]:
    """Gather the files that lie beside the weights of every checkpoint, by name.

    A file that is a link out of the folder is refused: a checkpoint would carry along what it
    leads to.

    Args:
        model_folder: where the run begins: its config, tokenizer and generation config.
        template: Jinja source of the chat template that was trained with.
        dtype: of the weights, as Hugging Face names it.
        stop_ids: end a reply, beside those the model names already.
        pad_id: fills rows, unless the model names another.

    Raises:
        RunError: a file is a link out of the folder.
    """
    model_config = _read_json(file_inside(model_folder, "config.json"))
    model_config["dtype"] = dtype
    model_config.pop("torch_dtype", None)
    generation = _read_json(file_inside(model_folder, "generation_config.json"), or_else={})
    known = _ids(generation.get("eos_token_id")) + _ids(model_config.get("eos_token_id"))
    generation["eos_token_id"] = sorted({*known, *stop_ids})
    generation.setdefault("pad_token_id", pad_id)
    files = {
        "config.json": _as_json(model_config),
        "generation_config.json": _as_json(generation),
        "chat_template.jinja": template.encode(),
    }
    for name in _TOKENIZER_FILES:
        path = file_inside(model_folder, name)
        if path.is_file():
            files[name] = path.read_bytes()
    return files


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _read_json(path: Path, or_else: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if or_else is None:
            raise
        return dict(or_else)
    return content
