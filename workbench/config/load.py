"""Path, flags and ``key=value`` turned into one typed, resolved config; every mistake at once.

The strict half of the config layer: files come merged from ``inherit``, types and words from
``schema/keys``, rules between keys from ``checks``. msgspec names only the first mistake and lets
infinity pass a lower bound, so keys are walked here and msgspec builds what is already right.

Invariant: a ResolvedConfig has no mistake that can be seen without its model and data.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import msgspec

from workbench.config import checks
from workbench.config import flags as flags_module
from workbench.config.flags import (
    Flag,
    Override,
    did_you_mean,
    is_data_path,
    parse_overrides,
)
from workbench.config.hub_id import looks_like_hub_id
from workbench.config.inherit import (
    DEFAULT_ORIGIN,
    Branch,
    Family,
    FileCache,
    FileNode,
    Leaf,
    Origin,
    Overridden,
    Trees,
    absolute,
    exists,
    expand,
    file_tree,
    is_file,
    is_folder,
    merge,
    origins_in,
    overlaid,
    read_family,
)
from workbench.config.problems import ConfigProblems, Problem, in_file_order, seen_from_here
from workbench.config.schema.config import Config
from workbench.config.schema.keys import (
    MISSING,
    Key,
    accepts,
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
    Stated,
    StatedMapping,
    kind_in_words,
    read_file,
    read_text,
    write_scalar,
)

__all__ = [
    "ConfigListing",
    "ConfigProblems",
    "FileNode",
    "Flag",
    "Leaf",
    "Origin",
    "Overridden",
    "Override",
    "Problem",
    "ResolvedConfig",
    "config_names",
    "dump_config",
    "files_of",
    "find_config",
    "list_configs",
    "offered_flags",
    "parse_overrides",
    "read_resolved",
    "resolve",
    "resolve_text",
    "shipped_configs",
    "shipped_templates",
    "template_names",
]

BASE_FOLDER = "base"
"""Folder of configs that are only extended; ``ls`` leaves it out."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A config without a mistake, and where each of its values comes from.

    Attributes:
        name: as the user may type it: ``1gpu_llama_7b/default``.
        file: absolute path of its file.
        config: every key present, paths absolute.
        leaves: every key as ``section.key``, in the order of the schema.
        files: the config and what it extends.
        flags: what its ``args:`` offer; a default is the value without any override.
    """

    name: str
    file: Path
    config: Config
    leaves: dict[str, Leaf]
    files: FileNode
    flags: tuple[Flag, ...]


@dataclass(frozen=True)
class ConfigListing:
    """A line of ``ls``.

    Attributes:
        name: as the user may type it.
        path: absolute.
        description: its own line, "" for a broken config.
        num_gpus: ranks it needs, 0 where it asks for the CPU; None for a broken config.
        context: tokens of a row; None for a broken config.
        problem: the first mistake of a broken config, with file:line; else None.
    """

    name: str
    path: Path
    description: str = ""
    num_gpus: int | None = None
    context: int | None = None
    problem: str | None = None


# ---- where configs are ----------------------------------------------------------------------


@cache
def _shipped(name: str) -> Path:
    """Find a shipped folder: at the top of a checkout, among the modules of an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "shipped" / name
    return inside if inside.is_dir() else package.parent / name


def shipped_configs() -> Path:
    """Give the folder of the configs that come with workbench."""
    return _shipped("configs")


def shipped_templates() -> Path:
    """Give the folder of the chat templates that come with workbench."""
    return _shipped("chat_templates")


def config_folders(project: Path | None) -> list[Path]:
    """Give the folders a config name is looked up in: the project's ``configs``, then the shipped.

    Raises:
        ConfigProblems: the project is no folder.
    """
    if project is not None and not is_folder(project):
        problem = Problem(
            key="",
            what="is not a folder" if is_file(project) else "is not there",
            remedy="name the folder that holds configs/: -p PROJECT",
            source=f"project {project}",
        )
        raise ConfigProblems([problem])
    own = absolute((project or Path()) / "configs")
    folders = [own] if is_folder(own) else []
    shipped = shipped_configs()
    return folders if own.resolve() == shipped.resolve() else [*folders, shipped]


