"""``extends:`` turned into one merged tree, in which every leaf knows its file, line and history.

Files are applied one after the other: a file's bases in the order listed, then the file itself, so
later wins. A file that is reached twice is applied once, where it comes first: two bases that share
a third do not undo each other. Mappings merge key by key; everything else replaces.

Knows nothing of sections and types. Invariant: a value that another value replaced is in the
history of the one that counts.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.config.problems import Problem, seen_from_here
from workbench.config.yaml_reader import (
    UNREADABLE,
    Stated,
    StatedMapping,
    kind_in_words,
    read_file,
)

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


@dataclass(frozen=True)
class Origin:
    """Who states a value.

    Attributes:
        source: as shown: ``base/training.yaml:38``, ``flag --lr``, ``key=value``, ``default``.
        file: absolute path of the file, None where no file states it.
        line: line in that file, from 1.
    """

    source: str
    file: Path | None = None
    line: int | None = None


DEFAULT_ORIGIN = Origin("default")
"""Of a key that nobody states: the schema's own value."""


@dataclass(frozen=True)
class Overridden:
    """A value that another one replaced."""

    value: object
    origin: Origin


@dataclass(frozen=True)
class Leaf:
    """A value, who states it, and what it replaced, nearest first."""

    value: object
    origin: Origin
    overrode: tuple[Overridden, ...] = ()


@dataclass(frozen=True, eq=False)
class Branch:
    """Keys below a key, merged from every file; ``origin`` is who stated the key first.

    It is never changed: what no further file touches is shared by all configs that extend a file.
    """

    origin: Origin
    entries: "dict[str, Leaf | Branch]" = field(default_factory=dict)


@dataclass(frozen=True)
class FileNode:
    """A file of a config's family tree.

    Attributes:
        path: absolute.
        num_keys: keys it states.
        num_shadowed: those of them that a later file, flag or key=value replaced.
        parents: the files it extends, in the order listed.
        shown: the path as origins show it.
    """

    path: Path
    num_keys: int
    num_shadowed: int
    parents: "tuple[FileNode, ...]"
    shown: str = ""


@dataclass(frozen=True)
class ReadFile:
    """A file as it was read: what it states, and the files it extends."""

    path: Path
    stated: StatedMapping
    parents: tuple[Path, ...]


@dataclass
class FileCache:
    """Files read so far, so that listing many configs reads their common bases once.

    Attributes:
        files: what each states, and its mistakes.
        found: the file that a name in the ``extends:`` of a file means; None: there is none.
        families: of a base file, it and all it extends, in the order in which they apply; only of
            those without a mistake.
    """

    files: dict[Path, tuple[StatedMapping, list[Problem]]] = field(default_factory=dict)
    found: dict[tuple[Path, str], Path | None] = field(default_factory=dict)
    families: dict[Path, dict[Path, ReadFile]] = field(default_factory=dict)


Trees = dict[tuple[Path, ...], Branch]
"""What chains of files come to, so that listing many configs merges their common bases once."""


@dataclass
class Family:
    """A config and everything it extends.

    Attributes:
        files: by path, in the order in which they apply: the config itself is the last.
        problems: what could not be read or found.
    """

    root: Path
    files: dict[Path, ReadFile]
    problems: list[Problem]

    def in_reading_order(self) -> list[Path]:
        """Give the files as a reader meets them: the config first, then what it extends."""
        return list(reversed(self.files))


@dataclass(frozen=True)
class Elsewhere:
    """Where a name in ``extends:`` may be, if it is no file beside the one that states it.

    Attributes:
        find: gives the shipped config of a name.
        nearest: gives the names of shipped configs that are like a name.
    """

    find: Callable[[str], Path | None]
    nearest: Callable[[str], list[str]]


def read_family(root: Path, *, elsewhere: Elsewhere, cache: FileCache) -> Family:
    """Read a config and all it extends.

    Args:
        root: absolute path of the config.
        elsewhere: the shipped configs.
        cache: of files read before; extended.
    """
    family = Family(root, {}, [])
    _read_into(family, root, (), elsewhere, cache)
    return family


def _read_into(
    family: Family,
    path: Path,
    chain: tuple[Path, ...],
    elsewhere: Elsewhere,
    cache: FileCache,
) -> None:
    if path not in cache.files:
        cache.files[path] = read_file(path)
    stated, problems = cache.files[path]
    family.problems.extend(problems)
    chain = (*chain, path)
    parents: list[Path] = []
    for name, line in _names_in_extends(stated, path, family.problems):
        parent, problem = _parent(name, path, line, chain, elsewhere, cache)
        if problem is None and parent in family.files and _extends(parents, parent, family):
            problem = Problem(
                key="extends",
                what=f"{name} comes after a file that extends it, so it could change nothing",
                remedy="list it before, or leave it out",
                file=path,
                line=line,
            )
        if problem is not None:
            family.problems.append(problem)
            continue
        assert parent is not None, name
        parents.append(parent)
        if parent not in family.files:
            _read_base_into(family, parent, chain, elsewhere, cache)
    family.files[path] = ReadFile(path, stated, tuple(parents))


