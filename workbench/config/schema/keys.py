"""What the schema says of a key: its type in words, its description, its default.

Reads the Structs and nothing else; the validation of a config, the flags, the help and the forms
ask here. Invariant: a key is named as it is written, ``section.key``.
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from workbench.config.schema.config import Config

MISSING = object()
"""The default of a key that has none."""


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Attributes:
        name: its name within the section.
        annotation: its type as the schema states it.
        description: what it means.
        default: its value where no file states it, MISSING where one has to.
    """

    name: str
    annotation: object
    description: str
    default: object

    @cached_property
    def section(self) -> type[msgspec.Struct] | None:
        """The Struct below it, None for a key that is none."""
        return section_of(self.annotation)

    @cached_property
    def value_type(self) -> object | None:
        """The type of the values below it, None for a key that is no mapping with free names."""
        return value_type_of_mapping(self.annotation)

    @cached_property
    def _alternatives(self) -> "list[tuple[object, tuple[Meta, ...]]]":
        return alternatives(self.annotation)

    def accepts(self, value: object) -> bool:
        """Say whether a value read from YAML is one of its type; no infinity and no NaN is."""
        return any(_is_one(base, metas, value) for base, metas in self._alternatives)


@cache
def keys_of(section: type[msgspec.Struct]) -> Mapping[str, Key]:
    """Give the keys of a section by name, in the order of the schema."""
    return {field.name: _key(field) for field in msgspec.structs.fields(section)}


def _key(field: msgspec.structs.FieldInfo) -> Key:
    default: object = MISSING
    if field.default is not msgspec.NODEFAULT:
        default = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    metas = get_args(field.type)[1:] if get_origin(field.type) is Annotated else ()
    description = next(
        (meta.description for meta in metas if isinstance(meta, Meta) and meta.description), ""
    )
    return Key(field.name, field.type, description, default)


def key_at(path: Sequence[str]) -> Key | None:
    """Find the key at a path such as ("data", "sources", "poems", "path"); None: no such key."""
    annotation: object = Config
    found: Key | None = None
    for name in path:
        section, values = section_of(annotation), value_type_of_mapping(annotation)
        if section is not None:
            found = keys_of(section).get(name)
            if found is None:
                return None
            annotation = found.annotation
        elif values is not None:
            annotation = values
            found = Key(name, annotation, "", MISSING)
        else:
            return None
    return found


@cache
def all_keys() -> tuple[str, ...]:
    """Name every key of a config, those of named data sets left out."""
    names = []
    for key in keys_of(Config).values():
        section = section_of(key.annotation)
        if section is None:
            names.append(key.name)
        else:
            names.extend(f"{key.name}.{inner}" for inner in keys_of(section))
    return tuple(names)


def section_of(annotation: object) -> type[msgspec.Struct] | None:
    """Give the Struct in a type, None where it has none: ``Source | None`` gives Source."""
    for base, _ in alternatives(annotation):
        if isinstance(base, type) and issubclass(base, msgspec.Struct):
            return base
    return None


def value_type_of_mapping(annotation: object) -> object | None:
    """Give the type of the values where a type is a mapping with free names, else None."""
    for base, _ in alternatives(annotation):
        if get_origin(base) is dict:
            value_type: object = get_args(base)[1]
            return value_type
    return None


def allows_null(annotation: object) -> bool:
    """Say whether null is a value of the type."""
    return any(base is type(None) for base, _ in alternatives(annotation))


def choices_of(annotation: object) -> tuple[str, ...]:
    """Give the words a type allows, in the order of the schema; () where it names none."""
    return tuple(
        choice
        for base, _ in alternatives(annotation)
        if get_origin(base) is Literal
        for choice in get_args(base)
    )


def kind_of(annotation: object) -> str:
    """Name the kind of a value: boolean, integer, number, text, choice, list or mapping."""
    bases = [base for base, _ in alternatives(annotation) if base is not type(None)]
    for wanted, kind in ((bool, "boolean"), (float, "number"), (int, "integer"), (str, "text")):
        if wanted in bases:
            return kind
    origins = [get_origin(base) for base in bases]
    return "choice" if Literal in origins else "list" if list in origins else "mapping"