def find_config(name: str, *, project: Path | None = None) -> Path:
    """Find the file of a config: a path, a path without ``.yaml``, or a name in ``configs/``.

    Raises:
        ConfigProblems: there is none; the nearest names are in the remedy.
    """
    expanded, trouble = expand(name)
    if trouble:
        problem = Problem(
            key="", what=trouble, remedy="set it, or write the path out", source=f"config {name}"
        )
        raise ConfigProblems([problem])
    folders = config_folders(project)
    # `configs/demo.yaml` is a path in a checkout; elsewhere it means the same config.
    inside = expanded.removeprefix("configs/")
    for folder, wanted in ((Path.cwd(), expanded), *((folder, inside) for folder in folders)):
        if (found := _file_in(folder, wanted)) is not None:
            return found
    names = [listed for listed, _ in _config_files(folders, with_bases=True)]
    near = _nearest(name, names)
    remedy = f"did you mean {' or '.join(near)}?" if near else "choose one of `workbench ls`"
    where = " or ".join(seen_from_here(folder) for folder in folders)
    problem = Problem(
        key="",
        what=f"no such config, neither as a path nor in {where}",
        remedy=remedy,
        source=f"config {name}",
    )
    raise ConfigProblems([problem])


def config_names(
    project: Path | None = None, *, with_bases: bool = False
) -> Iterator[tuple[str, Path]]:
    """Give name and file of every config, the project's first; nothing is read but folders.

    Raises:
        ConfigProblems: the project is no folder.
    """
    return _config_files(config_folders(project), with_bases=with_bases)


def template_names(project: Path | None = None) -> dict[str, Path]:
    """Give the file of every chat template by its name; one of the project hides a shipped one."""
    names = _template_names(project)
    return {name: path or shipped_templates() / f"{name}.jinja" for name, path in names.items()}


def files_of(path: Path, read_before: FileCache | None = None) -> list[Path]:
    """Give a config's file and all it extends, as far as they can be read, also of a broken one."""
    shipped = shipped_configs()
    family = read_family(
        absolute(path),
        look_up=lambda name: _file_in(shipped, name),
        cache=FileCache() if read_before is None else read_before,
    )
    return family.in_reading_order()


def _file_in(folder: Path, name: str) -> Path | None:
    """Find a config file by name below a folder, with or without its suffix."""
    if not name:
        return None
    exact = absolute(folder / name)
    for candidate in (exact, exact.with_name(exact.name + ".yaml") if exact.name else exact):
        if is_file(candidate):
            return candidate
    return None


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    """Give up to three names like the one typed: by spelling, by last part, or containing it."""
    wanted = name.removesuffix(".yaml").removeprefix("configs/")
    by_last_part = {each.rsplit("/", 1)[-1]: each for each in reversed(names)}
    near = difflib.get_close_matches(wanted, names, n=3)
    last = wanted.rsplit("/", 1)[-1]
    near += [by_last_part[each] for each in difflib.get_close_matches(last, by_last_part, n=2)]
    near += [each for each in names if wanted and wanted in each]
    return list(dict.fromkeys(near))[:3]


