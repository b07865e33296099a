"""A model folder to a model of ``transformers`` on a device, ready to generate.

Reads local files only and never runs their code. A model that is larger than its device lies in
part in host memory, or on disk, from where each token brings it (``accelerate``'s device map).
Invariant: what cannot be loaded is refused with its folder and what to do, and what will be slow is
said before it is loaded.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from workbench.config.json_file import read_json_object
from workbench.config.model_facts import TRAINABLE_FAMILIES
from workbench.config.rates import rates_of
from workbench.config.weight_files import find_weight_files
from workbench.errors import ConfigError, RefusedError, RunError
from workbench.model.families import read_dimensions
from workbench.model.weights import stored_weights
from workbench.runs.host_memory import available_host_memory
from workbench.runs.rates_file import read_rates

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

# Of a device's memory, for keys and values and what a forward needs besides the weights.
_RESERVED_SHARE, _MOST_RESERVED_BYTES = 0.2, 4 << 30
# Copies from memory that is not pinned, which is what accelerate keeps weights in, take so much of
# the link; a file in the page cache so many bytes per second. Both are assumptions, rather low.
_UNPINNED_SHARE, _FILE_BYTES_PER_SECOND = 0.4, 1e9
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Placement:
    """Where weights go that do not all fit on their device.

    Attributes:
        device_bytes: on the device.
        host_bytes: in host memory; 0 where the device is the CPU.
        disk_bytes: left in their files.
        tokens_per_second: of a single reply, expected.
    """

    device_bytes: int
    host_bytes: int
    disk_bytes: int
    tokens_per_second: float

    @property
    def words(self) -> str:
        """Say it to a person."""
        parts = [
            f"{size / 1e9:,.2f} GB {where}"
            for size, where in (
                (self.device_bytes, "of weights on the device"),
                (self.host_bytes, "in host memory"),
                (self.disk_bytes, "on disk"),
            )
            if size
        ]
        return f"{', '.join(parts)}: about {self.tokens_per_second:,.2g} tokens/s expected"


def place(
    weight_bytes: int,
    device_bytes: int,
    host_bytes: int,
    *,
    memory_rate: float,
    up_rate: float,
    file_rate: float = _FILE_BYTES_PER_SECOND,
) -> Placement:
    """Share weights out: the device is filled first, then host memory, and the rest stays on disk.

    A token needs every weight once: 10 GB at 500 GB/s on the device and 20 GB at 10 GB/s from the
    host take 0.02 + 2 seconds.

    Args:
        weight_bytes: of the whole model.
        device_bytes: that weights may take of the device.
        host_bytes: that they may take of host memory; 0 where the device is the CPU.
        memory_rate: bytes per second that the device reads its own memory with.
        up_rate: bytes per second from host memory to the device.
        file_rate: bytes per second from files.
    """
    on_device = min(weight_bytes, device_bytes)
    in_host = min(weight_bytes - on_device, host_bytes)
    on_disk = weight_bytes - on_device - in_host
    seconds = on_device / memory_rate + in_host / up_rate + on_disk / file_rate
    return Placement(on_device, in_host, on_disk, 1 / seconds)


def load_model(
    folder: Path,
    device_name: str,
    dtype_name: DtypeName,
    *,
    memory_gib: float | None = None,
    narrate: Callable[[str], None] | None = None,
) -> tuple[Any, torch.device]:
    """Load a model from files that are on this machine, ready to generate.

    Args:
        folder: in Hugging Face layout.
        device_name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype_name: of the weights; ``auto`` takes what config.json says.
        memory_gib: weights take no more of the device; None: as much as is free.
        narrate: is told where weights go that do not all fit, before they are loaded.

    Returns:
        The model, and the device that takes its inputs.

    Raises:
        RunError: the folder holds no model that transformers can load without remote code.
        ConfigError: there is no such device.
        RefusedError: the model does not fit on the device, and cannot be shared out.
    """
    device = choose_device(device_name)
    _check_folder(folder)
    placement = _placement(folder, device, dtype_name, memory_gib)
    how: dict[str, Any] = {}
    if placement is not None:
        _require_accelerate(folder)
        if narrate is not None:
            narrate(placement.words)
        room: dict[int | str, int] = {"cpu": placement.device_bytes}
        if device.type == "cuda":
            room = {device.index or 0: placement.device_bytes, "cpu": placement.host_bytes}
        how = {"device_map": "auto", "max_memory": room}
    is_safe = find_weight_files(folder).files[0].suffix == ".safetensors"
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype_name == "auto" else getattr(torch, dtype_name),
            local_files_only=True,
            trust_remote_code=False,
            # Of .bin files transformers reads weights only, never what a pickle may run.
            use_safetensors=is_safe,
            **how,
        )
    except Exception as error:  # strangers' files meet every part of the library
        raise RunError(
            f"cannot be loaded: {_first_line(error)}",
            where=str(folder),
            remedy="name a folder with config.json and weights as safetensors or .bin",
        ) from error
    if placement is None:
        try:
            model.to(device)
        except torch.OutOfMemoryError as error:
            raise RefusedError(
                f"the model does not fit on {device}",
                where=str(folder),
                remedy="free the device, or serve with --device cpu",
            ) from error
    model.eval()
    if placement is None:
        _check_finite(model, device, folder)
    # What a model's own file suggests would fill every value that a request leaves out.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model, device


def _check_folder(folder: Path) -> None:
    """See that a folder holds the model that its config describes, where we know its family.

    transformers draws at random what is missing, and follows links out of the folder.

    Raises:
        RunError: it does not.
    """
    find_weight_files(folder)
    try:
        config = read_json_object(folder / "config.json", RunError)
    except FileNotFoundError as error:
        raise RunError(
            "has no config.json", where=str(folder), remedy="name a model folder"
        ) from error
    is_quantized = config.get("quantization_config") is not None
    if not isinstance(config.get("model_type"), str):
        raise RunError(
            f"model_type is {config.get('model_type')!r}, not the name of a family",
            where=str(folder / "config.json"),
            remedy="copy the file anew from the model's source",
        )
    if config["model_type"] in TRAINABLE_FAMILIES and not is_quantized:
        stored_weights(folder, read_dimensions(folder))


def _check_finite(model: Any, device: torch.device, folder: Path) -> None:  # noqa: ANN401
    """Let the model say one token: a weight that is not finite spoils all its logits.

    Raises:
        RunError: it does.
    """
    with torch.inference_mode():
        logits = model(torch.zeros((1, 1), dtype=torch.int64, device=device)).logits
    if not bool(logits.isfinite().all()):
        raise RunError(
            "its logits are not finite: a weight is none, or too large for the dtype",
            where=str(folder),
            remedy="serve another checkpoint, or with --dtype float32",
        )


def _placement(
    folder: Path, device: torch.device, dtype_name: DtypeName, memory_gib: float | None
) -> Placement | None:
    """Share weights out where they do not fit; None where they do."""
    weight_bytes = _weight_bytes(folder, dtype_name)
    host = available_host_memory()
    host_bytes = weight_bytes if host is None else int(host.available_bytes * 0.9)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = free - int(min(_RESERVED_SHARE * total, _MOST_RESERVED_BYTES))
        name = torch.cuda.get_device_name(device)
        rates = rates_of(gpu_name=name, measured=read_rates(name))
    else:
        room, host_bytes = host_bytes, 0
        rates = rates_of(gpu_name=None, is_gpu=False)
    if memory_gib is not None:
        room = min(room, int(memory_gib * (1 << 30)))
    if weight_bytes <= room:
        return None
    return place(
        weight_bytes,
        max(0, room),
        host_bytes,
        memory_rate=rates.memory,
        up_rate=rates.up * _UNPINNED_SHARE,
    )


def _weight_bytes(folder: Path, dtype_name: DtypeName) -> int:
    """Give what the weights will take, in the precision asked for."""
    stored = sum(path.stat().st_size for path in find_weight_files(folder).files)
    if dtype_name == "auto":
        return stored
    config = read_json_object(folder / "config.json", RunError)
    said = str(config.get("dtype") or config.get("torch_dtype"))
    return stored * _ITEM_BYTES[dtype_name] // _ITEM_BYTES.get(said, _ITEM_BYTES[dtype_name])


def _require_accelerate(folder: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise RefusedError(
            "the model is larger than the memory for it, and accelerate, which could share it out,"
            " is not installed",
            where=str(folder),
            remedy="pip install 'workbench[offload]', free memory, or serve with --device cpu",
        )


def choose_device(name: str) -> torch.device:
    """Turn ``auto`` into the first GPU where there is one; check any other name.

    Raises:
        ConfigError: it is no device of this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    num_gpus = torch.cuda.device_count()
    is_gpu = device is not None and device.type == "cuda" and (device.index or 0) < num_gpus
    if device is None or not (device.type == "cpu" or is_gpu):
        raise ConfigError(
            f"there is no device {name!r} here, which has {num_gpus} GPUs",
            where="--device",
            remedy="choose auto, cpu or cuda:N",
        )
    return torch.device("cuda", device.index or 0) if is_gpu else device


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