def accepts(annotation: object, value: object) -> bool:
    """Say whether a value read from YAML is one of the type; no infinity and no NaN ever is."""
    return any(_is_one(base, metas, value) for base, metas in alternatives(annotation))


def _is_one(base: object, metas: tuple[Meta, ...], value: object) -> bool:
    if base is bool or base is str:
        return type(value) is base
    if base is type(None):
        return value is None
    if get_origin(base) is Literal:
        return isinstance(value, str) and value in get_args(base)
    if get_origin(base) is list:
        (item,) = get_args(base)
        return (
            isinstance(value, (list, tuple))
            and all(_keeps_length(meta, len(value)) for meta in metas)
            and all(accepts(item, each) for each in value)
        )
    if base is int or base is float:
        if type(value) is not int and (base is int or type(value) is not float):
            return False
        assert isinstance(value, (int, float))
        return math.isfinite(value) and all(_keeps_bounds(meta, value) for meta in metas)
    return False


def _keeps_length(meta: Meta, length: int) -> bool:
    return (meta.min_length is None or length >= meta.min_length) and (
        meta.max_length is None or length <= meta.max_length
    )


def _keeps_bounds(meta: Meta, value: float) -> bool:
    return (
        (meta.ge is None or value >= meta.ge)
        and (meta.gt is None or value > meta.gt)
        and (meta.le is None or value <= meta.le)
        and (meta.lt is None or value < meta.lt)
    )


def describe(annotation: object) -> str:
    """Say in words what a type allows: "auto or a whole number of at least 1"."""
    words = [_describe_one(base, metas) for base, metas in alternatives(annotation)]
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " or " + words[-1]


def _describe_one(base: object, metas: tuple[Meta, ...]) -> str:
    if base is type(None):
        return "null"
    if get_origin(base) is Literal:
        choices = get_args(base)
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if get_origin(base) is list:
        (item,) = get_args(base)
        lengths = {length for meta in metas for length in (meta.min_length, meta.max_length)}
        exactly = lengths - {None}
        count = f" of {exactly.pop()}" if len(exactly) == 1 else ""
        return f"a list{count}, each {describe(item)}"
    if get_origin(base) is dict:
        return "a mapping"
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return "a section with keys below it"
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    return words[base] + _bounds(metas) if isinstance(base, type) else str(base)


def bounds_of(annotation: object, value: float) -> str:
    """Say in words which bounds a number breaks: "of at least 16"; "" where it breaks none."""
    for base, metas in alternatives(annotation):
        if base in (int, float) and not all(_keeps_bounds(meta, value) for meta in metas):
            return _bounds(metas).strip()
    return ""


def item_type_of(annotation: object) -> object | None:
    """Give the type of the items where a type is a list, else None."""
    for base, _ in alternatives(annotation):
        if get_origin(base) is list:
            item: object = get_args(base)[0]
            return item
    return None


def first_wrong_item(annotation: object, value: object) -> tuple[int, object] | None:
    """Give place (from 1) and value of the first item of a list that may not be in it, or None."""
    item = item_type_of(annotation)
    if item is None or not isinstance(value, list):
        return None
    return next(
        ((at, each) for at, each in enumerate(value, start=1) if not accepts(item, each)), None
    )


def _bounds(metas: tuple[Meta, ...]) -> str:
    bounds = []
    for meta in metas:
        bounds += [f"of at least {meta.ge:g}"] if meta.ge is not None else []
        bounds += [f"above {meta.gt:g}"] if meta.gt is not None else []
        bounds += [f"of at most {meta.le:g}"] if meta.le is not None else []
        bounds += [f"below {meta.lt:g}"] if meta.lt is not None else []
    return " " + " and ".join(bounds) if bounds else ""


def alternatives(annotation: object) -> list[tuple[object, tuple[Meta, ...]]]:
    """Take a type apart into what it may be: ``Annotated[int, Meta(ge=1)] | None`` gives two."""
    metas: tuple[Meta, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        metas += tuple(meta for meta in extra if isinstance(meta, Meta))
    if get_origin(annotation) in (Union, types.UnionType):
        return [
            (base, inner + metas)
            for part in get_args(annotation)
            for base, inner in alternatives(part)
        ]
    return [(annotation, metas)]
