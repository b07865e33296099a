"""Path, flags and ``key=value`` turned into one typed, resolved config; every mistake at once.

The strict half of the config layer: files come merged from ``inherit``, typed values from ``walk``,
rules between keys from ``checks``.

Invariant: a ResolvedConfig has no mistake that can be seen without its model and data.
"""

import shlex
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from workbench.config import checks
from workbench.config import flags as flags_module
from workbench.config.find import (
    config_files,
    config_folders,
    file_in,
    find_config,
    name_of,
    nearest_names,
    shipped_configs,
    shower,
    templates_of,
)
from workbench.config.flags import (
    Flag,
    Override,
    parse_overrides,
)
from workbench.config.inherit import (
    DEFAULT_ORIGIN,
    Branch,
    Elsewhere,
    Family,
    FileCache,
    FileNode,
    Leaf,
    Origin,
    Overridden,
    Trees,
    absolute,
    file_tree,
    merge,
    origins_in,
    overlaid,
    read_family,
)
from workbench.config.problems import ConfigProblems, Problem, in_file_order, seen_from_here
from workbench.config.schema.config import Config
from workbench.config.schema.keys import (
    MISSING,
    key_at,
)
from workbench.config.walk import Templates, Walked, walk_config
from workbench.config.yaml_reader import (
    Stated,
    StatedMapping,
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
    "dump_config",
    "files_of",
    "key_value_words",
    "list_configs",
    "offered_flags",
    "parse_overrides",
    "read_resolved",
    "resolve",
    "resolve_text",
    "typed_words",
]


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


def typed_words(resolved: ResolvedConfig, without: Container[str] = ()) -> list[str]:
    """Give the flags and key=value that a config was resolved with, quoted for a shell.

    Args:
        resolved: the config.
        without: keys that are left out.
    """
    words = []
    for key, leaf in resolved.leaves.items():
        source = leaf.origin.source
        if leaf.origin.file is not None or key in without:
            continue
        if source.startswith("flag "):
            value = leaf.value
            if key == "model.path" and not Path(str(value)).exists():
                value = Path(str(value)).name  # a known name, which stands for no folder
            words.append(f"{source.removeprefix('flag ')} {shlex.quote(write_scalar(value))}")
        elif source == "key=value":
            words += key_value_words({key: leaf.value})
    return words


def key_value_words(overrides: Mapping[str, object]) -> list[str]:
    """Give ``key=value`` of each, quoted for a shell."""
    return [shlex.quote(f"{key}={write_scalar(value)}") for key, value in overrides.items()]


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


def files_of(path: Path, read_before: FileCache | None = None) -> list[Path]:
    """Give a config's file and all it extends, as far as they can be read, also of a broken one."""
    cache = FileCache() if read_before is None else read_before
    return _family(absolute(path), cache).in_reading_order()


def _family(path: Path, cache: FileCache) -> Family:
    shipped = shipped_configs()
    elsewhere = Elsewhere(
        find=lambda name: file_in(shipped, name),
        nearest=lambda name: nearest_names(
            name, [each for each, _ in config_files([shipped], True)]
        ),
    )
    return read_family(path, elsewhere=elsewhere, cache=cache)


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
    return _resolve_file(path, folders, overrides, _Shared(templates_of(project)))


def resolve_text(text: str, path: Path, *, project: Path | None = None) -> ResolvedConfig:
    """Resolve a config that is not written yet (`workbench new`), as if it were the file ``path``.

    Raises:
        ConfigProblems: every mistake that was found, in file order.
    """
    path = absolute(path)
    files = FileCache({path: read_text(text, path)})
    shared = _Shared(templates_of(project), files)
    return _resolve_file(path, config_folders(project), (), shared)


def offered_flags(name: str, *, project: Path | None = None) -> tuple[Flag, ...]:
    """Give the flags a config offers, so that arguments can be read before it is resolved.

    Raises:
        ConfigProblems: there is no such config, or its ``args:`` cannot be read.
    """
    folders = config_folders(project)
    path = find_config(name, project=project)
    shared = _Shared(templates_of(project))
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
        templates: the chat templates by name, as ``templates_of`` gives them.
        files: as they were read.
        trees: what chains of files come to.
        walked: sections that were judged, by the branch they were made of; a branch that no file of
            its own touches is the very one of its base.
        flag_problems: mistakes in ``args:``, by its branch.
    """

    templates: Templates
    files: FileCache = field(default_factory=FileCache)
    trees: Trees = field(default_factory=dict)
    walked: dict[Branch, Walked] = field(default_factory=dict)
    flag_problems: dict[Branch, list[Problem]] = field(default_factory=dict)


@dataclass
class _Draft:
    """The files of a config, merged, before overrides and checks; ``args`` stands apart."""

    family: Family
    tree: Branch
    args: Leaf | Branch | None
    show: Callable[[Path], str]


def _draft(path: Path, folders: Sequence[Path], shared: _Shared) -> _Draft:
    show = shower([*folders, shipped_configs()])
    family = _family(path, shared.files)
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
    walked = walk_config(tree, shared.templates, shared.walked)
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
    """Add to a problem of a rule who states its key, or name the first other key that is stated."""
    for key in (problem.key, *problem.others):
        if key in leaves and leaves[key].origin != DEFAULT_ORIGIN:
            origin = leaves[key].origin
            return replace(
                problem, key=key, file=origin.file, line=origin.line, source=origin.source
            )
    return replace(problem, source=DEFAULT_ORIGIN.source)


def at_origins(problems: Sequence[Problem], resolved: ResolvedConfig) -> list[Problem]:
    """Add to the problems of ``checks`` the file:line of the keys they name."""
    return [_at_origin(problem, resolved.leaves) for problem in problems]


# ---- lists, and resolved files ----------------------------------------------------------------


def list_configs(project: Path | None = None) -> list[ConfigListing]:
    """List the project's configs, then the shipped ones; a broken one carries its problem.

    Raises:
        ConfigProblems: the project is no folder.
    """
    folders = config_folders(project)
    shared = _Shared(templates_of(project))
    listings = []
    for name, path in config_files(folders):
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
        walked = walk_config(tree, None, {})
        problems += walked.problems
        problems += [
            Problem(
                key=key,
                what="is missing",
                remedy="start the run anew from its config: this file names every key",
                file=path,
            )
            for key, leaf in walked.leaves.items()
            if leaf.origin == DEFAULT_ORIGIN
        ]
        if not problems:
            return msgspec.convert(walked.values, Config)
    raise ConfigProblems(in_file_order(problems, [path]))