def _read_base_into(
    family: Family,
    base: Path,
    chain: tuple[Path, ...],
    elsewhere: Elsewhere,
    cache: FileCache,
) -> None:
    """Read a file that another extends; what it extends itself may be known from an earlier one."""
    known = cache.families.get(base)
    if known is not None and known.keys().isdisjoint([*family.files, *chain]):
        family.files.update(known)
        return
    is_first, num_problems = not family.files, len(family.problems)
    _read_into(family, base, chain, elsewhere, cache)
    if is_first and len(family.problems) == num_problems:
        cache.families[base] = dict(family.files)


def _extends(files: Sequence[Path], wanted: Path, family: Family) -> bool:
    """Say whether ``wanted`` is among ``files`` or what they extend."""
    return any(
        file == wanted or _extends(family.files[file].parents, wanted, family)
        for file in files
        if file in family.files
    )


def _names_in_extends(
    stated: StatedMapping, file: Path, problems: list[Problem]
) -> list[tuple[str, int]]:
    """Give the names in ``extends:``, each with its line."""
    entry = stated.entries.get("extends")
    if entry is None:
        return []
    if isinstance(entry, Stated):
        if isinstance(entry.value, str) and entry.value:
            return [(entry.value, entry.line)]
        if isinstance(entry.value, list) and all(
            isinstance(name, str) and name for name in entry.value
        ):
            return list(zip(entry.value, entry.item_lines, strict=True))
        if entry.value is UNREADABLE:
            return []
    value = entry.value if isinstance(entry, Stated) else {}
    problems.append(
        Problem(
            key="extends",
            what=f"expected a file or a list of files, got {kind_in_words(value)}",
            remedy="write `extends: other.yaml`, relative to this file",
            file=file,
            line=entry.line,
        )
    )
    return []


def _parent(
    name: str,
    file: Path,
    line: int,
    chain: tuple[Path, ...],
    elsewhere: Elsewhere,
    cache: FileCache,
) -> tuple[Path | None, Problem | None]:
    """Find a file named in ``extends:``; a file that is not there, or a circle, is a problem."""

    def problem(what: str, remedy: str) -> tuple[None, Problem]:
        return None, Problem(key="extends", what=what, remedy=remedy, file=file, line=line)

    if (file, name) not in cache.found:
        expanded, trouble = expand(name)
        if trouble:
            return problem(trouble, "set it, or write the path out")
        beside = absolute(file.parent / expanded)
        with_suffix = beside.with_name(beside.name + ".yaml")
        found = next((each for each in (beside, with_suffix) if is_file(each)), None)
        cache.found[file, name] = found or elsewhere.find(name)
    parent = cache.found[file, name]
    if parent is None:
        beside = absolute(file.parent / expand(name)[0])
        where = "is no file" if is_folder(beside) else "is not there"
        near = [*_like_it_beside(name, beside, chain), *elsewhere.nearest(name)][:2]
        leads = " → ".join(seen_from_here(each) for each in chain)
        return problem(
            f"{name} {where}, neither relative to this file nor among the shipped configs"
            + (f" ({leads} leads here)" if len(chain) > 1 else ""),
            f"did you mean {' or '.join(near)}?" if near else "name a file relative to this one",
        )
    if parent in chain:
        circle = (*chain[chain.index(parent) :], parent)
        return problem(
            "goes in a circle: " + " → ".join(seen_from_here(each) for each in circle),
            "remove one of these `extends:`",
        )
    return parent, None


def _like_it_beside(name: str, beside: Path, chain: Sequence[Path]) -> list[str]:
    """Give the name, mended, of a config in the folder in which ``beside`` was looked for."""
    try:
        configs = beside.parent.glob("*.yaml")
        there = sorted(path.name for path in configs if path not in chain)
    except OSError:
        return []
    folder = name[: name.rfind("/") + 1]
    return [folder + each for each in difflib.get_close_matches(beside.name, there, 1, 0.75)]


