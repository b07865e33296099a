"""A model folder to a model of ``transformers`` on a device, ready to generate.

Reads local files only and never runs their code. Invariant: what cannot be loaded is refused with
its folder and what to do.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from workbench.errors import ConfigError, RefusedError, RunError

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]


def load_model(folder: Path, device_name: str, dtype_name: DtypeName) -> Any:  # noqa: ANN401 - as above
    """Load a model from files that are on this machine, onto a device, ready to generate.

    Raises:
        RunError: the folder holds no model that transformers can load without remote code.
        ConfigError: there is no such device.
        RefusedError: the model does not fit on the device.
    """
    device = choose_device(device_name)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype_name == "auto" else getattr(torch, dtype_name),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"cannot be loaded: {_first_line(error)}",
            where=str(folder),
            remedy="name a folder with config.json and safetensors weights",
        ) from error
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise RefusedError(
            f"the model does not fit on {device}",
            where=str(folder),
            remedy="free the device, or serve with --device cpu",
        ) from error
    model.eval()
    # What a model's own file suggests would fill every value that a request leaves out.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model


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
    return device


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
