"""What the command line and the screens agree on before a model is made from another one.

Where it may go, what it is made from, and the command that does the same. Knows paths and configs,
no tensors. Invariant: a place that is accepted lies outside of everything it is made from.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from workbench.config.find import template_names
from workbench.config.load import read_resolved
from workbench.config.template_source import template_source
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.runs.checkpoints import Choice
from workbench.runs.layout import RunFolder
from workbench.runs.whole_folder import check_free

GGUF_TYPES = ("q8_0", "bf16", "f16")
"""Kinds of number that a GGUF file can have."""

CONVERT_DTYPES = ("bfloat16", "float16", "float32")
"""Kinds of number that weights can be converted to."""


def models_of(run: RunFolder) -> list[Path]:
    """Give the model that a run began with, where that can be told."""
    try:
        path = read_resolved(run.config).model.path
    except WorkbenchError:
        return []
    return [] if path is None else [Path(path)]


def check_place(destination: Path, sources: Sequence[Path], run: RunFolder | None = None) -> None:
    """See that what is made lies outside of everything it is made from.

    Args:
        destination: a folder to make.
        sources: what it is made from.
        run: whose checkpoints it lies outside of, too.

    Raises:
        RunError: it does not, or its name is taken.
    """
    check_free(destination)
    real = Path(os.path.realpath(destination))
    forbidden = [Path(os.path.realpath(source)) for source in sources]
    if run is not None:
        forbidden.append(Path(os.path.realpath(run.checkpoints)))
    for folder in forbidden:
        if folder == real or folder in real.parents:
            raise RunError(
                f"lies in {folder}, which is only read",
                where=str(destination),
                remedy="name a folder elsewhere",
            )


def named_template(choice: str, source: Path) -> str:
    """Give the source of a template: by its name, the project's first, or a file.

    Args:
        choice: a name, or the path of a file.
        source: the model it is for.

    Raises:
        ConfigError: it is ``auto``, the model's own.
        DataError: there is none, or it cannot be read.
    """
    if choice == "auto":
        raise ConfigError(
            "auto is the model's own template, which stays anyway",
            where="--chat-template",
            remedy="name a template or a file, or leave it out",
        )
    own = template_names().get(choice)
    return template_source(choice if own is None else str(own), source)


def finalize_command(
    source: str, destination: str, choice: Choice | None = None, gguf: str | None = None
) -> str:
    """Write the command line that publishes.

    Args:
        source: a run, or a checkpoint or model folder where ``choice`` is None.
        destination: a folder to make.
        choice: which checkpoint of the run.
        gguf: also a GGUF file of this type.
    """
    parts = ["workbench", "finalize", source, destination]
    if choice == "best":
        parts.append("--best")
    elif isinstance(choice, int):
        parts += ["--step", str(choice)]
    if gguf is not None:
        parts += ["--gguf", gguf]
    return shlex.join(parts)


def convert_command(
    source: str,
    destination: str,
    dtype: str | None = None,
    max_length: int | None = None,
    template: str | None = None,
) -> str:
    """Write the command line that converts; what is None stays as it is."""
    parts = ["workbench", "convert", source, destination]
    if dtype is not None:
        parts += ["--dtype", dtype]
    if max_length is not None:
        parts += ["--max-length", str(max_length)]
    if template is not None:
        parts += ["--chat-template", template]
    return shlex.join(parts)
