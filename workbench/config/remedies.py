"""What to do about a key or a value that cannot be: the last part of a message.

Pure words about one mistake; knows nothing of files. Invariant: a remedy is an imperative or a
question that names the answer.
"""

import difflib
import re
from collections.abc import Sequence

import msgspec

from workbench.config.schema.keys import (
    MISSING,
    Key,
    accepts,
    all_keys,
    bounds_of,
    choices_of,
    keys_of,
    kind_of,
)
from workbench.config.yaml_reader import read_value, write_scalar

_BOOLEAN_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words that older YAML took for booleans."""

_NUMBER_AND_MORE = re.compile(r"([-+]?[0-9][0-9_,.]*(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]+)")
_KEY_WITHOUT_BLANK = re.compile(r"([a-z_]+):(\S.*)")


def nearest(name: str, names: Sequence[str]) -> str:
    """Ask whether the nearest name was meant; "" where none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else ""


def of_unknown_key(name: str, path: Sequence[str], known: Sequence[str]) -> str:
    """Say what to do about a key that is none, below the section ``path``."""
    if "." in name:
        first, rest = name.split(".", 1)
        return f"nest it: `{first}:`, and `{rest.replace('.', ': ')}: …` indented below it"
    if near := nearest(name, known):
        return near
    if flag := re.fullmatch(r"--[a-z][a-z0-9-]*", name):
        return f"put {flag.group()} below `args:`, or set its key"
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(all_keys())}
    close = difflib.get_close_matches(name, by_last_part, n=1)
    if close:
        return f"did you mean {by_last_part[close[0]]}?"
    return f"{path[-1] if path else 'a config'} has {', '.join(known)}"


def of_missing(key: Key) -> str:
    """Say what to do about a key that has to be there."""
    meaning = f": {key.description[0].lower()}{key.description[1:]}" if key.description else ""
    return f"add `{key.name}: …`{meaning}"


def of_section(name: str, section: type[msgspec.Struct], value: object) -> str:
    """Say what to do about a value where keys of a section should be."""
    first = next(iter(keys_of(section)))
    if isinstance(value, str) and value:
        return f"write {name}: {{{first}: {write_scalar(value)}}}"
    return f"indent its keys below it: {first}, …"


def of_value(annotation: object, value: object, default: object) -> str:
    """Say what to do about a value that is not of its key's type."""
    kind = kind_of(annotation)
    if kind == "list" and not isinstance(value, (list, dict)) and value is not None:
        return "write it as a list: [" + write_scalar(value) + "]"
    if isinstance(value, str):
        return _of_text(annotation, kind, value) or _example(default)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if accepts(annotation, str(value)):
            return "put it in quotes"
        if isinstance(value, float) and value % 1 == 0 and accepts(annotation, int(value)):
            return f"write {int(value)}"
        if bound := bounds_of(annotation, value):
            return f"give {bound}"
    if value is None and default not in (MISSING, None):
        return "give a value, or remove the line"
    return _example(default)


def _of_text(annotation: object, kind: str, text: str) -> str:
    """Say what to do about text in the place of something else; "" where nothing is known."""
    if near := nearest(text.lower(), choices_of(annotation)):
        return near
    if kind == "boolean" and text.lower() in _BOOLEAN_WORDS:
        return f"write {_BOOLEAN_WORDS[text.lower()]}"
    if kind not in ("number", "integer"):
        return ""
    plain = text.replace("_", "").replace(",", "").replace(" ", "")
    if plain != text and plain.isdecimal():
        return f"write the number without separators: {plain}"
    if re.fullmatch(r"\d+,\d+", text):
        return f"write it with a point: {text.replace(',', '.')}"
    try:
        if accepts(annotation, read_value(text)):
            return "take the quotes away"
    except ValueError:
        return ""
    if amount := _NUMBER_AND_MORE.fullmatch(text):
        return f"write the number alone: {amount.group(1)}"
    return ""


def _example(default: object) -> str:
    if default in (MISSING, None, "") or default == []:
        return "correct the value, or remove the line"
    return f"write for instance {write_scalar(default)}"


def of_text_for_section(text: str) -> str:
    """Say what to do about text where keys should be: most often a blank is missing."""
    if found := _KEY_WITHOUT_BLANK.fullmatch(text):
        return f"put a blank behind the colon: {found.group(1)}: {found.group(2)}"
    return "indent its keys below it, or remove the line"
