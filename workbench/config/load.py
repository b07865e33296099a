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
from pathlib import Path

import msgspec

from workbench.config import checks
from workbench.config import flags as flags_module
from workbench.config.flags import (
    Flag,
    Override,
    did_you_mean,
    is_data_path,
    is_path,
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
    absolute,
    exists,
    expand,
    file_tree,
    is_file,
    is_folder,
    merge,
    put,
    read_family,
)
from workbench.config.problems import ConfigProblems, Problem, in_file_order, seen_from_here
from workbench.config.schema.config import Config
from workbench.config.schema.keys import (
    MISSING,
    accepts,
    all_keys,
    allows_null,
    choices_of,
    describe,
    key_at,
    keys_of,
    kind_of,
    section_of,
    value_type_of_mapping,
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


def files_of(path: Path) -> list[Path]:
    """Give a config's file and all it extends, as far as they can be read, also of a broken one."""
    shipped = shipped_configs()
    family = read_family(absolute(path), look_up=lambda name: _file_in(shipped, name), cache={})
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
    return _resolve_file(path, folders, overrides, {}, templates=_template_names(project))


def resolve_text(text: str, path: Path, *, project: Path | None = None) -> ResolvedConfig:
    """Resolve a config that is not written yet, as if ``text`` were the content of ``path``.

    Raises:
        ConfigProblems: every mistake that was found, in file order.
    """
    path = absolute(path)
    cache: FileCache = {path: read_text(text, path)}
    return _resolve_file(path, config_folders(project), (), cache, _template_names(project))


def offered_flags(name: str, *, project: Path | None = None) -> tuple[Flag, ...]:
    """Give the flags a config offers, so that arguments can be read before it is resolved.

    Raises:
        ConfigProblems: there is no such config, or its ``args:`` cannot be read.
    """
    folders = config_folders(project)
    path = find_config(name, project=project)
    cache: FileCache = {}
    draft = _draft(path, folders, cache)
    if draft.flag_problems or draft.family.problems:
        # A broken file may have been the one that offers a flag: its mistakes come first, all of
        # them, and not a complaint about a flag.
        _resolve_file(path, folders, (), cache, _template_names(project))
        raise AssertionError(f"{path} has mistakes and resolves")
    return draft.flags


@dataclass
class _Draft:
    """The files of a config, merged, before overrides and checks."""

    family: Family
    tree: Branch
    flags: tuple[Flag, ...]
    flag_problems: list[Problem]
    show: Callable[[Path], str]


def _draft(path: Path, folders: Sequence[Path], cache: FileCache) -> _Draft:
    shipped = shipped_configs()
    show = _shower([*folders, shipped])
    family = read_family(path, look_up=lambda name: _file_in(shipped, name), cache=cache)
    tree = merge(family, show)
    args = tree.entries.pop("args", None)
    flags, problems = flags_module.build_flags(args, lambda key: _present(tree, key))
    return _Draft(family, tree, flags, problems, show)


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
    path: Path,
    folders: Sequence[Path],
    overrides: Sequence[Override],
    cache: FileCache,
    templates: dict[str, Path | None],
) -> ResolvedConfig:
    draft = _draft(path, folders, cache)
    problems = [*draft.family.problems, *draft.flag_problems]
    for override in overrides:
        _apply(draft.tree, override, problems)
    walk = _Walk(problems)
    values = walk.section(Config, draft.tree, ())
    _expand_paths(walk, values, templates)
    is_complete = not draft.family.problems
    if is_complete:
        problems += [
            _at_origin(problem, walk.leaves)
            for problem in checks.check(msgspec.convert(values, Config))
            if not walk.mistaken.intersection((problem.key, *problem.others))
        ]
    if problems:
        raise ConfigProblems(in_file_order(problems, draft.family.in_reading_order()))
    config = msgspec.convert(values, Config)
    return ResolvedConfig(
        name=name_of(path, folders),
        file=path,
        config=config,
        leaves=_with_typed_values(walk.leaves, msgspec.to_builtins(config)),
        files=file_tree(draft.family, walk.leaves, draft.show),
        flags=draft.flags,
    )


def _with_typed_values(leaves: dict[str, Leaf], values: object) -> dict[str, Leaf]:
    """Give leaves the values of the typed config: `1` for a key that is a number is 1.0."""

    def at(key: str) -> object:
        found = values
        for part in key.split("."):
            assert isinstance(found, dict), key
            found = found[part]
        return found

    return {key: replace(leaf, value=at(key)) for key, leaf in leaves.items()}


