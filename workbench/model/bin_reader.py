"""Says where the tensors of a ``.bin`` file lie; nothing in it is run, and no tensor is read.

``torch.save`` writes a pickle, which is a program, and beside it the tensors' bytes as they are.
The few instructions that a dictionary of tensors needs are followed here by hand: names, dtypes,
shapes and offsets come of it, and never an object or a call. Everything else is refused by its
name. What is given reads like a safetensors file: ``safetensors_reader.read_into`` takes both.

Both forms are known: the zip of torch 1.6 and later, whose entries are stored as they are, and the
older one, where storages follow the pickle. Source: ``torch/serialization.py``, and the opcodes in
``pickletools``.
"""

import io
import math
import pickletools
import struct
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from workbench.errors import RunError
from workbench.model.safetensors_reader import CODES, StoredTensor, item_bytes, unreadable

_MAX_PICKLE_BYTES = 100_000_000  # as headers of safetensors
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_AXES = 64  # as torch
_ZIP_BEGIN = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30

_STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.BFloat16Storage": "BF16",
    "torch.HalfStorage": "F16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
assert set(_STORAGES.values()) == set(CODES.values())

_DICTIONARIES = ("collections.OrderedDict", "__builtin__.dict", "builtins.dict")
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"


@dataclass(frozen=True)
class _Name:
    """What the pickle would import."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """Bytes that tensors lie in."""

    code: str
    key: str
    num_elements: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RefusedError(Exception):
    """What a file asks for that weights do not need, or what in it contradicts itself."""


def read_bin_header(path: Path) -> dict[str, StoredTensor]:
    """Say which tensors a file of ``torch.save`` holds, and where; nothing of them is read.

    Raises:
        RunError: the file cannot be read, is cut short, contradicts itself, or holds anything but
            a dictionary of tensors.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            is_zip = file.read(len(_ZIP_BEGIN)) == _ZIP_BEGIN
            file.seek(0)
            content, places = _read_zip(file) if is_zip else _read_old(file)
        tensors = _tensors_of(content)
        _check_places(tensors, places, size)
        return {name: _stored(path, name, tensor, places) for name, tensor in tensors.items()}
    except _RefusedError as error:
        raise RunError(
            f"is no file of weights alone: {error}",
            where=str(path),
            remedy="download the model's .safetensors files from a source you trust",
        ) from error
    # What pickletools, zipfile and struct say of a damaged file; overflows come of huge numbers.
    except (
        OSError,
        ValueError,
        LookupError,
        EOFError,
        MemoryError,
        NotImplementedError,
        OverflowError,
        RecursionError,
        TypeError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise unreadable(path, str(error) or type(error).__name__) from error


# ---- the two forms -------------------------------------------------------------------------------


def _read_zip(file: IO[bytes]) -> tuple[object, dict[str, tuple[int, int]]]:
    """Read the pickle of a zip, and where each storage begins and how many bytes it has."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (name,) = [name for name in entries if name.endswith("/data.pkl")] or ["data.pkl"]
        folder = name.removesuffix("data.pkl")
        if entries[name].file_size > _MAX_PICKLE_BYTES:
            raise _RefusedError("its pickle is too large")
        order = entries.get(f"{folder}byteorder")
        if order is not None and _short(archive, order) != sys.byteorder.encode():
            raise _RefusedError("it was written with the other order of bytes")
        content = _follow(io.BytesIO(archive.read(entries[name])))
        places = {}
        for path, entry in entries.items():
            if not path.startswith(f"{folder}data/"):
                continue
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise _RefusedError(f"its entry {path} is compressed or encrypted")
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
            name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
            begin = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            places[path.removeprefix(f"{folder}data/")] = (begin, entry.file_size)
    return content, places


def _short(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read the first bytes of an entry; one that is packed may be huge."""
    with archive.open(entry) as file:
        return file.read(16)


def _read_old(file: IO[bytes]) -> tuple[object, dict[str, tuple[int, int]]]:
    """Read the pickles of the older form, and where each storage begins and how long it is."""
    if _follow(file) != _OLD_MAGIC:
        raise _RefusedError("it was not written by torch.save")
    _follow(file)  # the version of the form, of which there is one
    machine = _follow(file)
    if isinstance(machine, dict) and machine.get("little_endian") is not True:
        raise _RefusedError("it was written with the other order of bytes")
    storages: dict[str, _Storage] = {}
    content = _follow(file, storages)
    keys = _follow(file)
    if not isinstance(keys, list):
        raise _RefusedError("its list of storages is none")
    places = {}
    for key in keys:
        if type(key) is not str:
            raise _RefusedError("its list of storages is none")
        (num_elements,) = struct.unpack("<q", file.read(8))
        num_bytes = num_elements * item_bytes(storages[key].code)
        if num_bytes < 0:
            raise _RefusedError(f"its storage {key} has a negative length")
        places[key] = (file.tell(), num_bytes)
        file.seek(num_bytes, io.SEEK_CUR)
    return content, places


# ---- the pickle, followed by hand ----------------------------------------------------------------

_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PLAIN = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT", "BINUNICODE"}
    | {"SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING"}
)
_SIGNS = frozenset({"PROTO", "FRAME"})


