"""A model folder as one GGUF file for llama.cpp and Ollama, written and read back tensor by tensor.

Architecture and names are llama.cpp's: what it computes as ``llama`` turns neighbours in a head
where Hugging Face turns halves, so rows of queries and keys are laid anew. What it cannot compute
is refused by the field; what it does only within a limit (a window, a dynamic scaling) limits the
context, and is told. Invariant: a file that is left here has been compared with the folder.

Source: the GGUF specification in the ggml repository, and the constants of the ``gguf`` library.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.config.template_source import own_template
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.model.families import Dimensions, read_dimensions
from workbench.model.gguf_tokenizer import TokenizerFields, tokenizer_fields
from workbench.model.ollama_file import modelfile
from workbench.model.rotary import scaled_frequencies
from workbench.model.safetensors_reader import StoredTensor, read_tensor
from workbench.model.weights import stored_weights
from workbench.runs.manifest import WrittenFile, hash_file, write_hashed

MODELFILE = "Modelfile"

_CHUNK_ELEMENTS = 16 << 20  # 64 MiB in fp32
_TURN_NEIGHBOURS = ("llama", "smollm3")
_LARGEST_F16 = 65504.0

Tell = Callable[[str, int, int], None]
Warn = Callable[[str, str], None]


@dataclass(frozen=True)
class Layout:
    """How llama.cpp sees a model.

    Attributes:
        architecture: its name there.
        turns_neighbours: rows of queries and keys are laid so that neighbours are turned.
        context: longest text within which it computes what the model computes.
        fields: of rotary positions: name to value.
        frequency_factors: (head_dim / 2,) fp32 by which frequencies are divided; None: by nothing.
        notices: what is limited, in words.
    """

    architecture: str
    turns_neighbours: bool
    context: int
    fields: Mapping[str, float | int | str]
    frequency_factors: NDArray[np.float32] | None
    notices: tuple[str, ...]


def write_gguf(
    folder: Path,
    kind: str,
    name: str,
    *,
    tell: Tell = lambda stage, done, total: None,
    warn: Warn = lambda what, remedy: None,
) -> dict[str, WrittenFile]:
    """Write a model folder's GGUF file and Modelfile into it, durable, and read the file back.

    Beside one tensor in fp32 little memory is taken.

    Args:
        folder: a complete model folder.
        kind: q8_0, bf16 or f16: how matrices are stored; vectors stay fp32.
        name: of the model, and of the file.
        tell: how far it is.
        warn: in what the file differs from the folder.

    Returns:
        File name to size and hash; the GGUF file comes first.

    Raises:
        ConfigError: the library is not installed.
        RunError: llama.cpp has no such model or tokenizer.
        WorkbenchError: what was read back is not what was written.
    """
    gguf = _library()
    dims = read_dimensions(folder)
    layout = layout_of(dims, str(folder))
    tokenizer = tokenizer_fields(folder, load_tokenizer(folder), dims.vocabulary_size)
    for notice in (*layout.notices, *tokenizer.notices):
        warn(f"GGUF: {notice}", "use the safetensors where that matters")
    path = folder / f"{_file_name(name)}-{kind}.gguf"
    parts = list(_parts(gguf, folder, dims, layout, kind))
    _write(gguf, path, name, kind, dims, layout, tokenizer, own_template(folder), parts, tell)
    _compare(gguf, path, dims, layout, tokenizer, own_template(folder), parts, tell)
    content, notices = modelfile(folder, path.name, layout.context)
    for what, remedy in notices:
        warn(f"Modelfile: {what}", remedy)
    return {
        path.name: hash_file(path),
        MODELFILE: write_hashed(folder / MODELFILE, content.encode()),
    }


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "the library gguf is not installed",
            where="--gguf",
            remedy="install it: pip install 'workbench[gguf]'",
        ) from error
    return gguf


def _file_name(name: str) -> str:
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in name)


# ---- what llama.cpp computes ---------------------------------------------------------------------


def layout_of(dims: Dimensions, where: str) -> Layout:
    """Find the architecture of llama.cpp that computes a model.

    Raises:
        RunError: there is none; the field that it lacks is named.
    """
    scaling, numbers = dims.rotary.kind, dict(dims.rotary.numbers)
    needs_factors = scaling == "llama3" or (scaling == "yarn" and not _is_usual_yarn(numbers))
    is_square = dims.num_heads * dims.head_dim == dims.hidden_size
    turned = [dims.is_turned(block) for block in range(dims.num_layers)]
    if not all(turned):
        # The one pattern that llama.cpp knows of blocks without positions.
        if turned != [(block + 1) % 4 != 0 for block in range(dims.num_layers)]:
            raise _refusal(where, "no_rope_layers: other blocks than every fourth")
        if dims.biased or dims.query_key_norm or needs_factors:
            raise _refusal(where, "no_rope_layers beside biases or such a rope_type")
        architecture = "smollm3"
    elif dims.query_key_norm:
        if dims.biased:
            raise _refusal(where, "attention_bias beside norms of queries and keys")
        if needs_factors:
            raise _refusal(where, f"rope_type {scaling} beside norms of queries and keys")
        architecture = "qwen3"
    elif dims.biased == ("q", "k", "v") and is_square and not needs_factors:
        architecture = "qwen2"
    else:
        architecture = "llama"
        if dims.biased and not is_square:
            raise _refusal(where, "head_dim: biases of heads that are not as wide as the model")
    fields: dict[str, float | int | str] = {"rope.freq_base": dims.rope_theta}
    factors = None
    notices = []
    context = dims.max_positions
    if needs_factors:
        plain = scaled_frequencies(dims.head_dim, dims.rope_theta, type(dims.rotary)())
        scaled = scaled_frequencies(dims.head_dim, dims.rope_theta, dims.rotary)
        factors = (plain / scaled).numpy().astype(np.float32)
        if scaling == "yarn":
            fields["rope.scaling.attn_factor"] = numbers["attention_factor"]
    elif scaling == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": numbers["factor"]}
    elif scaling == "yarn":
        original = int(numbers["original_max_position_embeddings"])
        fields |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": numbers["factor"],
            "rope.scaling.original_context_length": original,
        }
    elif scaling == "dynamic":
        notices.append(
            f"dynamic rotary scaling is left out: the context is {context:,} tokens, within which "
            "it changes nothing"
        )
    windows = [
        window
        for window in map(dims.window_of, range(dims.num_layers))
        if window is not None and window < context
    ]
    if windows:
        context = min(windows)
        notices.append(
            f"sliding windows are left out: the context is {context:,} tokens, within which they "
            "change nothing"
        )
    return Layout(
        architecture, architecture in _TURN_NEIGHBOURS, context, fields, factors, tuple(notices)
    )


def _refusal(where: str, what: str) -> RunError:
    return RunError(
        f"{what}: no architecture of llama.cpp computes that",
        where=where,
        remedy="publish without --gguf",
    )


def _is_usual_yarn(numbers: Mapping[str, float]) -> bool:
    """Say whether YaRN's numbers are those llama.cpp takes by itself.

    Betas that a file states had no effect in llama.cpp as of llama-cpp-python 0.3.36.
    """
    factor = numbers["factor"]
    sharpened = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return (
        bool(numbers["truncate"])
        and (numbers["beta_fast"], numbers["beta_slow"]) == (32.0, 1.0)
        and math.isclose(numbers["attention_factor"], sharpened, rel_tol=1e-6)
    )


# ---- tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A tensor of the file.

    Attributes:
        name: in the file.
        shape: (out, in), or (size,).
        type: of ``GGMLQuantizationType``.
        stored: where its numbers are; None for frequency factors.
        heads: its rows belong to so many heads, whose halves become neighbours; 0: they stay.
        values: those of frequency factors.
    """

    name: str
    shape: tuple[int, ...]
    type: Any
    stored: StoredTensor | None
    heads: int = 0
    values: NDArray[np.float32] | None = None

    def read(self) -> NDArray[np.float32]:
        """Read its numbers in fp32, in the order of the file."""
        if self.stored is None:
            assert self.values is not None, self.name
            return self.values
        numbers: NDArray[np.float32] = read_tensor(self.stored).to(torch.float32).numpy()
        if not self.heads:
            return numbers
        halves = numbers.reshape(self.heads, 2, -1, *numbers.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(numbers.shape))


