"""What preparing a model comes to: its new config and small files, and each weight's new form.

Whatever is not asked for stays as it is: config.json keeps every other key, and each weight its
dtype. Knows how a weight is made anew, but writes none. Invariant: nothing is written here, and the
source is only read.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.config.added_tokens_file import AddedTokens
from workbench.config.json_file import check_there, read_json_object
from workbench.config.weight_files import file_inside, find_weight_files
from workbench.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from workbench.errors import ConfigError, DataError, RunError
from workbench.model.added_tokens import (
    GENERATION_FILE,
    NewRow,
    TokenPlan,
    plan_tokens,
    with_new_rows,
)
from workbench.model.decoder import EMBEDDING, HEAD, parameter_shapes
from workbench.model.families import CONFIG_FILE, Dimensions, read_dimensions
from workbench.model.safetensors_reader import StoredTensor, is_finite, read_tensor
from workbench.model.safetensors_writer import num_bytes_of
from workbench.model.weights import stored_weights

TEMPLATE_FILE = "chat_template.jinja"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What a model folder has beside its weights. Code and what else may lie there does not go along.
_SMALL_FILES = (
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_LICENSES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
Tell = Callable[[str, int, int], None]
"""Told the stage, and how many bytes of how many are done."""


@dataclass(frozen=True)
class Wish:
    """What shall be different; None leaves a thing as it is.

    Attributes:
        dtype: of all weights.
        max_length: longest document, tokens.
        template: Jinja source of a chat template.
        added: tokens.
    """

    dtype: torch.dtype | None = None
    max_length: int | None = None
    template: str | None = None
    added: AddedTokens | None = None


@dataclass(frozen=True)
class Conversion:
    """What a conversion comes to, before or after it is done.

    Attributes:
        source: model folder.
        small_files: by name, what lies beside the weights.
        kinds: of every weight a tensor of its new shape and dtype without content, in order.
        changes: in words.
        notices: in words, what should be known.
        tokens: which are added, None where none are.
        dims: of the source.
        stored: where the source's weights lie.
    """

    source: Path
    small_files: Mapping[str, bytes]
    kinds: Mapping[str, Tensor]
    changes: tuple[str, ...]
    notices: tuple[str, ...]
    tokens: TokenPlan | None
    dims: Dimensions
    stored: Mapping[str, StoredTensor]

    @property
    def vocabulary_size(self) -> int:
        """Count the rows of the new embedding."""
        return self.kinds[EMBEDDING].shape[0]

    @property
    def num_bytes(self) -> int:
        """Count the bytes of the new folder, but for the headers of its weights."""
        weights = sum(num_bytes_of(kind) for kind in self.kinds.values())
        return weights + sum(len(content) for content in self.small_files.values())


def plan_conversion(source: Path, wish: Wish) -> Conversion:
    """Say what a conversion comes to; nothing is written.

    Raises:
        RunError: the source is no model of ours, or its files contradict each other.
        DataError: its tokenizer or a template cannot be used.
        ConfigError: what is wished for is not possible with this model.
    """
    dims = read_dimensions(source)
    stored = stored_weights(source, dims)
    config = _read_object(source, CONFIG_FILE)
    files = _small_files(source)
    changes, notices = _weight_changes(stored, wish), _without_code(config, files)
    if odd := find_weight_files(source).notice:
        notices.append(odd)
    tokens = None
    if wish.added is not None:
        tokens = plan_tokens(source, wish.added, dims.vocabulary_size)
        notices += tokens.notices
        changes += [
            f"{name} {old or 'none'} → {new}" for name, (old, new) in tokens.renamed.items()
        ]
        changes += [_row_words(row) for row in tokens.rows.values()]
        config |= tokens.config
        files |= {name: _as_json(content) for name, content in tokens.files.items()}
        if tokens.generation is not None:
            files[GENERATION_FILE] = _as_json(tokens.generation)
    if wish.max_length is not None:
        changes.append(f"longest document {dims.max_positions:,} → {wish.max_length:,} tokens")
        if wish.max_length > dims.max_positions:
            notices.append(f"the model was made for {dims.max_positions:,} tokens, not for more")
        _set_max_length(config, files, wish.max_length, dims)
    if wish.dtype is not None:
        named = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config |= dict.fromkeys(named, _name_of(wish.dtype))
    if wish.template is not None:
        changes.append("chat template replaced")
        _set_template(files, wish.template)
    files[CONFIG_FILE] = _as_json(config)
    new_dims = _checked_dimensions(config, dims, wish, where=str(source / CONFIG_FILE))
    kinds = {
        name: torch.empty(shape, dtype=_new_dtype(stored[name], wish), device="meta")
        for name, shape in parameter_shapes(new_dims).items()
    }
    return Conversion(source, files, kinds, tuple(changes), tuple(notices), tokens, dims, stored)


def _new_dtype(stored: StoredTensor, wish: Wish) -> torch.dtype:
    dtype = wish.dtype or stored.dtype
    assert dtype is not None, "stored_weights gives floating dtypes alone"
    return dtype


def _weight_changes(stored: Mapping[str, StoredTensor], wish: Wish) -> list[str]:
    dtypes = sorted({_name_of(each.dtype) for each in stored.values() if each.dtype is not None})
    changes = []
    if wish.dtype is not None and dtypes != [_name_of(wish.dtype)]:
        changes.append(f"weights {' and '.join(dtypes)} → {_name_of(wish.dtype)}")
    if any(each.path.suffix == ".bin" for each in stored.values()):
        changes.append(".bin → safetensors")
    return changes


def _row_words(row: NewRow) -> str:
    init = row.init if row.source is None else f"a copy of row {row.source}"
    return f"row {row.token_id} for {row.token}, begins as {init}"


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _small_files(source: Path) -> dict[str, bytes]:
    """Read what lies beside the weights; links out of the folder are refused."""
    names = [name for name in _SMALL_FILES if os.path.lexists(source / name)]
    names += sorted(path.name for pattern in _LICENSES for path in source.glob(pattern))
    files = {}
    for name in names:
        path = file_inside(source, name)
        if name not in _SMALL_FILES and not path.is_file():
            continue
        check_there(path)
        files[name] = path.read_bytes()
    return files


def _without_code(config: dict[str, Any], files: dict[str, bytes]) -> list[str]:
    """Drop what asks other programs to run code of the model's author."""
    notices = []
    if config.pop("auto_map", None) is not None:
        notices.append("config.json named code of the model's author (auto_map); left out")
    stated = _object(files.get(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG_FILE)
    if stated.pop("auto_map", None) is not None:
        files[TOKENIZER_CONFIG_FILE] = _as_json(stated)
        notices.append("tokenizer_config.json named code of the model's author; left out")
    return notices


def _set_max_length(
    config: dict[str, Any], files: dict[str, bytes], length: int, dims: Dimensions
) -> None:
    config["max_position_embeddings"] = length
    if TOKENIZER_CONFIG_FILE in files:
        stated = _object(files[TOKENIZER_CONFIG_FILE], TOKENIZER_CONFIG_FILE)
        files[TOKENIZER_CONFIG_FILE] = _as_json(stated | {"model_max_length": length})
    if dims.rotary.kind in ("yarn", "llama3"):
        # Left out, it means the longest document; then it would change along, and all positions.
        key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        if isinstance(parameters := config.get(key), dict):
            numbers = dict(dims.rotary.numbers)
            original = int(numbers["original_max_position_embeddings"])
            config[key] = {"original_max_position_embeddings": original} | parameters


def _set_template(files: dict[str, bytes], template: str) -> None:
    files[TEMPLATE_FILE] = template.encode()
    if TOKENIZER_CONFIG_FILE in files:
        stated = _object(files[TOKENIZER_CONFIG_FILE], TOKENIZER_CONFIG_FILE)
        stated.pop("chat_template", None)  # the file beside it would count, but not everywhere
        files[TOKENIZER_CONFIG_FILE] = _as_json(stated)


def _checked_dimensions(
    config: Mapping[str, Any], dims: Dimensions, wish: Wish, *, where: str
) -> Dimensions:
    """Read the new config; nothing but what was wished for may be different in it."""
    new = read_dimensions(config)
    expected = replace(
        dims,
        max_positions=wish.max_length or dims.max_positions,
        vocabulary_size=new.vocabulary_size,
    )
    if new.rotary != dims.rotary:
        raise ConfigError(
            f"with {dims.rotary.kind} rotary scaling another longest document changes the "
            "positions, and with them what the model says",
            where=where,
            remedy="leave out --max-length: documents may be shorter than the longest",
        )
    assert new == expected, (new, expected)
    return new


# ---- a weight ------------------------------------------------------------------------------------


def new_tensor(conversion: Conversion, name: str) -> Tensor:
    """Make a weight as it will be stored.

    Raises:
        RunError: it is not finite, or is not any more.
    """
    tensor = read_tensor(conversion.stored[name], must_be_finite=True)
    if conversion.tokens is not None and name in (EMBEDDING, HEAD):
        tensor = with_new_rows(tensor, conversion.tokens)
    dtype = conversion.kinds[name].dtype
    converted = tensor.to(dtype)
    if dtype != tensor.dtype and not is_finite(converted):
        raise RunError(
            f"{name} holds numbers too large for {_name_of(dtype)}",
            where=str(conversion.source),
            remedy="choose bfloat16 or float32",
        )
    return converted


# ---- small things --------------------------------------------------------------------------------


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(file_inside(folder, name), RunError)


def _object(content: bytes | None, name: str) -> dict[str, Any]:
    """Read a JSON object; of an absent file an empty one."""
    if content is None:
        return {}
    try:
        stated = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"cannot be read as JSON: {error}",
            where=name,
            remedy="copy the file anew from the model's source",
        ) from error
    if not isinstance(stated, dict):
        raise DataError(
            "is not a JSON object", where=name, remedy="copy the file anew from its source"
        )
    return stated


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
