"""A config's ``args:`` turned into the command-line flags it offers, and arguments into overrides.

A config names its flags as they are typed, each with the key it sets::

Args:
      --lr: optimizer.learning_rate
      --model: {short: -M, path: model.path, also: [--model-id-or-path], help: The model folder}

``path`` is the key; ``short`` one letter; ``also`` further spellings; ``help`` and ``type`` are
taken from the schema where they are not given. ``null`` takes an inherited flag away.

Knows nothing of files. Invariant: a flag that is not given changes nothing.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.config.inherit import Branch, Leaf, Origin
from workbench.config.problems import ConfigProblems, Problem
from workbench.config.schema.data import SourceSection
from workbench.config.schema.keys import (
    all_keys,
    allows_null,
    choices_of,
    describe,
    key_at,
    keys_of,
    kind_of,
    section_of,
)
from workbench.config.yaml_reader import (
    UNREADABLE,
    UnreadableValueError,
    kind_in_words,
    read_value,
)

TAKEN = {
    "-t": "the config",
    "--config": "the config",
    "-p": "the project",
    "--project": "the project",
    "-d": "the devices",
    "--devices": "the devices",
    "-h": "the help",
    "--help": "the help",
    "-o": "the output file",
    "--output": "the output file",
    "-e": "the editor",
    "--edit": "the editor",
    "--format": "the format of a tree",
    "--with-bases": "the files a config extends",
    "--description": "the description of a new config",
    "--batch": "running without a screen",
    "--dry-run": "showing the command",
    "--detach": "leaving at once",
    "--json": "output for machines",
    "--version": "the version",
}
"""Flags of the verbs themselves, which no config may take."""

TYPES = ("boolean", "integer", "number", "text", "path", "choice", "list")
_LONG = re.compile(r"--[a-z][a-z0-9-]*")
_SHORT = re.compile(r"-[A-Za-z]")
_KEY_VALUE = re.compile(r"[A-Za-z_][\w.-]*=.*", re.DOTALL)
_FIELDS = ("path", "short", "also", "type", "help")


@dataclass(frozen=True)
class Override:
    """A value given beside the files.

    Attributes:
        key: ``section.key``.
        value: plain data, as if it had been read from YAML.
        source: what gave it: ``flag --lr``, ``key=value``.
    """

    key: str
    value: object
    source: str


@dataclass(frozen=True)
class Flag:
    """A flag that a config offers.

    Attributes:
        name: with its dashes: ``--lr``.
        short: ``-M``, or None.
        path: the key it sets.
        type: boolean, integer, number, text, path, choice or list.
        help: one line.
        default: the value of the key without the flag.
        default_source: who states that value: file:line, or ``default``.
        also: further spellings.
        choices: the words it takes where the type is choice.
    """

    name: str
    short: str | None
    path: str
    type: str
    help: str
    default: object
    default_source: str
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Give every way to write it."""
        return (self.name, *((self.short,) if self.short else ()), *self.also)


def build_flags(
    args: Branch | Leaf | None, present: Callable[[str], Leaf | None]
) -> tuple[tuple[Flag, ...], list[Problem]]:
    """Build the flags of a config from its merged ``args:``.

    Args:
        args: the merged section, None where no file has one.
        present: gives the leaf of a key, for defaults; None where there is none.
    """
    problems: list[Problem] = []
    flags: list[Flag] = []
    if isinstance(args, Leaf):
        if args.value is not UNREADABLE:
            problems.append(
                _problem(
                    "args",
                    args.origin,
                    f"expected a mapping of flags, got {kind_in_words(args.value)}",
                    "write `--flag: section.key` lines below it, or remove it",
                )
            )
        return (), problems
    taken = dict(TAKEN)
    for name, entry in args.entries.items() if args else ():
        if isinstance(entry, Leaf) and entry.value is None:
            continue
        flag = _flag(name, entry, present, problems)
        if flag is None:
            continue
        for spelling in flag.spellings:
            if spelling in taken:
                problems.append(
                    _problem(
                        f"args.{name}",
                        _origin(entry),
                        f"{spelling} is already the flag of {taken[spelling]}",
                        "choose another spelling",
                    )
                )
            taken.setdefault(spelling, flag.path)
        flags.append(flag)
    return tuple(flags), problems


def _origin(entry: Leaf | Branch) -> Origin:
    if isinstance(entry, Leaf):
        return entry.origin
    path = entry.entries.get("path")
    return path.origin if isinstance(path, Leaf) else entry.origin


def _problem(key: str, origin: Origin, what: str, remedy: str) -> Problem:
    return Problem(
        key=key,
        what=what,
        remedy=remedy,
        file=origin.file,
        line=origin.line,
        source=origin.source,
    )


