"""Merged keys walked beside the schema: typed values, leaves, and every mistake at once.

msgspec names only the first mistake and lets infinity pass a lower bound, so keys are walked here
and msgspec builds what is already right. Paths become absolute on the way, because only here is it
known which file states them. Knows nothing of files and of rules between keys.

Invariant: what a walk without problems gives, msgspec converts.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from workbench.config import remedies
from workbench.config.flags import is_data_path, is_path
from workbench.config.hub_id import downloaded_model, looks_like_hub_id
from workbench.config.inherit import (
    DEFAULT_ORIGIN,
    Branch,
    Leaf,
    Origin,
    absolute,
    exists,
    expand,
)
from workbench.config.problems import Problem
from workbench.config.schema.config import Config
from workbench.config.schema.keys import (
    MISSING,
    Key,
    allows_null,
    describe,
    first_wrong_item,
    keys_of,
    section_of,
)
from workbench.config.yaml_reader import UNREADABLE, kind_in_words

Templates = dict[str, Path | None]
"""Chat templates by name: a project's own with their path, the shipped ones by name alone."""


@dataclass
class Walked:
    """What a walk beside the schema has found.

    Attributes:
        values: plain data for msgspec; of a key with a mistake the schema's default.
        leaves: each key and its leaf, in the order of the schema.
        problems: every mistake.
        mistaken: the keys with a mistake.
    """

    values: dict[str, object] = field(default_factory=dict)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    mistaken: set[str] = field(default_factory=set)


def walk_config(tree: Branch, templates: Templates | None, before: dict[Branch, Walked]) -> Walked:
    """Walk a whole config beside the schema.

    Args:
        tree: the merged keys, without ``extends`` and ``args``.
        templates: the chat templates there are; None leaves names and paths as they are.
        before: sections that were walked, by their branch: one that no file of its own touches is
            the very one of its base. Extended.
    """
    whole = Walk(templates)
    known = keys_of(Config)
    for name, unknown in tree.entries.items():
        if name not in known:
            whole.unknown(name, unknown, (), list(known))
    for name, key in known.items():
        entry = tree.entries.get(name)
        part = before.get(entry) if isinstance(entry, Branch) else None
        if part is None:
            walk = Walk(templates)
            walk.key(key, entry, (name,), tree, walk.found.values)
            part = walk.found
            if isinstance(entry, Branch):
                before[entry] = part
        whole.found.values |= part.values
        whole.found.leaves |= part.leaves
        whole.found.problems += part.problems
        whole.found.mistaken |= part.mistaken
    return whole.found


