"""The Structs of the config as a JSON Schema, for editors that complete and check YAML.

It describes one file, not a resolved config: every key may be left out, because ``extends`` or the
schema's default gives it, and ``extends`` and ``args`` may be there. An editor sees one file at a
time, so rules between keys, circles in ``extends`` and paths stay with ``load``.

Invariant: what ``load`` takes in a single file, the schema allows.
"""

import json
import re
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from workbench.config.flags import TYPES
from workbench.config.schema.config import Config
from workbench.config.schema.keys import (
    MISSING,
    Key,
    all_keys,
    alternatives,
    key_at,
    keys_of,
    section_of,
    value_type_of_mapping,
)

Schema = dict[str, object]

FILE_NAME = "schema.json"
"""Where it lies below the shipped configs."""

_WORDS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def json_schema() -> Schema:
    """Give the JSON Schema (draft 2020-12) of a config file."""
    section = _section(Config, "A config of workbench: what a run should be, or a part of it")
    properties = section["properties"]
    assert isinstance(properties, dict)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "workbench config",
        **section,
        "properties": {"extends": _extends(), **properties, "args": _args()},
    }


def schema_text() -> str:
    """Give the schema as it is written to a file: indented, ending in a newline."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _section(section: type[msgspec.Struct], description: str) -> Schema:
    return {
        "description": description,
        "type": "object",
        "properties": {name: _key(key) for name, key in keys_of(section).items()},
        "additionalProperties": False,
    }


def _key(key: Key) -> Schema:
    """Give the schema of a key: what it may be, what it means, and what it is by default."""
    inner = section_of(key.annotation)
    if inner is not None:
        return _section(inner, _first_line(inner))
    schema = {"description": key.description} | _type(key.annotation)
    if key.default is not MISSING:
        schema["default"] = key.default
    return schema


def _type(annotation: object) -> Schema:
    values = value_type_of_mapping(annotation)
    if values is not None:
        return {"type": "object", "additionalProperties": _type(values)}
    kinds = [_alternative(base, metas) for base, metas in alternatives(annotation)]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _alternative(base: object, metas: tuple[Meta, ...]) -> Schema:
    if get_origin(base) is Literal:
        return {"enum": list(get_args(base))}
    if get_origin(base) is list:
        (item,) = get_args(base)
        bounds = {"min_length": "minItems", "max_length": "maxItems"}
        return {"type": "array", "items": _type(item)} | _bounds(metas, bounds)
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return _section(base, _first_line(base))
    assert isinstance(base, type), base
    bounds = {
        "ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum",
    }  # fmt: skip
    return {"type": _WORDS[base]} | _bounds(metas, bounds)


def _bounds(metas: tuple[Meta, ...], names: dict[str, str]) -> Schema:
    return {
        word: getattr(meta, name)
        for meta in metas
        for name, word in names.items()
        if getattr(meta, name) is not None
    }


def _first_line(section: type[msgspec.Struct]) -> str:
    return (section.__doc__ or "").split("\n", 1)[0].strip()


def _extends() -> Schema:
    name = {"type": "string", "minLength": 1}
    return {
        "description": "Files this one builds on, relative to it; of several the later wins, and "
        "this file over all of them",
        "anyOf": [name, {"type": "array", "items": name}],
    }


def _patterns_of_named_keys() -> Iterator[str]:
    """Give patterns for the keys below free names, such as data.sources.poems.path."""
    for name in all_keys():
        key = key_at(name.split("."))
        assert key is not None, name
        values = value_type_of_mapping(key.annotation)
        if values is not None:
            below = section_of(values)
            last = rf"\.({'|'.join(keys_of(below))})" if below is not None else ""
            yield rf"^{re.escape(name)}\.[^.]+{last}$"


def _args() -> Schema:
    path = {
        "description": "The key it sets",
        "anyOf": [
            {"enum": list(all_keys())},
            {"type": "string", "pattern": "|".join(_patterns_of_named_keys())},
        ],
    }
    fields = {
        "path": path,
        "short": {"description": "A dash and a letter", "type": "string", "pattern": "^-[A-Za-z]$"},
        "also": {
            "description": "Further spellings",
            "type": "array",
            "items": {"type": "string", "pattern": "^--[a-z][a-z0-9-]*$"},
        },
        "type": {"description": "Taken from the key where it is left out", "enum": list(TYPES)},
        "help": {"description": "One line; the key's own where it is left out", "type": "string"},
    }
    flag = {"type": "object", "properties": fields, "additionalProperties": False}
    return {
        "description": "Flags of `workbench train`, each with the key it sets; null takes one away",
        "type": "object",
        "patternProperties": {"^--[a-z][a-z0-9-]*$": {"anyOf": [path, flag, {"type": "null"}]}},
        "additionalProperties": False,
    }