def _apply(tree: Branch, override: Override, problems: list[Problem]) -> None:
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
        return
    entry: Stated | StatedMapping = _stated(override.value)
    for part in reversed(parts[1:]):
        entry = StatedMapping({part: entry}, 0)
    put(tree, parts[0], entry, lambda line: origin)


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
class _Walk:
    """Walks merged keys beside the schema: collects leaves, values, and every mistake.

    Attributes:
        leaves: each key and its leaf, in the order of the schema.
        mistaken: keys with a mistake; their values are the schema's defaults.
    """

    problems: list[Problem]
    leaves: dict[str, Leaf] = field(default_factory=dict)
    mistaken: set[str] = field(default_factory=set)

    def section(
        self, section: type[msgspec.Struct], branch: Branch, path: tuple[str, ...]
    ) -> dict[str, object]:
        """Give the values of a section, one for each of its keys."""
        known = keys_of(section)
        for name, unknown in branch.entries.items():
            if name not in known:
                self._unknown(name, unknown, path, list(known))
        values: dict[str, object] = {}
        for name, key in known.items():
            here = (*path, name)
            entry: Leaf | Branch | None = branch.entries.get(name)
            if (inner := section_of(key.annotation)) is not None:
                values[name] = self._inner_section(inner, entry, here)
            elif (value_type := value_type_of_mapping(key.annotation)) is not None:
                values[name] = self._mapping(value_type, entry, here, branch.origin)
            elif entry is None and key.default is MISSING:
                self._mistake(here, branch, f"{name} is missing", f"add {name}")
            elif entry is None:
                self._leaf(here, Leaf(key.default, DEFAULT_ORIGIN))
                values[name] = key.default
            else:
                value = self._value(key.annotation, entry, here, key.default)
                if value is not MISSING:
                    values[name] = value
        return values

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
            self.mistaken.update(".".join((*path, name)) for name in keys_of(section))
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
            self.mistaken.add(".".join(path))
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
                value = self._value(value_type, inner, here, MISSING)
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

    def _value(
        self, annotation: object, entry: Leaf | Branch, path: tuple[str, ...], default: object
    ) -> object:
        if isinstance(entry, Leaf) and accepts(annotation, entry.value):
            value = entry.value
            self._leaf(path, entry)
            return value
        if isinstance(entry, Leaf) and entry.value is UNREADABLE:
            self.mistaken.add(".".join(path))
            return default
        value = entry.value if isinstance(entry, Leaf) else {}
        self._mistake(
            path,
            entry,
            f"expected {describe(annotation)}, got {kind_in_words(value)}",
            _remedy(annotation, value, default),
        )
        return default

    def _leaf(self, path: tuple[str, ...], leaf: Leaf) -> None:
        self.leaves[".".join(path)] = leaf

    def _unknown(
        self, name: str, entry: Leaf | Branch, path: tuple[str, ...], known: list[str]
    ) -> None:
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
        self.mistaken.add(key)
        origin = entry.origin
        self.problems.append(
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


def _expand_paths(
    walk: _Walk, values: dict[str, object], templates: dict[str, Path | None]
) -> None:
    """Make every path absolute: relative to the file that states it, else to the current folder.

    A data path that is not there and has the form ``owner/name`` is an id on the hub and stays.
    """
    for key, leaf in walk.leaves.items():
        value = leaf.value
        if not isinstance(value, str) or leaf.origin == DEFAULT_ORIGIN:
            continue
        if key == "data.chat_template" and not _looks_like_path(value):
            if value not in ("auto", *templates):
                walk.problems.append(_at_origin(_no_such_template(value, templates), walk.leaves))
            path = templates.get(value)
            if path is not None:
                _set(walk, values, key, str(path))
            continue
        is_resume = key == "checkpoints.resume" and value not in ("auto", "no")
        if not (is_path(key) or is_resume or key == "data.chat_template"):
            continue
        expanded, trouble = expand(value)
        if trouble or not value:
            walk.problems.append(
                _at_origin(
                    Problem(
                        key=key,
                        what=trouble or "an empty path",
                        remedy="set it, or write the path out" if trouble else "give a path",
                    ),
                    walk.leaves,
                )
            )
            continue
        folder = leaf.origin.file.parent if leaf.origin.file else Path.cwd()
        path = absolute(folder / expanded)
        if is_data_path(key) and looks_like_hub_id(value) and not exists(path):
            continue
        _set(walk, values, key, str(path))


def _set(walk: _Walk, values: dict[str, object], key: str, value: str) -> None:
    walk.leaves[key] = replace(walk.leaves[key], value=value)
    *sections, last = key.split(".")
    inside = values
    for section in sections:
        below = inside[section]
        assert isinstance(below, dict), key
        inside = below
    inside[last] = value


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


def _no_such_template(name: str, templates: dict[str, Path | None]) -> Problem:
    near = did_you_mean(name, ["auto", *templates]).removeprefix("; ")
    return Problem(
        key="data.chat_template",
        what=f"no chat template is called {name}",
        remedy=near or f"use auto, a .jinja file, or one of {', '.join(templates)}",
    )


# ---- lists, and resolved files ----------------------------------------------------------------


def list_configs(project: Path | None = None) -> list[ConfigListing]:
    """List the project's configs, then the shipped ones; a broken one carries its problem.

    Raises:
        ConfigProblems: the project is no folder.
    """
    folders = config_folders(project)
    templates = _template_names(project)
    cache: FileCache = {}
    listings = []
    for name, path in _config_files(folders):
        try:
            resolved = _resolve_file(path, folders, (), cache, templates)
        except ConfigProblems as error:
            listings.append(ConfigListing(name, path, problem=str(error.problems[0])))
            continue
        config = resolved.config
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
        tree = Branch(Origin(seen_from_here(path), path))
        for name, entry in stated.entries.items():
            put(
                tree, name, entry, lambda line: Origin(f"{seen_from_here(path)}:{line}", path, line)
            )
        walk = _Walk(problems)
        values = walk.section(Config, tree, ())
        problems += [
            Problem(
                key=key,
                what="is missing",
                remedy="start the run anew from its config: this file names every key",
                file=path,
            )
            for key, leaf in walk.leaves.items()
            if leaf.origin == DEFAULT_ORIGIN
        ]
        if not problems:
            return msgspec.convert(values, Config)
    raise ConfigProblems(in_file_order(problems, [path]))