def _config_files(
    folders: Sequence[Path], *, with_bases: bool = False
) -> Iterator[tuple[str, Path]]:
    """Give name and path of every config below the folders; the first of a name counts."""
    seen: set[str] = set()
    for folder in folders:
        for path in sorted(_yaml_files(folder), key=_by_numbers):
            name = path.relative_to(folder).with_suffix("").as_posix()
            is_listed = with_bases or not name.startswith(f"{BASE_FOLDER}/")
            if is_listed and name not in seen:
                seen.add(name)
                yield name, path


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Give what a file is sorted by: numbers by their value, so that 7b comes before 30b."""
    words = re.split(r"(\d+)", path.as_posix())
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def _yaml_files(folder: Path) -> Iterator[Path]:
    # os.walk follows no links, so a link to an output tree or to a parent leads nowhere.
    for where, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__"))]
        for name in names:
            if name.endswith(".yaml") and not name.startswith("."):
                yield Path(where) / name


def name_of(path: Path, folders: Sequence[Path]) -> str:
    """Give the name under which a config file is found, else its file name without suffix."""
    for folder in folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder).with_suffix("").as_posix()
    return path.stem


def _shower(folders: Sequence[Path]) -> Callable[[Path], str]:
    """Give how a path is shown in an origin: short below ``configs/``, else from here."""

    def show(path: Path) -> str:
        for folder in folders:
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return seen_from_here(path)

    return show


# ---- from a name to a resolved config ---------------------------------------------------------


def resolve(
    name: str, *, project: Path | None = None, overrides: Sequence[Override] = ()
) -> ResolvedConfig:
    """Resolve a config: its files, then the overrides in the order given.

    Args:
        name: ``1gpu_llama_7b/default``, with ``.yaml``, or a path.
        project: folder whose ``configs/`` comes before the shipped ones; None: the current one.
        overrides: from flags and ``key=value``.

    Raises:
        ConfigProblems: every mistake that was found, in file order.
    """
    folders = config_folders(project)
    path = find_config(name, project=project)
    return _resolve_file(path, folders, overrides, _Shared(_template_names(project)))


def resolve_text(text: str, path: Path, *, project: Path | None = None) -> ResolvedConfig:
    """Resolve a config that is not written yet (`workbench new`), as if it were the file ``path``.

    Raises:
        ConfigProblems: every mistake that was found, in file order.
    """
    path = absolute(path)
    files = FileCache({path: read_text(text, path)})
    shared = _Shared(_template_names(project), files)
    return _resolve_file(path, config_folders(project), (), shared)


def offered_flags(name: str, *, project: Path | None = None) -> tuple[Flag, ...]:
    """Give the flags a config offers, so that arguments can be read before it is resolved.

    Raises:
        ConfigProblems: there is no such config, or its ``args:`` cannot be read.
    """
    folders = config_folders(project)
    path = find_config(name, project=project)
    shared = _Shared(_template_names(project))
    draft = _draft(path, folders, shared)
    flags, problems = _flags(draft)
    if problems or draft.family.problems:
        # A broken file may have been the one that offers a flag: its mistakes come first, all of
        # them, and not a complaint about a flag.
        _resolve_file(path, folders, (), shared)
        raise AssertionError(f"{path} has mistakes and resolves")
    return flags


@dataclass
class _Shared:
    """What configs that are resolved one after the other share: it is read and judged once.

    Attributes:
        templates: the chat templates by name, as ``_template_names`` gives them.
        files: as they were read.
        trees: what chains of files come to.
        walked: sections that were judged, by the branch they were made of; a branch that no file of
            its own touches is the very one of its base.
        flag_problems: mistakes in ``args:``, by its branch.
    """

    templates: dict[str, Path | None]
    files: FileCache = field(default_factory=FileCache)
    trees: Trees = field(default_factory=dict)
    walked: dict[Branch, "_Walked"] = field(default_factory=dict)
    flag_problems: dict[Branch, list[Problem]] = field(default_factory=dict)


@dataclass
class _Draft:
    """The files of a config, merged, before overrides and checks; ``args`` stands apart."""

    family: Family
    tree: Branch
    args: Leaf | Branch | None
    show: Callable[[Path], str]


def _draft(path: Path, folders: Sequence[Path], shared: _Shared) -> _Draft:
    shipped = shipped_configs()
    show = _shower([*folders, shipped])
    family = read_family(path, look_up=lambda name: _file_in(shipped, name), cache=shared.files)
    tree = merge(family, show, shared.trees)
    args = tree.entries.get("args")
    keys = {name: entry for name, entry in tree.entries.items() if name != "args"}
    return _Draft(family, Branch(tree.origin, keys), args, show)


def _flags(draft: _Draft) -> tuple[tuple[Flag, ...], list[Problem]]:
    return flags_module.build_flags(draft.args, lambda key: _present(draft.tree, key))


def _flag_problems(draft: _Draft, shared: _Shared) -> list[Problem]:
    """Give the mistakes in ``args:``, which depend on nothing else."""
    if not isinstance(draft.args, Branch):
        return _flags(draft)[1]
    if draft.args not in shared.flag_problems:
        shared.flag_problems[draft.args] = _flags(draft)[1]
    return shared.flag_problems[draft.args]


def _present(tree: Branch, key: str) -> Leaf | None:
    """Give the leaf of a key: as merged, else the schema's default; None where it has none."""
    found: Leaf | Branch | None = tree
    for part in key.split("."):
        found = found.entries.get(part) if isinstance(found, Branch) else None
    if isinstance(found, Leaf):
        return found
    schema_key = key_at(key.split("."))
    if schema_key is None or schema_key.default is MISSING:
        return None
    return Leaf(schema_key.default, DEFAULT_ORIGIN)