def _follow(file: IO[bytes], storages: dict[str, _Storage] | None = None) -> Any:  # noqa: ANN401
    """Follow one pickle to its end: dictionaries, lists, numbers, texts, and tensors as places.

    Args:
        file: at the pickle's first byte; left behind its last.
        storages: told which storages it speaks of.

    Raises:
        _RefusedError: an instruction, an import or a call that weights do not need.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    begin = file.tell()

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        if position is not None and position - begin > _MAX_PICKLE_BYTES:
            raise _RefusedError("its pickle is too large")
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _SIGNS:
            continue
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(stack[-count:])
            del stack[-count:]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            added = since_mark() if name == "APPENDS" else [stack.pop()]
            _as_kind(stack[-1], list).extend(added)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEMS":
                pairs = since_mark()
            else:
                pairs = stack[-2:]
                del stack[-2:]
            _fill(_as_kind(stack[-1], dict), pairs[::2], pairs[1::2])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]  # type: ignore[arg-type]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])  # type: ignore[arg-type]
        elif name == "GLOBAL":
            stack.append(_Name(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            module, attribute = stack.pop(-2), stack.pop()
            stack.append(_Name(f"{_as_kind(module, str)}.{_as_kind(attribute, str)}"))
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            if storages is not None:
                storages[storage.key] = storage
            stack.append(storage)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of a dictionary, which say nothing of weights
            if not isinstance(stack[-1], dict):
                raise _RefusedError("it sets attributes of an object")
        elif name == "STOP":
            return stack.pop()
        else:
            raise _RefusedError(f"its pickle has the instruction {name}")
    raise _RefusedError("its pickle has no end")


def _fill(into: dict[str, object], names: list[Any], values: list[Any]) -> None:
    """Fill a dictionary whose keys are texts; others may take for ever to compare."""
    for name, value in zip(names, values, strict=True):
        if type(name) is not str:
            raise _RefusedError(f"it has a {type(name).__name__} for a name")
        into[name] = value


def _as_kind(value: Any, kind: type) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise _RefusedError(f"it takes a {type(value).__name__} for a {kind.__name__}")
    return value


def _storage(said: object) -> _Storage:
    """Take a storage from what the pickle says of it: its kind, key, device and length."""
    if not isinstance(said, tuple) or len(said) not in (5, 6) or said[0] != "storage":
        raise _RefusedError("it refers to something outside of it")
    _, kind, key, _, num_elements = said[:5]
    code = _STORAGES.get(kind.text) if isinstance(kind, _Name) else None
    if code is None:
        name = kind.text if isinstance(kind, _Name) else type(kind).__name__
        raise _RefusedError(f"it holds a {name[:80]}, which is not read here")
    if len(said) == 6 and said[5] is not None:
        raise _RefusedError("a storage of it is part of another")
    if type(key) is not str or type(num_elements) is not int or num_elements < 0:
        raise _RefusedError("a storage of it has no key or no length")
    return _Storage(code, key, num_elements)


def _made(function: object, arguments: object) -> object:
    """Give what a call would make, of the four that a dictionary of tensors needs."""
    # Never by repr: what lies within itself a hundred times over would be written out.
    called = function.text[:80] if isinstance(function, _Name) else type(function).__name__
    if not isinstance(arguments, tuple):
        raise _RefusedError(f"it calls {called} without arguments")
    if called in _DICTIONARIES:
        if not arguments:
            return {}
        (pairs,) = arguments
        made: dict[str, object] = {}
        for pair in _as_kind(pairs, list):
            name, value = _as_kind(pair, tuple)
            _fill(made, [name], [value])
        return made
    if called == _TENSOR:
        return _tensor(arguments)
    if called == _PARAMETER:
        return arguments[0]
    if called == "torch.Size":
        (sizes,) = arguments
        return tuple(sizes)
    raise _RefusedError(f"it would call {called}")


def _tensor(arguments: tuple[Any, ...]) -> _Tensor:
    storage, offset, shape, strides = arguments[:4]
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or any(type(number) is not int or number < 0 for number in numbers)
        or len(shape) != len(strides)
        or len(shape) > _MAX_AXES
    ):
        raise _RefusedError("a tensor of it has no storage or no shape")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


# ---- what comes of it ----------------------------------------------------------------------------


def _tensors_of(content: object) -> dict[str, _Tensor]:
    """Take the tensors from what the pickle makes."""
    if not isinstance(content, dict):
        raise _RefusedError(f"it holds a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(tensor, _Tensor):
            kind = type(tensor).__name__.lstrip("_").lower()
            raise _RefusedError(f"its entry {name[:80]!r} is a {kind}, not a tensor")
    return content


def _check_places(
    tensors: Mapping[str, _Tensor], places: Mapping[str, tuple[int, int]], size: int
) -> None:
    """See that storages lie within the file and not upon each other, and tensors within them."""
    end = 0
    for key, (begin, num_bytes) in sorted(places.items(), key=lambda place: place[1]):
        if num_bytes and begin < end:
            raise _RefusedError(f"its storage {key} lies upon another")
        end = max(end, begin + num_bytes)
    if end > size:
        raise ValueError(f"storages end at byte {end:,}, the file at {size:,}")
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in places:
            raise ValueError(f"the storage of {name} is not there")
        _, num_bytes = places[storage.key]
        needed = (tensor.offset + math.prod(tensor.shape)) * item_bytes(storage.code)
        if storage.num_elements * item_bytes(storage.code) != num_bytes or needed > num_bytes:
            raise _RefusedError(f"the place of {name} contradicts its shape or its storage")
        if not _is_contiguous(tensor):
            raise _RefusedError(
                f"{name} does not lie in one piece (strides {list(tensor.strides)})"
            )


def _is_contiguous(tensor: _Tensor) -> bool:
    if math.prod(tensor.shape) == 0:
        return True
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _stored(
    path: Path, name: str, tensor: _Tensor, places: Mapping[str, tuple[int, int]]
) -> StoredTensor:
    size = item_bytes(tensor.storage.code)
    begin, _ = places[tensor.storage.key]
    num_bytes = math.prod(tensor.shape) * size
    return StoredTensor(
        path, tensor.storage.code, tensor.shape, begin + tensor.offset * size, num_bytes, name
    )