def _parts(
    gguf: ModuleType, folder: Path, dims: Dimensions, layout: Layout, kind: str
) -> Iterator[_Part]:
    """List the file's tensors in order."""
    names = gguf.get_tensor_name_map(_architecture(gguf, layout), dims.num_layers)
    types = gguf.GGMLQuantizationType
    wanted = {"q8_0": types.Q8_0, "bf16": types.BF16, "f16": types.F16}[kind]
    block = gguf.GGML_QUANT_SIZES[types.Q8_0][0]
    if layout.frequency_factors is not None:
        factors = layout.frequency_factors
        yield _Part("rope_freqs.weight", factors.shape, types.F32, None, values=factors)
    for name, stored in stored_weights(folder, dims).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"{name} has no name in {layout.architecture}"
        matrix = types.F16 if wanted == types.Q8_0 and stored.shape[-1] % block else wanted
        heads = {"q_proj": dims.num_heads, "k_proj": dims.num_key_value_heads}
        projection = name.split(".")[-2]
        yield _Part(
            found,
            stored.shape,
            matrix if len(stored.shape) > 1 else types.F32,
            stored,
            heads.get(projection, 0) if layout.turns_neighbours else 0,
        )


def _architecture(gguf: ModuleType, layout: Layout) -> int:
    names: dict[int, str] = gguf.MODEL_ARCH_NAMES
    return next(each for each, name in names.items() if name == layout.architecture)