def _resolve_file(
    path: Path, folders: Sequence[Path], overrides: Sequence[Override], shared: _Shared
) -> ResolvedConfig:
    draft = _draft(path, folders, shared)
    config, leaves = _judged(draft, overrides, shared)
    flags, _ = _flags(draft)
    return ResolvedConfig(
        name=name_of(path, folders),
        file=path,
        config=config,
        leaves=_with_typed_values(leaves, msgspec.to_builtins(config)),
        files=file_tree(draft.family, leaves, draft.show),
        flags=flags,
    )


def _judged(
    draft: _Draft, overrides: Sequence[Override], shared: _Shared
) -> tuple[Config, dict[str, Leaf]]:
    """Give the typed config of a draft with its leaves.

    Raises:
        ConfigProblems: every mistake that was found, in file order.
    """
    problems = [*draft.family.problems, *_flag_problems(draft, shared)]
    tree = draft.tree
    for override in overrides:
        tree = _with_override(tree, override, problems)
    walked = _walk(tree, shared)
    problems += walked.problems
    config = msgspec.convert(walked.values, Config)
    if not draft.family.problems:
        problems += [
            _at_origin(problem, walked.leaves)
            for problem in checks.check(config)
            if not walked.mistaken.intersection((problem.key, *problem.others))
        ]
    if problems:
        raise ConfigProblems(in_file_order(problems, draft.family.in_reading_order()))
    return config, walked.leaves


def _with_typed_values(leaves: dict[str, Leaf], values: object) -> dict[str, Leaf]:
    """Give leaves the values of the typed config: `1` for a key that is a number is 1.0."""

    def at(key: str) -> object:
        found = values
        for part in key.split("."):
            assert isinstance(found, dict), key
            found = found[part]
        return found

    return {key: replace(leaf, value=at(key)) for key, leaf in leaves.items()}


def _with_override(tree: Branch, override: Override, problems: list[Problem]) -> Branch:
    """Put an override on top; a key that cannot be is left to the walk, which names it."""
    origin = Origin(override.source)
    parts = override.key.split(".")
    if not all(parts) or parts[0] in ("extends", "args"):
        problems.append(
            Problem(
                key=override.key,
                what="cannot be set beside the files",
                remedy="set a key such as optimizer.learning_rate",
                source=override.source,
            )
        )
        return tree
    entry: Stated | StatedMapping = _stated(override.value)
    for part in reversed(parts):
        entry = StatedMapping({part: entry}, 0)
    assert isinstance(entry, StatedMapping)
    return overlaid(tree, entry, lambda line: origin)


def _stated(value: object) -> Stated | StatedMapping:
    if isinstance(value, dict):
        return StatedMapping({str(key): _stated(entry) for key, entry in value.items()}, 0)
    return Stated(value, 0)


def _at_origin(problem: Problem, leaves: dict[str, Leaf]) -> Problem:
    """Add to a problem of a rule who states its key, or the first other key that is stated."""
    for key in (problem.key, *problem.others):
        if key in leaves and leaves[key].origin != DEFAULT_ORIGIN:
            origin = leaves[key].origin
            return replace(problem, file=origin.file, line=origin.line, source=origin.source)
    return replace(problem, source=DEFAULT_ORIGIN.source)


def at_origins(problems: Sequence[Problem], resolved: ResolvedConfig) -> list[Problem]:
    """Add to the problems of ``checks`` the file:line of the keys they name."""
    return [_at_origin(problem, resolved.leaves) for problem in problems]


@dataclass
class _Walked:
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


def _walk(tree: Branch, shared: _Shared) -> _Walked:
    """Walk a whole config, taking sections that are those of an earlier one from there."""
    whole = _Walk(shared.templates)
    known = keys_of(Config)
    for name, unknown in tree.entries.items():
        if name not in known:
            whole.unknown(name, unknown, (), list(known))
    for name, key in known.items():
        entry = tree.entries.get(name)
        part = shared.walked.get(entry) if isinstance(entry, Branch) else None
        if part is None:
            walk = _Walk(shared.templates)
            walk.key(key, entry, (name,), tree)
            part = walk.found
            if isinstance(entry, Branch):
                shared.walked[entry] = part
        whole.found.values |= part.values
        whole.found.leaves |= part.leaves
        whole.found.problems += part.problems
        whole.found.mistaken |= part.mistaken
    return whole.found


