"""Prepares a model: dtype, longest document, chat template, added tokens, shards of safetensors.

Whatever is not asked for stays as it is: config.json keeps every other key, and each weight its
dtype. Weights go from file to file one tensor at a time; then the new folder is compared with the
source, every tensor and the logits, one block at a time, so that no model is in memory as a whole.
Invariant: at the destination there is nothing, or a folder that passed; the source is only read.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.config.added_tokens_file import AddedTokens
from workbench.config.template_source import own_template
from workbench.config.weight_files import file_inside, find_weight_files
from workbench.data.chat_template import ChatTemplate
from workbench.data.stops import end_ids_of
from workbench.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, load_tokenizer
from workbench.errors import ConfigError, DataError, RefusedError, RunError, WorkbenchError
from workbench.model.added_tokens import GENERATION_FILE, TokenPlan, plan_tokens, with_new_rows
from workbench.model.decoder import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    block_forward,
    block_parameters,
    block_prefix,
    embed,
    final_norm,
    parameter_shapes,
    row_context,
)
from workbench.model.families import CONFIG_FILE, Dimensions, read_dimensions
from workbench.model.safetensors_reader import StoredTensor, is_finite, read_tensor
from workbench.model.safetensors_writer import (
    MAX_SHARD_BYTES,
    num_bytes_of,
    plan_shards,
    write_in_turn,
)
from workbench.model.streamed_logits import probe_ids, relative_difference
from workbench.model.weights import SINGLE_FILE, stored_weights, write_index
from workbench.runs.manifest import WrittenFile, write_hashed
from workbench.runs.whole_folder import whole_folder

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
_MAX_SMALL_BYTES = 256 << 20
_SLACK_BYTES = 16 << 20
# Of the same numbers by the same program: only the order of sums within a product may differ.
_SAME = 1e-6

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


@dataclass(frozen=True)
class Converted:
    """A folder that was made.

    Attributes:
        path: of it.
        files: name to size and hash.
        difference: of its logits from the source's, both with weights of the new dtype, relative.
        rounding: how far the new dtype alone moves the logits, relative; 0 where it is the old one.
    """

    path: Path
    files: Mapping[str, WrittenFile]
    difference: float
    rounding: float

    @property
    def bytes(self) -> int:
        """Sum over all files."""
        return sum(written.bytes for written in self.files.values())


# ---- what it comes to ----------------------------------------------------------------------------


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
        changes += [_row_words(row.token, row.token_id, row.init) for row in tokens.rows.values()]
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


def _row_words(token: str, token_id: int, init: str) -> str:
    return f"row {token_id} for {token}, begins as {init}"


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _small_files(source: Path) -> dict[str, bytes]:
    """Read what lies beside the weights; links out of the folder are refused."""
    names = [name for name in _SMALL_FILES if (source / name).is_file()]
    names += sorted(path.name for pattern in _LICENSES for path in source.glob(pattern))
    files = {}
    for name in names:
        path = file_inside(source, name)
        if not path.is_file():
            continue
        if path.stat().st_size > _MAX_SMALL_BYTES:
            raise RunError(
                f"{name} is larger than any such file should be",
                where=str(source),
                remedy="copy it anew from the model's source",
            )
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


# ---- doing it ------------------------------------------------------------------------------------


def convert(
    conversion: Conversion,
    destination: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    tell: Tell = lambda stage, done, total: None,
) -> Converted:
    """Make the new folder, and prove that it is the same model.

    Args:
        conversion: what it comes to.
        destination: a folder that is not there yet.
        max_shard_bytes: no file of weights holds more, unless a single tensor does.
        tell: how far it is.

    Raises:
        RunError: the destination is taken or cannot be written, or a weight is not finite.
        RefusedError: there is no room.
        WorkbenchError: the new folder is not the same model. Nothing is at the destination then.
    """
    with whole_folder(destination) as partial:
        free = shutil.disk_usage(partial).free
        if free < conversion.num_bytes + _SLACK_BYTES:
            raise RefusedError(
                f"needs {conversion.num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free",
                where=str(destination.parent),
                remedy="free space, or name a folder on another disk",
            )
        files = {
            name: write_hashed(partial / name, content)
            for name, content in conversion.small_files.items()
        }
        files |= _write_weights(conversion, partial, max_shard_bytes, tell)
        _check_texts(conversion, partial)
        difference, rounding = compare(conversion, partial, tell)
    return Converted(destination, files, difference, rounding)


def _write_weights(
    conversion: Conversion, partial: Path, max_shard_bytes: int, tell: Tell
) -> dict[str, WrittenFile]:
    shards = plan_shards(partial / SINGLE_FILE, conversion.kinds, max_shard_bytes)
    total = sum(num_bytes_of(kind) for kind in conversion.kinds.values())
    done = 0

    def tensors(names: Sequence[str]) -> Iterator[Tensor]:
        nonlocal done
        for name in names:
            tell("writing", done, total)
            yield _new_tensor(conversion, name)
            done += num_bytes_of(conversion.kinds[name])

    written = {
        path.name: write_in_turn(path, kinds, tensors(list(kinds)))
        for path, kinds in shards.items()
    }
    tell("writing", total, total)
    return written | write_index(shards)


def _new_tensor(conversion: Conversion, name: str) -> Tensor:
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


# ---- proving it ----------------------------------------------------------------------------------


def _check_texts(conversion: Conversion, folder: Path) -> None:
    """See that tokenizer and template work, and agree with the embedding.

    Raises:
        DataError: they do not; a tokenizer that names no end among it.
    """
    if TOKENIZER_FILE not in conversion.small_files:
        return
    tokenizer = load_tokenizer(folder)
    num_rows = conversion.vocabulary_size
    if tokenizer.vocabulary_size > num_rows:
        raise DataError(
            f"has ids up to {tokenizer.vocabulary_size - 1:,}, the embedding {num_rows:,} rows",
            where=str(conversion.source / TOKENIZER_FILE),
            remedy="give them rows: --add-tokens",
        )
    if not end_ids_of(folder, tokenizer):
        raise DataError(
            "names no token that ends a text",
            where=str(conversion.source / TOKENIZER_CONFIG_FILE),
            remedy="name one: --add-tokens FILE, with eos_token in it",
        )
    for row in conversion.tokens.rows.values() if conversion.tokens is not None else ():
        ids = [int(number) for number in tokenizer.encode([row.token])[0].ids]
        if ids != [row.token_id]:
            raise DataError(
                f"reads {row.token!r} as the ids {ids}, not as {row.token_id}",
                where=str(conversion.source / TOKENIZER_FILE),
                remedy="choose another text for the token",
            )
    source = own_template(folder)
    if source is not None:
        template = ChatTemplate(source, tokenizer.special_tokens)
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        try:
            template.render(turns)
        except DataError as error:
            raise DataError(
                error.what,
                where=f"{conversion.source} {error.where}",
                remedy="choose another template: -t chatml",
            ) from error


def compare(
    conversion: Conversion, folder: Path, tell: Tell = lambda stage, done, total: None
) -> tuple[float, float]:
    """Compare a new folder with its source: every tensor, and the logits of a few rows.

    What is expected is computed of the source, in the new dtype; one block at a time is in memory.

    Args:
        conversion: what was done.
        folder: what came of it.
        tell: how far it is.

    Returns:
        How far the logits are from those of the source with weights of the new dtype, and how far
        these are from those of the source as it is; relative to their norm.

    Raises:
        WorkbenchError: a tensor or the logits are not what they should be.
        RunError: the new folder cannot be read.
    """
    dims, new_dims = conversion.dims, read_dimensions(folder)
    walk = _Comparison(conversion, stored_weights(folder, new_dims), tell)
    ids = probe_ids(dims)
    starts = torch.zeros((len(ids), 1), dtype=torch.int32)
    # What is expected, what is there, and where the dtype changes the source as it is.
    models = [dims, new_dims, *([dims] if walk.is_rounded else [])]
    contexts = [row_context(starts, ids.shape[1], each, torch.float32, "dense") for each in models]
    with torch.inference_mode():
        states = [embed(weight, ids) for weight in walk.read(EMBEDDING)]
        for block in range(dims.num_layers):
            weights: list[dict[str, Tensor]] = [{} for _ in models]
            for name in block_parameters(dims):
                read = walk.read(block_prefix(block) + name)
                for held, tensor in zip(weights, read, strict=True):
                    held[name] = tensor
            states = [
                block_forward(held, x, context, each, block)
                for held, x, context, each in zip(weights, states, contexts, models, strict=True)
            ]
        norms = walk.read(FINAL_NORM)
        states = [final_norm(norm, x, dims) for norm, x in zip(norms, states, strict=True)]
        heads = walk.read(EMBEDDING if dims.tied else HEAD)
        expected, found, *exact = (
            F.linear(x, head)[..., : dims.vocabulary_size]
            for x, head in zip(states, heads, strict=True)
        )
    # Rows that begin anew in place of padding give other logits, and are none of the source's.
    kept = torch.ones(dims.vocabulary_size, dtype=torch.bool)
    if conversion.tokens is not None:
        kept[[row for row in conversion.tokens.rows if row < dims.vocabulary_size]] = False
    difference = relative_difference(found[..., kept], expected[..., kept])
    if not difference <= _SAME:
        raise WorkbenchError(
            f"logits differ from the source's by {difference:.1e}, allowed is {_SAME:.0e}",
            where=str(folder),
            remedy="report it with the model's config.json; nothing was kept",
        )
    rounding = relative_difference(expected[..., kept], exact[0][..., kept]) if exact else 0.0
    return difference, rounding


class _Comparison:
    """Reads each weight from both folders, and compares it on the way."""

    def __init__(
        self, conversion: Conversion, stored: Mapping[str, StoredTensor], tell: Tell
    ) -> None:
        self._conversion, self._stored, self._tell = conversion, stored, tell
        self._done, self._total = 0, sum(each.num_bytes for each in stored.values())
        self.is_rounded = any(
            conversion.kinds[name].dtype != each.dtype for name, each in conversion.stored.items()
        )

    def read(self, name: str) -> list[Tensor]:
        """Give a weight as it should be, as it is, and where dtypes change the source's; in fp32.

        Raises:
            WorkbenchError: it is not what it should be.
        """
        expected = _new_tensor(self._conversion, name)
        found = read_tensor(self._stored[name])
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            raise WorkbenchError(
                f"{name} is not what was to be written",
                where=str(self._stored[name].path),
                remedy="check the disk, then convert anew; nothing was kept",
            )
        self._done += self._stored[name].num_bytes
        self._tell("comparing", min(self._done, self._total), self._total)
        both = [expected.float(), found.float()]
        if not self.is_rounded:
            return both
        return [*both, read_tensor(self._conversion.stored[name]).float()]


# ---- small things --------------------------------------------------------------------------------


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    return _object(file_inside(folder, name).read_bytes(), name)


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
