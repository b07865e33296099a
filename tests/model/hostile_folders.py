"""Model folders that are damaged or made to harm, by what was done to a sound one."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.model.model_folders import change_json
from workbench.config.weight_files import BIN_FILE, BIN_INDEX_FILE, INDEX_FILE, SINGLE_FILE

Damage = Callable[[Path], None]

LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
REACHES = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
BUILDS = "{{ 'x' * 10**12 }}"
NORM = "model.norm.weight"
DEEP = "[" * 200_000


# ---- config.json ---------------------------------------------------------------------------------


def stated(**changes: object) -> Damage:
    """Say something else in config.json."""
    return lambda folder: change_json(folder / "config.json", **changes)


def scaled(**rope: object) -> Damage:
    """Say something else of the rotary positions."""
    parameters = {"rope_type": "default", "rope_theta": 10_000.0} | rope
    return lambda folder: change_json(folder / "config.json", rope_parameters=parameters)


def written(name: str, content: str | bytes) -> Damage:
    """Write other content into a file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def fifo(name: str) -> Damage:
    """Put a pipe in place of a file: whoever opens it waits for ever."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def folder_named(name: str) -> Damage:
    """Put a folder in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def link_loop(name: str) -> Damage:
    """Put a link to itself in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return damage


def sparse(name: str, num_bytes: int) -> Damage:
    """Put a file of zeros in place of another, which takes no room on the disk."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(num_bytes)

    return damage


CONFIG: dict[str, Damage] = {
    "hidden_size is 10**12": stated(hidden_size=10**12),
    "hidden_size is negative": stated(hidden_size=-32),
    "hidden_size is a string": stated(hidden_size="32"),
    "hidden_size is 2**70": stated(hidden_size=2**70),
    "hidden_size is a fraction": stated(hidden_size=32.5),
    "vocab_size is 10**15": stated(vocab_size=10**15),
    "num_hidden_layers is 10**9": stated(num_hidden_layers=10**9),
    "num_attention_heads is zero": stated(num_attention_heads=0),
    "num_key_value_heads is a list": stated(num_key_value_heads=[2]),
    "head_dim is 10**12": stated(head_dim=10**12),
    "max_position_embeddings is 10**18": stated(max_position_embeddings=10**18),
    "max_position_embeddings is a string": stated(max_position_embeddings="128"),
    "rope_theta is NaN": scaled(rope_theta=float("nan")),
    "rope_theta is infinite": scaled(rope_theta=float("inf")),
    "rope_theta is negative": scaled(rope_theta=-5.0),
    "rope_theta is a string": scaled(rope_theta="10000"),
    "rope_parameters is a list": stated(rope_parameters=[1, 2]),
    "rope_type is an object": scaled(rope_type={"a": 1}),
    "factor is NaN": scaled(rope_type="linear", factor=float("nan")),
    "factor is a list": scaled(rope_type="yarn", factor=[4.0]),
    "rms_norm_eps is NaN": stated(rms_norm_eps=float("nan")),
    "rms_norm_eps is 1e400": written("config.json", ""),
    "initializer_range is NaN": stated(initializer_range=float("nan")),
    "hidden_act is a list": stated(hidden_act=["silu"]),
    "model_type is a list": stated(model_type=["llama"]),
    "model_type is strange": stated(model_type="../../etc"),
    "tie_word_embeddings is a string": stated(tie_word_embeddings="no"),
    "attention_bias is a string": stated(attention_bias="perhaps"),
    "layer_types is 7": stated(model_type="qwen2", layer_types=7),
    "sliding_window is NaN": stated(model_type="mistral", sliding_window=float("nan")),
    "quantization_config is there": stated(quantization_config={"quant_method": "gptq", "bits": 4}),
    "config is deep": written("config.json", '{"a": ' + DEEP),
    "config is a list": written("config.json", "[]"),
    "config is empty": written("config.json", ""),
    "config is no UTF-8": written("config.json", b"\xff\xfe{}"),
    "config is a pipe": fifo("config.json"),
    "config is a folder": folder_named("config.json"),
    "config links to itself": link_loop("config.json"),
    "config is 1 GB": sparse("config.json", 1 << 30),
}