def _encoded(gguf: ModuleType, part: _Part) -> NDArray[Any]:
    """Give a tensor's numbers as the file holds them."""
    types = gguf.GGMLQuantizationType
    numbers = part.read()
    if part.type == types.F32:
        return numbers
    if part.type == types.F16:
        if float(np.abs(numbers).max(initial=0.0)) > _LARGEST_F16:
            raise RunError(
                f"{part.name} holds numbers beyond {_LARGEST_F16:,.0f}, which f16 cannot",
                where="--gguf",
                remedy="choose --gguf bf16, or q8_0",
            )
        return numbers.astype(np.float16)
    return np.concatenate([gguf.quants.quantize(rows, part.type) for rows in _chunks(numbers)])


def _chunks(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut a matrix into groups of rows that are encoded at a time."""
    step = max(1, _CHUNK_ELEMENTS // max(1, numbers[:1].size))
    for first in range(0, len(numbers), step):
        yield numbers[first : first + step]


# ---- writing -------------------------------------------------------------------------------------


def _write(
    gguf: ModuleType,
    path: Path,
    name: str,
    kind: str,
    dims: Dimensions,
    layout: Layout,
    tokenizer: TokenizerFields,
    template: str | None,
    parts: list[_Part],
    tell: Tell,
) -> None:
    writer = gguf.GGUFWriter(path, layout.architecture)
    for key, value in _fields(gguf, name, kind, dims, layout, tokenizer, template).items():
        writer.add_key_value(key, value, _value_type(gguf, value))
    sizes = {part.name: _num_bytes(gguf, part) for part in parts}
    for part in parts:
        shape = gguf.quant_shape_to_byte_shape(part.shape, part.type)
        is_plain = part.type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor_info(
            part.name,
            part.shape if is_plain else shape,
            np.dtype(np.float32 if is_plain else np.uint8),
            sizes[part.name],
            raw_dtype=part.type,
        )
    done, total = 0, sum(sizes.values())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for part in parts:
            tell("writing GGUF", done, total)
            writer.write_tensor_data(_encoded(gguf, part))
            done += sizes[part.name]
    finally:
        writer.close()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    tell("writing GGUF", total, total)


def _num_bytes(gguf: ModuleType, part: _Part) -> int:
    block, size = gguf.GGML_QUANT_SIZES[part.type]
    return int(np.prod(part.shape)) // int(block) * int(size)


Field = str | bool | int | float | list[str] | list[int] | list[float]


def _fields(
    gguf: ModuleType,
    name: str,
    kind: str,
    dims: Dimensions,
    layout: Layout,
    tokenizer: TokenizerFields,
    template: str | None,
) -> dict[str, Field]:
    """Give all metadata by key."""
    own = {
        "context_length": layout.context,
        "embedding_length": dims.hidden_size,
        "block_count": dims.num_layers,
        "feed_forward_length": dims.intermediate_size,
        "attention.head_count": dims.num_heads,
        "attention.head_count_kv": dims.num_key_value_heads,
        "attention.key_length": dims.head_dim,
        "attention.value_length": dims.head_dim,
        "attention.layer_norm_rms_epsilon": dims.norm_epsilon,
        "rope.dimension_count": dims.head_dim,
        "vocab_size": dims.vocabulary_size,
        **layout.fields,
    }
    types = gguf.LlamaFileType
    file_type = {
        "q8_0": types.MOSTLY_Q8_0,
        "bf16": types.MOSTLY_BF16,
        "f16": types.MOSTLY_F16,
    }[kind]
    fields: dict[str, Field] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(file_type),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        **{f"{layout.architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": tokenizer.kind,
        "tokenizer.ggml.pre": tokenizer.pre,
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": [int(each) for each in tokenizer.types],
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_eos,
        "tokenizer.ggml.add_space_prefix": tokenizer.adds_space,
    }
    if tokenizer.scores is not None:
        fields["tokenizer.ggml.scores"] = tokenizer.scores
    if tokenizer.merges is not None:
        fields["tokenizer.ggml.merges"] = tokenizer.merges
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot"}
    for short, number in tokenizer.special.items():
        fields[f"tokenizer.ggml.{names[short]}_token_id"] = number
    if template is not None:
        fields["tokenizer.chat_template"] = template
    return fields


def _value_type(gguf: ModuleType, value: Field) -> int:
    """Say as what a value is stored; llama.cpp reads whole numbers only where they are unsigned."""
    types = gguf.GGUFValueType
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    kind: int = kinds.get(type(value), types.ARRAY)
    return kind


# ---- reading back --------------------------------------------------------------------------------


def _compare(
    gguf: ModuleType,
    path: Path,
    dims: Dimensions,
    layout: Layout,
    tokenizer: TokenizerFields,
    template: str | None,
    parts: list[_Part],
    tell: Tell,
) -> None:
    """Read the file with the library and compare it with the folder, number by number.

    Raises:
        WorkbenchError: something is not what it should be.
    """
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != {part.name for part in parts}:
        raise _unequal(path, f"tensors {sorted(found.keys() ^ {part.name for part in parts})[:5]}")
    told = {
        "general.architecture": layout.architecture,
        f"{layout.architecture}.block_count": dims.num_layers,
        f"{layout.architecture}.context_length": layout.context,
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": [int(each) for each in tokenizer.types],
        **({"tokenizer.ggml.merges": tokenizer.merges} if tokenizer.merges else {}),
        **({"tokenizer.chat_template": template} if template is not None else {}),
    }
    for key, value in told.items():
        field = reader.get_field(key)
        if field is None or field.contents() != value:
            raise _unequal(path, key)
    for number, part in enumerate(parts):
        tell("comparing GGUF", number, len(parts))
        tensor = found[part.name]
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        if tensor.tensor_type != part.type or shape != part.shape:
            raise _unequal(path, f"{part.name}: {tensor.tensor_type.name} {shape}")
        _compare_numbers(gguf, path, part, tensor.data)
    tell("comparing GGUF", len(parts), len(parts))


def _compare_numbers(gguf: ModuleType, path: Path, part: _Part, data: NDArray[Any]) -> None:
    expected = part.read()
    types = gguf.GGMLQuantizationType
    # Half a unit in the last place that is kept, of the number or of its block's largest.
    relative = {types.F32: 0.0, types.F16: 2.0**-11, types.BF16: 2.0**-8, types.Q8_0: 0.0}[
        part.type
    ]
    data = data.reshape(len(expected), -1)
    expected = expected.reshape(len(expected), -1)
    step = max(1, _CHUNK_ELEMENTS // max(1, expected.shape[1]))
    for first in range(0, len(expected), step):
        rows = expected[first : first + step]
        read = gguf.quants.dequantize(data[first : first + step], part.type).reshape(rows.shape)
        allowed = np.abs(rows) * relative + (2.0**-24 if part.type == types.F16 else 0.0)
        if part.type == types.Q8_0:
            blocks = np.abs(rows).reshape(len(rows), -1, 32).max(axis=2, keepdims=True)
            # The scale itself is rounded to f16, and up to 127 units of it are taken.
            unit = np.maximum(blocks / 127.0, 2.0**-24)
            allowed = np.broadcast_to(
                unit * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25, (*blocks.shape[:2], 32)
            ).reshape(rows.shape)
        if not bool(np.all(np.abs(read - rows) <= allowed)):
            raise _unequal(path, f"numbers of {part.name}")


def _unequal(path: Path, what: str) -> WorkbenchError:
    return WorkbenchError(
        f"read back, it differs: {what}",
        where=path.name,
        remedy="report it with the model's config.json and the version of gguf",
    )