class Walk:
    """Walks merged keys beside the schema: collects leaves, values, and every mistake.

    Args:
        templates: the chat templates there are; None leaves names and paths as they are.
    """

    def __init__(self, templates: Templates | None) -> None:
        self._templates = templates
        self.found = Walked()

    def _section(
        self, section: type[msgspec.Struct], branch: Branch, path: tuple[str, ...]
    ) -> dict[str, object]:
        """Give the values of a section, one for each of its keys."""
        known = keys_of(section)
        for name, unknown in branch.entries.items():
            if name not in known:
                self.unknown(name, unknown, path, list(known))
        values: dict[str, object] = {}
        for name, key in known.items():
            self.key(key, branch.entries.get(name), (*path, name), branch, values)
        return values

    def key(
        self,
        key: Key,
        entry: Leaf | Branch | None,
        path: tuple[str, ...],
        above: Branch,
        values: dict[str, object],
    ) -> None:
        """Put the value of a key of the section ``above`` into ``values``."""
        if key.section is not None:
            values[key.name] = self._inner_section(key.section, entry, path)
        elif key.value_type is not None:
            values[key.name] = self._mapping(key.value_type, entry, path, above.origin)
        elif entry is None and key.default is MISSING:
            self._mistake(path, above, f"{key.name} is missing", remedies.of_missing(key))
        elif entry is None:
            self._leaf(path, Leaf(key.default, DEFAULT_ORIGIN))
            values[key.name] = key.default
        else:
            value = self._value(key, entry, path)
            if value is not MISSING:
                values[key.name] = value

    def _inner_section(
        self, section: type[msgspec.Struct], entry: Leaf | Branch | None, path: tuple[str, ...]
    ) -> dict[str, object]:
        if isinstance(entry, Leaf):
            if entry.value is not UNREADABLE:
                self._mistake(
                    path,
                    entry,
                    f"expected a section with keys below it, got {kind_in_words(entry.value)}",
                    remedies.of_text_for_section(entry.value)
                    if isinstance(entry.value, str)
                    else "indent its keys below it, or remove the line",
                )
            self.found.mistaken.update(".".join((*path, name)) for name in keys_of(section))
            entry = None
        return self._section(section, entry or Branch(DEFAULT_ORIGIN), path)

    def _mapping(
        self,
        value_type: object,
        entry: Leaf | Branch | None,
        path: tuple[str, ...],
        origin: Origin,
    ) -> dict[str, object]:
        """Give the values of a mapping with free names; null takes a name away where it may."""
        if isinstance(entry, Leaf):
            if entry.value is not UNREADABLE:
                self._mistake(
                    path,
                    entry,
                    f"expected a mapping of names, got {kind_in_words(entry.value)}",
                    "indent `name: …` lines below it, or write {}",
                )
            self.found.mistaken.add(".".join(path))
            return {}
        values: dict[str, object] = {}
        section = section_of(value_type)
        for name, inner in entry.entries.items() if entry else ():
            here = (*path, name)
            if "." in name:
                self._mistake(here, inner, "a name with a dot", "name it without one")
            elif isinstance(inner, Leaf) and inner.value is None and allows_null(value_type):
                continue
            elif section is None:
                value = self._value(Key(name, value_type, "", MISSING), inner, here)
                if value is not MISSING:
                    values[name] = value
            elif isinstance(inner, Leaf):
                self._mistake(
                    here,
                    inner,
                    f"expected {describe(value_type)}, got {kind_in_words(inner.value)}",
                    remedies.of_section(name, section, inner.value),
                )
            else:
                below = self._section(section, inner, here)
                # Without a key that has no default it could not be built.
                if len(below) == len(keys_of(section)):
                    values[name] = below
        if not values:
            self._leaf(path, Leaf({}, entry.origin if entry else DEFAULT_ORIGIN))
        return values

    def _value(self, key: Key, entry: Leaf | Branch, path: tuple[str, ...]) -> object:
        """Give the value of a key that a file states; MISSING where there is none to give."""
        if isinstance(entry, Leaf):
            if key.accepts(entry.value):
                return self._accepted(path, entry)
            if entry.value is UNREADABLE:
                self.found.mistaken.add(".".join(path))
                return key.default
        value = entry.value if isinstance(entry, Leaf) else {}
        got = f"got {kind_in_words(value)}"
        wrong = first_wrong_item(key.annotation, value)
        if wrong is not None:
            got = f"item {wrong[0]} is {kind_in_words(wrong[1])}"
        self._mistake(
            path,
            entry,
            f"expected {describe(key.annotation)}, {got}",
            remedies.of_value(key.annotation, value, key.default),
        )
        return key.default

    def _accepted(self, path: tuple[str, ...], leaf: Leaf) -> object:
        """Give a value of the right type, made absolute where it is a path."""
        value, key = leaf.value, ".".join(path)
        if isinstance(value, str) and self._templates is not None and _may_be_path(key):
            try:
                value = _located(key, value, leaf.origin, self._templates)
            except _NotLocatedError as error:
                self._mistake(path, leaf, error.what, error.remedy)
                # Complete for the rules between keys, which look at no path.
                value = leaf.value
        self.found.leaves[key] = leaf if value == leaf.value else replace(leaf, value=value)
        return value

    def _leaf(self, path: tuple[str, ...], leaf: Leaf) -> None:
        self.found.leaves[".".join(path)] = leaf

    def unknown(
        self, name: str, entry: Leaf | Branch, path: tuple[str, ...], known: list[str]
    ) -> None:
        """Name a key that is none, and the one it may be meant to be."""
        remedy = remedies.of_unknown_key(name, path, known)
        self._mistake((*path, name), entry, "no such key", remedy)

    def _mistake(self, path: tuple[str, ...], entry: Leaf | Branch, what: str, remedy: str) -> None:
        key = ".".join(path)
        self.found.mistaken.add(key)
        origin = entry.origin
        self.found.problems.append(
            Problem(
                key=key,
                what=what,
                remedy=remedy,
                file=origin.file,
                line=origin.line,
                source=origin.source,
            )
        )


def _may_be_path(key: str) -> bool:
    """Say whether a key names a file or folder, or a word in its place."""
    return is_path(key) or key in ("checkpoints.resume", "data.chat_template")


class _NotLocatedError(Exception):
    """A path or a template that cannot be found out."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy


def _located(key: str, value: str, origin: Origin, templates: Templates) -> str:
    """Make a path absolute: relative to the file that states it, else to the current folder.

    A data path that is not there and has the form ``owner/name`` is an id on the hub and stays, as
    do words that are no path, such as ``auto``; a model of that form is looked for in the hub's own
    cache, and its folder there is given; of a project's own template the path is given.

    Raises:
        _NotLocatedError: a variable that is not set, an empty path, no such template.
    """
    if key == "data.chat_template" and not _looks_like_path(value):
        if value not in ("auto", *templates):
            raise _no_such_template(value, templates)
        own = templates.get(value)
        return value if own is None else str(own)
    if key == "checkpoints.resume" and value in ("auto", "no"):
        return value
    expanded, trouble = expand(value)
    if trouble:
        raise _NotLocatedError(trouble, "set it, or write the path out")
    if not value:
        raise _NotLocatedError("an empty path", "give a path")
    if "://" in value and key != "data.chat_template":
        raise _NotLocatedError(
            "an address on the web is not read",
            "name the data set by its id on the hub, owner/name, or download it"
            if is_data_path(key)
            else "name a folder on this machine",
        )
    path = absolute((origin.file.parent if origin.file else Path.cwd()) / expanded)
    if looks_like_hub_id(value) and not exists(path):
        if is_data_path(key):
            return value
        if key == "model.path" and (downloaded := downloaded_model(value)) is not None:
            return str(absolute(downloaded))
    return str(path)


def _looks_like_path(template: str) -> bool:
    return "/" in template or template.endswith(".jinja") or template.startswith(("~", "$"))


def _no_such_template(name: str, templates: Templates) -> _NotLocatedError:
    near = remedies.nearest(name, ["auto", *templates])
    return _NotLocatedError(
        f"no chat template is called {name}",
        near or f"use auto, a .jinja file, or one of {', '.join(templates)}",
    )
