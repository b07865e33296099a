"""Which chat template a config means, as text; nothing is rendered or compiled here.

The user side copies the template into the run folder, from where training and serving take it.
"""

import os
from pathlib import Path

import msgspec

from workbench.config.find import shipped_templates
from workbench.errors import DataError

DEFAULT_TEMPLATE = "chatml"
_LARGEST_BYTES = 4 << 20


def template_source(choice: str, model_folder: Path) -> str:
    """Give the source of a chat template.

    Args:
        choice: a shipped name, a path of a .jinja file, or auto: the tokenizer's own, else chatml.
        model_folder: whose tokenizer may bring one.

    Raises:
        DataError: there is no such template, or it cannot be read.
    """
    if choice == "auto":
        own = own_template(model_folder)
        return own if own is not None else template_source(DEFAULT_TEMPLATE, model_folder)
    if "/" in choice or choice.endswith(".jinja"):
        return _read(Path(choice).expanduser())
    path = shipped_templates() / f"{choice}.jinja"
    if not path.is_file():
        names = sorted(file.stem for file in shipped_templates().glob("*.jinja"))
        raise DataError(
            f"there is no template {choice!r}",
            where="data.chat_template",
            remedy=f"choose one of {', '.join(['auto', *names])}, or give a .jinja file",
        )
    return _read(path)


def own_template(model_folder: Path) -> str | None:
    """Give the template beside a tokenizer: its file, else the entry of its config, else None.

    Raises:
        DataError: a file is there and cannot be read, or it lists templates without a default.
    """
    file = model_folder / "chat_template.jinja"
    if os.path.lexists(file):
        return _read(file)
    path = model_folder / "tokenizer_config.json"
    if not os.path.lexists(path):
        return None
    try:
        stated = msgspec.json.decode(_read(path), type=_TokenizerConfig).chat_template
    except msgspec.DecodeError as error:
        raise DataError(
            f"is not what a tokenizer's config should be: {error}",
            where=str(path),
            remedy="download it anew, or set data.chat_template",
        ) from error
    if not isinstance(stated, list):
        return stated
    named = {entry.name: entry.template for entry in stated}
    if named and "default" not in named:
        raise DataError(
            f"names the chat templates {', '.join(named)}, and none of them is the default",
            where=str(path),
            remedy="set data.chat_template to a shipped name, or save one of them as a .jinja file",
        )
    return named.get("default")


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # who opens a pipe waits for ever
            raise DataError(
                "is no file", where=str(path), remedy="remove it, or name another template"
            )
        if path.stat().st_size > _LARGEST_BYTES:
            raise DataError(
                "is too large for a chat template",
                where=str(path),
                remedy="name another data.chat_template",
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"the template cannot be read: {reason}",
            where=str(path),
            remedy="check data.chat_template",
        ) from error