def merge(family: Family, show: Callable[[Path], str], trees: Trees) -> Branch:
    """Apply the files of a family in order.

    Args:
        family: the files.
        show: how the path of a file is shown in an origin.
        trees: what chains of files come to, merged before; extended.

    Returns:
        The merged keys, ``args`` among them, ``extends`` not.
    """
    chain = tuple(family.files)
    # Siblings have the whole chain but themselves in common.
    length = len(chain) - 1 if chain[:-1] in trees else 0
    tree = trees[chain[:-1]] if length else Branch(DEFAULT_ORIGIN)
    for path in chain[length:]:
        length += 1
        if chain[:length] not in trees:
            stated = family.files[path].stated.entries
            keys = {name: entry for name, entry in stated.items() if name != "extends"}
            origin_at = origins_in(path, show(path))
            trees[chain[:length]] = overlaid(tree, StatedMapping(keys, 1), origin_at)
        tree = trees[chain[:length]]
    return tree


def origins_in(file: Path, shown: str) -> Callable[[int], Origin]:
    """Give what makes the origin of a line of a file."""
    return lambda line: Origin(f"{shown}:{line}", file, line)


def overlaid(below: Branch, above: StatedMapping, origin_at: Callable[[int], Origin]) -> Branch:
    """Give ``below`` with what ``above`` states: mappings merge, everything else replaces.

    Of the values alone, overlaying is associative where a key is a mapping in all files or in none:
    a, then b, then c comes to what a, then (b overlaid with c) comes to. A value that stands
    between two mappings is the exception, because it takes the lower one away: ``{x: {p: 1}}``,
    ``{x: null}``, ``{x: {q: 2}}`` come to ``{x: {q: 2}}``, while the last two by themselves come to
    ``{x: {q: 2}}`` and that, over the first, to ``{x: {p: 1, q: 2}}``. In a config without mistakes
    only a data source that one file drops and a later one names anew is such a key.
    """
    entries = dict(below.entries)
    for name, entry in above.entries.items():
        present = entries.get(name)
        origin = origin_at(entry.line)
        if isinstance(entry, StatedMapping):
            branch = present if isinstance(present, Branch) else Branch(origin)
            entries[name] = overlaid(branch, entry, origin_at)
            continue
        history: tuple[Overridden, ...] = ()
        if isinstance(present, Leaf):
            history = (Overridden(present.value, present.origin), *present.overrode)
        entries[name] = Leaf(entry.value, origin, history)
    return Branch(below.origin, entries)


def stated_keys(
    stated: StatedMapping, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Stated]]:
    """Give every key with a value that a file states; an empty mapping states nothing."""
    for name, entry in stated.entries.items():
        if isinstance(entry, Stated):
            yield (*prefix, name), entry
        else:
            yield from stated_keys(entry, (*prefix, name))


def file_tree(family: Family, leaves: dict[str, Leaf], show: Callable[[Path], str]) -> FileNode:
    """Count, for each file of the family, the keys it states and those that were replaced."""

    def node(path: Path) -> FileNode:
        file = family.files[path]
        keys = [
            (".".join(key), stated.line)
            for key, stated in stated_keys(file.stated)
            if key[0] not in ("extends", "args")
        ]
        num_shadowed = sum(not _counts(leaves.get(key), path, line) for key, line in keys)
        parents = tuple(node(each) for each in file.parents)
        return FileNode(path, len(keys), num_shadowed, parents, show(path))

    return node(family.root)


def _counts(leaf: Leaf | None, path: Path, line: int) -> bool:
    """Say whether a leaf of the resolved config is the one stated in this line."""
    return leaf is not None and (leaf.origin.file, leaf.origin.line) == (path, line)


def absolute(path: Path) -> Path:
    """Make a path absolute and take out its ``..``; links stay as they were written."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links


def is_file(path: Path) -> bool:
    """Say whether a file is there that could be opened; a path that cannot be looked at is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a folder that may not be entered, a zero byte
        return False


def exists(path: Path) -> bool:
    """Say whether anything is there; a path that cannot be looked at is none."""
    return is_file(path) or is_folder(path)


def is_folder(path: Path) -> bool:
    """Say whether a folder is there; a path that cannot be looked at is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def expand(text: str) -> tuple[str, str]:
    """Expand ``~`` and ``$VARS`` in a path.

    Returns:
        The path, and what is wrong with it ("" where nothing is): a variable that is not set, a
        user that is not known.
    """
    for found in _VARIABLE.finditer(text):
        name = found.group(1).strip("{}")
        if name not in os.environ:
            return text, f"the variable ${name} is not set"
    expanded = os.path.expandvars(text)
    if expanded.startswith("~"):
        try:
            return str(Path(expanded).expanduser()), ""
        except RuntimeError:
            return text, f"the home folder of {expanded.split('/')[0]} is not known"
    return expanded, ""