class _Walk:
    """Walks merged keys beside the schema: collects leaves, values, and every mistake.

    Args:
        templates: the chat templates there are; None leaves names and paths as they are.
    """

    def __init__(self, templates: dict[str, Path | None] | None) -> None:
        self._templates = templates
        self.found = _Walked()

    def key(
        self, key: Key, entry: Leaf | Branch | None, path: tuple[str, ...], above: Branch
    ) -> None:
        """Walk one key of the top level."""
        self._key(key, entry, path, above, self.found.values)

    def section(
        self, section: type[msgspec.Struct], branch: Branch, path: tuple[str, ...]
    ) -> dict[str, object]:
        """Give the values of a section, one for each of its keys."""
        known = keys_of(section)
        for name, unknown in branch.entries.items():
            if name not in known:
                self.unknown(name, unknown, path, list(known))
        values: dict[str, object] = {}
        for name, key in known.items():
            self._key(key, branch.entries.get(name), (*path, name), branch, values)
        return values

    def _key(
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
            self._mistake(path, above, f"{key.name} is missing", f"add {key.name}")
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
                    "indent its keys below it, or remove the line",
                )
            self.found.mistaken.update(".".join((*path, name)) for name in keys_of(section))
            entry = None
        return self.section(section, entry or Branch(DEFAULT_ORIGIN), path)

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
                    "indent its keys below it",
                )
            else:
                below = self.section(section, inner, here)
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
                return self._accepted(path, entry, key.default)
            if entry.value is UNREADABLE:
                self.found.mistaken.add(".".join(path))
                return key.default
        value = entry.value if isinstance(entry, Leaf) else {}
        self._mistake(
            path,
            entry,
            f"expected {describe(key.annotation)}, got {kind_in_words(value)}",
            _remedy(key.annotation, value, key.default),
        )
        return key.default

    def _accepted(self, path: tuple[str, ...], leaf: Leaf, default: object) -> object:
        """Give a value of the right type, made absolute where it is a path."""
        value = leaf.value
        if isinstance(value, str) and self._templates is not None and path[-1] in _MAY_BE_PATHS:
            try:
                value = _located(".".join(path), value, leaf.origin, self._templates)
            except _NotLocatedError as error:
                self._mistake(path, leaf, error.what, error.remedy)
                # Complete for the rules between keys, which look at no path.
                value = leaf.value
        self._leaf(path, leaf if value == leaf.value else replace(leaf, value=value))
        return value

    def _leaf(self, path: tuple[str, ...], leaf: Leaf) -> None:
        self.found.leaves[".".join(path)] = leaf

    def unknown(
        self, name: str, entry: Leaf | Branch, path: tuple[str, ...], known: list[str]
    ) -> None:
        """Name a key that is none, and the one it may be meant to be."""
        remedy = did_you_mean(name, known).removeprefix("; ")
        if not remedy:
            by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(all_keys())}
            near = difflib.get_close_matches(name, by_last_part, n=1)
            remedy = f"did you mean {by_last_part[near[0]]}?" if near else ""
        if "." in name:
            remedy = f"nest it: {name.split('.')[0]}: with the rest indented below it"
        self._mistake(
            (*path, name),
            entry,
            "no such key",
            remedy or ("remove it" if not path else f"{path[-1]} has {', '.join(known)}"),
        )

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


def _remedy(annotation: object, value: object, default: object) -> str:
    """Say what to do about a value that is not of its key's type."""
    if kind_of(annotation) == "list" and not isinstance(value, (list, dict)):
        return "write it as a list: [" + write_scalar(value) + "]"
    if isinstance(value, str):
        near = did_you_mean(value, choices_of(annotation)).removeprefix("; ")
        if near:
            return near
        if kind_of(annotation) == "boolean" and value.lower() in _BOOLEAN_WORDS:
            return f"write {_BOOLEAN_WORDS[value.lower()]}"
        number = value.replace("_", "").replace(",", "")
        if number != value and number.isdecimal():
            return "write the number without separators"
    elif isinstance(value, (int, float)) and accepts(annotation, str(value)):
        return "put it in quotes"
    elif value is None and default not in (MISSING, None):
        return "give a value, or remove the line"
    return "correct the value"