def _infinite_epsilon(folder: Path) -> None:
    change_json(folder / "config.json", rms_norm_eps=123.25)
    path = folder / "config.json"
    path.write_text(path.read_text().replace("123.25", "1e400"))


CONFIG["rms_norm_eps is 1e400"] = _infinite_epsilon


# ---- weights -------------------------------------------------------------------------------------


def _header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / SINGLE_FILE
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def header_field(field: str, value: object) -> Damage:
    """Say something else of one tensor in the header of the safetensors."""
    return lambda folder: _header(folder, lambda header: header[NORM].update({field: value}))


def _overlapping(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        first, second = [name for name in header if name != "__metadata__"][1:3]
        header[second]["data_offsets"] = list(header[first]["data_offsets"])

    _header(folder, change)


def _huge_header(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])


def _large_header(folder: Path) -> None:
    with (folder / SINGLE_FILE).open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20) + b"{")
        file.truncate(100 << 20)


def _deep_header(folder: Path) -> None:
    new = b'{"a": ' + DEEP.encode()
    (folder / SINGLE_FILE).write_bytes(struct.pack("<Q", len(new)) + new)


def _cut(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def tensors_with(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    """Write other weights."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / SINGLE_FILE)
        change(weights)
        save_file(weights, folder / SINGLE_FILE, {"format": "pt"})

    return damage


def _spoil(number: float) -> Damage:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = number

    return tensors_with(change)


def _without_norm(named: dict[str, Any]) -> None:
    del named[NORM]


def _whole(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = weights[NORM].to(torch.int64)


def _wide(weights: dict[str, torch.Tensor]) -> None:
    weights[NORM] = torch.ones(weights[NORM].numel() * 2)


def _flat(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["lm_head.weight"].t().contiguous()


def index_of(change: Callable[[dict[str, str]], None]) -> Damage:
    """Put the weights into a shard with an index, and change what the index says."""

    def damage(folder: Path) -> None:
        shard = "model-00001-of-00001.safetensors"
        holders = dict.fromkeys(load_file(folder / SINGLE_FILE), shard)
        (folder / SINGLE_FILE).rename(folder / shard)
        change(holders)
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": holders}))

    return damage


def _climb(folder: Path) -> None:
    (folder.parent / f"{folder.name}-outside").mkdir(exist_ok=True)
    outside = folder.parent / f"{folder.name}-outside" / "other.safetensors"
    names = list(load_file(folder / SINGLE_FILE))
    (folder / SINGLE_FILE).rename(outside)
    holders = dict.fromkeys(names, f"../{outside.parent.name}/other.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": holders}))


def _link_out(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    (folder / SINGLE_FILE).rename(outside)
    (folder / SINGLE_FILE).symlink_to(outside)


def _unknown_name(holders: dict[str, str]) -> None:
    holders["model.layers.99.evil.weight"] = next(iter(holders.values()))


def as_bin(write: Callable[[Path, dict[str, torch.Tensor]], None]) -> Damage:
    """Write the weights as ``.bin`` in some way of its own."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / SINGLE_FILE)
        (folder / SINGLE_FILE).unlink()
        write(folder / BIN_FILE, weights)

    return damage


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def _malicious(path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({**weights, "extra": _RunsCode(str(path.parent / "CODE_RAN"))}, path)


def _malicious_old(path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(
        {**weights, "extra": _RunsCode(str(path.parent / "CODE_RAN"))},
        path,
        _use_new_zipfile_serialization=False,
    )


def _bare_pickle(path: Path, weights: dict[str, torch.Tensor]) -> None:
    path.write_bytes(pickle.dumps(_RunsCode(str(path.parent / "CODE_RAN"))))


def _bomb(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """A pickle that is packed into a hundredth of what it becomes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
            entry.write(b"\x80\x02")
            for _ in range(300):
                entry.write(b"N0" * (1 << 19))
        archive.writestr("archive/version", b"3\n")


def _climbing_names(path: Path, weights: dict[str, torch.Tensor]) -> None:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as archive:
        for entry in source.infolist():
            archive.writestr(f"../../{entry.filename}", source.read(entry))


def _strided(stride: tuple[int, ...], offset: int = 0) -> Damage:
    """Let one tensor's numbers be taken in steps that lead out of what is stored."""

    def write(path: Path, weights: dict[str, torch.Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(OrderedDict(weights), buffer)
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as archive:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("data.pkl"):
                    content = _Restrided(weights, stride, offset).pickled()
                archive.writestr(entry.filename, content)

    return as_bin(write)


class _Restrided:
    """Pickles weights as torch does, but for the strides of the final norm."""

    def __init__(
        self, weights: dict[str, torch.Tensor], stride: tuple[int, ...], offset: int
    ) -> None:
        self.weights, self.stride, self.offset = weights, stride, offset

    def pickled(self) -> bytes:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, protocol=2)
        stand_ins = OrderedDict(
            (name, _Tensor(key, tensor, self.stride if name == NORM else None, self.offset))
            for key, (name, tensor) in enumerate(self.weights.items())
        )
        pickler.dump(stand_ins)
        return buffer.getvalue()


class _Storage:
    def __init__(self, key: int, size: int) -> None:
        self.key, self.size = key, size


class _Tensor:
    def __init__(
        self, key: int, tensor: torch.Tensor, stride: tuple[int, ...] | None, offset: int
    ) -> None:
        self.key, self.tensor = key, tensor
        self.stride = tensor.stride() if stride is None else stride
        self.offset = 0 if stride is None else offset

    def __reduce__(self) -> tuple[Any, ...]:
        storage = _Storage(self.key, self.tensor.numel())
        shape = tuple(self.tensor.shape)
        arguments = (storage, self.offset, shape, self.stride, False, OrderedDict())
        return (torch._utils._rebuild_tensor_v2, arguments)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if isinstance(obj, _Storage):
            return ("storage", torch.FloatStorage, str(obj.key), "cpu", obj.size)
        return None


def _bin_index_climbs(folder: Path) -> None:
    weights = load_file(folder / SINGLE_FILE)
    (folder / SINGLE_FILE).unlink()
    outside = folder.parent / f"{folder.name}-outside.bin"
    torch.save(weights, outside)
    holders = dict.fromkeys(weights, f"../{outside.name}")
    (folder / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": holders}))


WEIGHTS: dict[str, Damage] = {
    "index climbs out": _climb,
    "index of .bin climbs out": _bin_index_climbs,
    "index names a system file": index_of(
        lambda holders: holders.update(dict.fromkeys(holders, "/etc/hostname"))
    ),
    "index lacks a tensor": index_of(_without_norm),
    "index names a tensor that is nowhere": index_of(_unknown_name),
    "index names an absent shard": index_of(
        lambda holders: holders.update({NORM: "model-00002-of-00002.safetensors"})
    ),
    "index is deep": lambda folder: (
        (folder / SINGLE_FILE).unlink(),
        (folder / INDEX_FILE).write_text('{"weight_map": ' + DEEP),
    )[0],
    "index maps to numbers": index_of(
        lambda holders: holders.update(dict.fromkeys(holders, 7))  # type: ignore[arg-type]
    ),
    "weights are a link out": _link_out,
    "weights are a pipe": fifo(SINGLE_FILE),
    "weights are a folder": folder_named(SINGLE_FILE),
    "weights link to themselves": link_loop(SINGLE_FILE),
    "weights are empty": written(SINGLE_FILE, b""),
    "weights are text": written(SINGLE_FILE, "version https://git-lfs.github.com/spec/v1\n"),
    "header is huge": _huge_header,
    "header is large and no JSON": _large_header,
    "header is deep": _deep_header,
    "header overlaps": _overlapping,
    "header ends behind the file": header_field("data_offsets", [0, 1 << 60]),
    "header has a negative shape": header_field("shape", [-1, -32]),
    "header has 10**6 axes": header_field("shape", [1] * 10**6),
    "header has an unknown dtype": header_field("dtype", "F7"),
    "header has a dtype of another width": header_field("dtype", "F64"),
    "weights are cut": _cut,
    "a tensor is missing": tensors_with(_without_norm),
    "a tensor is too many": tensors_with(lambda weights: weights.update(evil=torch.ones(3))),
    "a tensor is whole numbers": tensors_with(_whole),
    "a tensor is too wide": tensors_with(_wide),
    "a tensor is turned": tensors_with(_flat),
    "a weight is NaN": _spoil(float("nan")),
    "a weight is infinite": _spoil(float("inf")),
    "pickle runs code": as_bin(_malicious),
    "old pickle runs code": as_bin(_malicious_old),
    "bare pickle runs code": as_bin(_bare_pickle),
    "pickle is a bomb": as_bin(_bomb),
    "archive's names climb out": as_bin(_climbing_names),
    "strides are negative": _strided((-1,), 31),
    "strides lead out": _strided((1 << 40,)),
    "an offset is negative": _strided((1,), -1000),
}


# ---- texts ---------------------------------------------------------------------------------------


def added_decoder(**entries: object) -> Damage:
    """List added tokens in tokenizer_config.json."""
    return lambda folder: change_json(
        folder / "tokenizer_config.json", added_tokens_decoder=entries
    )


def _cut_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-50])


def _empty_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"], content["model"]["merges"], content["added_tokens"] = {}, [], []
    path.write_text(json.dumps(content | {"post_processor": None}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def _rows_behind(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["far"] = 1 << 31
    path.write_text(json.dumps(content))


TEXTS: dict[str, Damage] = {
    "tokenizer is a pipe": fifo("tokenizer.json"),
    "tokenizer is a folder": folder_named("tokenizer.json"),
    "tokenizer is 200 MB": sparse("tokenizer.json", 200 << 20),
    "tokenizer is deep": written("tokenizer.json", DEEP),
    "tokenizer is cut": _cut_tokenizer,
    "tokenizer is a number": written("tokenizer.json", "7"),
    "tokenizer has no words": _empty_vocabulary,
    "tokenizer has ids beyond the embedding": _rows_behind,
    "tokenizer's config is deep": written("tokenizer_config.json", '{"a": ' + DEEP),
    "tokenizer's config is a list": written("tokenizer_config.json", "[]"),
    "tokenizer's config is a pipe": fifo("tokenizer_config.json"),
    "tokenizer's config lists tokens by words": added_decoder(first={"content": "<x>"}),
    "tokenizer's config names a number as eos": lambda folder: change_json(
        folder / "tokenizer_config.json", eos_token="<nowhere>"
    ),
    "template loops": written("chat_template.jinja", LOOPS),
    "template reaches": written("chat_template.jinja", REACHES),
    "template builds": written("chat_template.jinja", BUILDS),
    "template is no Jinja": written("chat_template.jinja", "{% for %}"),
    "template is 200 MB": sparse("chat_template.jinja", 200 << 20),
    "template is a pipe": fifo("chat_template.jinja"),
    "template is no UTF-8": written("chat_template.jinja", b"\xff\xfe"),
    "template in the config is a number": lambda folder: (
        (folder / "chat_template.jinja").unlink(),
        change_json(folder / "tokenizer_config.json", chat_template=7),
    )[1],
    "generation config is deep": written("generation_config.json", DEEP),
    "generation config is a list": written("generation_config.json", "[]"),
    "generation config is a pipe": fifo("generation_config.json"),
    "generation config ends with strings": written(
        "generation_config.json", '{"eos_token_id": "</s>"}'
    ),
    "generation config ends with what is negative": written(
        "generation_config.json", '{"eos_token_id": [-5]}'
    ),
    "generation config ends with what is huge": written(
        "generation_config.json", '{"eos_token_id": [123456789012345678901234567890]}'
    ),
    "generation config ends with NaN": written("generation_config.json", '{"eos_token_id": NaN}'),
    "generation config ends with objects": written(
        "generation_config.json", '{"eos_token_id": [{"a": 1}]}'
    ),
}

ALL = CONFIG | WEIGHTS | TEXTS