def _flag(
    name: str,
    entry: Leaf | Branch,
    present: Callable[[str], Leaf | None],
    problems: list[Problem],
) -> Flag | None:
    """Build one flag; None, after problems, where it cannot be."""
    key = f"args.{name}"
    num_before = len(problems)

    def wrong(what: str, remedy: str, at: Leaf | Branch = entry) -> None:
        problems.append(_problem(key, _origin(at), what, remedy))

    if not _LONG.fullmatch(name):
        wrong(f"{name} is no name of a flag", "write it as --lower-case-words")
    fields = {"path": entry} if isinstance(entry, Leaf) else entry.entries
    values: dict[str, object] = {}
    for field, leaf in fields.items():
        if field not in _FIELDS:
            near = did_you_mean(field, _FIELDS).removeprefix("; ")
            wrong(f"no such field: {field}", near or f"a flag has {', '.join(_FIELDS)}", leaf)
        elif isinstance(leaf, Leaf):
            values[field] = leaf.value
        else:
            wrong(f"{field} is a mapping", "give it one value", leaf)
    path = values.get("path")
    if not isinstance(path, str):
        if path is not UNREADABLE:
            wrong("names no key to set", "write `path: section.key`")
        return None
    schema_key = key_at(path.split("."))
    if schema_key is None:
        near = did_you_mean(path, _keys_like(path)).removeprefix("; ")
        wrong(f"there is no key {path}", near or "name a key that exists")
        return None
    if section_of(schema_key.annotation) is not None:
        wrong(f"{path} is a section, not a key", f"name one of its keys: {path}.…")
        return None
    short, also, help_text = values.get("short"), values.get("also", []), values.get("help")
    if short is not None and not (isinstance(short, str) and _SHORT.fullmatch(short)):
        wrong("short is not a dash and a letter", "write it like -M")
    if not isinstance(also, list) or not all(
        isinstance(each, str) and _LONG.fullmatch(each) for each in also
    ):
        wrong("also is not a list of flags", "write it like [--other-name]")
    if help_text is not None and not isinstance(help_text, str):
        wrong("help is not text", "write one line")
    kind = kind_of(schema_key.annotation)
    if is_path(path):
        kind = "path"
    stated_type = values.get("type", kind)
    if stated_type not in TYPES or (stated_type == "boolean") != (kind == "boolean"):
        wrong(
            f"type is {stated_type}, the key takes {describe(schema_key.annotation)}",
            f"leave it out, or write {kind}",
        )
    if len(problems) > num_before:
        return None
    now = present(path)
    return Flag(
        name=name,
        short=short if isinstance(short, str) else None,
        path=path,
        type=str(stated_type),
        help=help_text if isinstance(help_text, str) else schema_key.description,
        default=now.value if now else None,
        default_source=now.origin.source if now else "default",
        also=tuple(also) if isinstance(also, list) else (),
        choices=choices_of(schema_key.annotation),
    )


def _keys_like(path: str) -> list[str]:
    """Give the keys a path may be meant to be, those of the data set that it names among them."""
    parts = path.split(".")
    names = [".".join(parts[:3])] if parts[:2] == ["data", "sources"] and len(parts) > 3 else []
    return [*all_keys(), *(f"{name}.{key}" for name in names for key in keys_of(SourceSection))]


def parse(arguments: Sequence[str], flags: Sequence[Flag]) -> tuple[list[Override], list[str]]:
    """Turn the flags and ``key=value`` among the arguments into overrides, in the order given.

    A flag takes the argument behind it, whatever that looks like (``--lr -1`` is a mistake in the
    value, not an option -1), or what follows ``=``. A boolean flag alone means true.

    Args:
        arguments: what was typed, without what the verb itself understands.
        flags: those of the config.

    Returns:
        The overrides, and the arguments that are neither.

    Raises:
        ConfigProblems: a flag without its value, or a value that is no YAML; all at once.
    """
    spelled = {spelling: flag for flag in flags for spelling in flag.spellings}
    overrides: list[Override] = []
    rest: list[str] = []
    problems: list[Problem] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if name not in spelled and argument[:2] in spelled and not argument.startswith("--"):
            name, equals, value = argument[:2], "=", argument[2:]
        if flag := spelled.get(name):
            source = f"flag {flag.name}"
            if not equals:
                if flag.type == "boolean":
                    value = "true"
                elif waiting and waiting[0].partition("=")[0] not in spelled:
                    value = waiting.pop(0)
                else:
                    problems.append(
                        Problem(
                            key=flag.path,
                            what=f"{name} needs a value",
                            remedy=f"write {name} VALUE",
                            source=source,
                        )
                    )
                    continue
            _read_override(overrides, problems, flag.path, value, source)
        elif _KEY_VALUE.fullmatch(argument):
            _read_override(overrides, problems, name, value, "key=value")
        else:
            rest.append(argument)
    if problems:
        raise ConfigProblems(problems)
    return overrides, rest


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Turn ``key=value`` texts into overrides, each value read as YAML.

    Raises:
        ConfigProblems: a text without ``=``, or a value that is no YAML.
    """
    overrides, rest = parse(texts, ())
    if rest:
        raise ConfigProblems(
            [
                Problem(
                    key="",
                    what=f"{text!r} is no key=value",
                    remedy="write section.key=value",
                    source="key=value",
                )
                for text in rest
            ]
        )
    return overrides


def _read_override(
    overrides: list[Override], problems: list[Problem], key: str, text: str, source: str
) -> None:
    """Read a value: as it stands for a flag whose key is text or a choice, else as YAML."""
    schema_key = key_at(key.split("."))
    is_flag = source != "key=value"
    if is_flag and schema_key and kind_of(schema_key.annotation) in ("text", "choice"):
        # `--log-name 42` is a name; only null stays null, and only where it means something.
        is_null = text in ("null", "~") and allows_null(schema_key.annotation)
        if not is_null or is_path(key):
            overrides.append(Override(key, text, source))
            return
    try:
        overrides.append(Override(key, read_value(text), source))
    except UnreadableValueError as error:
        problems.append(Problem(key=key, what=str(error), remedy=error.remedy, source=source))


def is_path(key: str) -> bool:
    """Say whether a key names a file or folder, relative to who states it."""
    return key in ("model.path", "training.output_dir") or is_data_path(key)


def is_data_path(key: str) -> bool:
    """Say whether a key names where a data set lies; it may be an id on the hub, too."""
    return key.startswith("data.sources.") and key.split(".")[3:] == ["path"]


def did_you_mean(wrong: str, names: Sequence[str]) -> str:
    """Give "; did you mean …?" with the nearest name, or "" where none is near."""
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