_BOOLEAN_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words that older YAML took for booleans."""


_MAY_BE_PATHS = {"path", "output_dir", "resume", "chat_template"}
"""Last words of the keys that name a file or folder."""


class _NotLocatedError(Exception):
    """A path or a template that cannot be found out."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy


def _located(key: str, value: str, origin: Origin, templates: dict[str, Path | None]) -> str:
    """Make a path absolute: relative to the file that states it, else to the current folder.

    A data path that is not there and has the form ``owner/name`` is an id on the hub and stays, as
    do words that are no path, such as ``auto``; of a project's own template the path is given.

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
    path = absolute((origin.file.parent if origin.file else Path.cwd()) / expanded)
    if is_data_path(key) and looks_like_hub_id(value) and not exists(path):
        return value
    return str(path)


def _looks_like_path(template: str) -> bool:
    return "/" in template or template.endswith(".jinja") or template.startswith(("~", "$"))


def _template_names(project: Path | None) -> dict[str, Path | None]:
    """Name the chat templates: the project's with their path, the shipped ones by name alone."""
    shipped: dict[str, Path | None] = {
        path.stem: None for path in sorted(shipped_templates().glob("*.jinja"))
    }
    own = absolute((project or Path()) / "chat_templates")
    if own.resolve() == shipped_templates().resolve():
        return shipped
    return shipped | {path.stem: path for path in sorted(own.glob("*.jinja"))}


def _no_such_template(name: str, templates: dict[str, Path | None]) -> _NotLocatedError:
    near = did_you_mean(name, ["auto", *templates]).removeprefix("; ")
    return _NotLocatedError(
        f"no chat template is called {name}",
        near or f"use auto, a .jinja file, or one of {', '.join(templates)}",
    )


# ---- lists, and resolved files ----------------------------------------------------------------


def list_configs(project: Path | None = None) -> list[ConfigListing]:
    """List the project's configs, then the shipped ones; a broken one carries its problem.

    Raises:
        ConfigProblems: the project is no folder.
    """
    folders = config_folders(project)
    shared = _Shared(_template_names(project))
    listings = []
    for name, path in _config_files(folders):
        try:
            config, _ = _judged(_draft(path, folders, shared), (), shared)
        except ConfigProblems as error:
            listings.append(ConfigListing(name, path, problem=str(error.problems[0])))
            continue
        num_gpus = config.pipeline.ranks * config.pipeline.replicas
        listings.append(
            ConfigListing(
                name,
                path,
                description=config.description,
                num_gpus=0 if config.training.device == "cpu" else num_gpus,
                context=config.data.max_length,
            )
        )
    return listings


def dump_config(config: Config) -> str:
    """Write a config as YAML: every key present, in the order of the schema."""
    return "".join(f"{line}\n" for line, _ in config_lines(config))


def config_lines(config: Config) -> Iterator[tuple[str, str | None]]:
    """Give the lines of a config as YAML, each with its key; None for the line of a section."""
    yield from _lines(msgspec.to_builtins(config), ())


def _lines(values: dict[str, object], path: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    indent = "  " * len(path)
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, dict) and value:
            yield f"{indent}{write_scalar(name)}:", None
            yield from _lines(value, here)
        else:
            yield f"{indent}{write_scalar(name)}: {write_scalar(value)}", ".".join(here)


def read_resolved(path: Path) -> Config:
    """Read the resolved config of a run folder: what workers train by.

    Raises:
        ConfigProblems: it cannot be read, a key is missing, unknown or of the wrong type.
    """
    path = absolute(path)
    stated, problems = read_file(path)
    if not problems:
        tree = overlaid(
            Branch(Origin(seen_from_here(path), path)),
            stated,
            origins_in(path, seen_from_here(path)),
        )
        walk = _Walk(None)
        values = walk.section(Config, tree, ())
        problems += walk.found.problems
        problems += [
            Problem(
                key=key,
                what="is missing",
                remedy="start the run anew from its config: this file names every key",
                file=path,
            )
            for key, leaf in walk.found.leaves.items()
            if leaf.origin == DEFAULT_ORIGIN
        ]
        if not problems:
            return msgspec.convert(values, Config)
    raise ConfigProblems(in_file_order(problems, [path]))
