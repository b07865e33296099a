"""``workbench new -t PARENT NAME``: a config that extends another one and states what it changes.

Invariant: what is written resolves, to exactly the parent with the changes asked for.
"""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from workbench.cli import output
from workbench.cli.config_arguments import project_folder, read_config_arguments, typed_path
from workbench.config.find import config_folders, find_config, name_of, shipped_configs
from workbench.config.flags import Override
from workbench.config.inherit import absolute
from workbench.config.load import ConfigProblems, ResolvedConfig, resolve_text
from workbench.config.problems import seen_from_here
from workbench.config.schema.keys import all_keys
from workbench.config.yaml_reader import write_scalar
from workbench.errors import ConfigError, RefusedError, RunError
from workbench.runs.atomic import write_atomically

SCHEMA = "schema.json"
_AS_TYPED = ("~", "$")

EXAMPLES = (
    ("new -t 1gpu_llama_7b/default mine", "configs/mine.yaml, as its parent"),
    ("new -t demo quick --max-steps 20 optimizer.learning_rate=1e-4", "with values of yours"),
)


def run(arguments: list[str]) -> int:
    """Write a child config; 4 where there is a file of that name."""
    read = read_config_arguments(
        arguments,
        verb="new",
        summary="Make a config that extends CONFIG and states the flags and KEY=VALUE given.\n"
        "It is written as configs/NAME.yaml of the project; a NAME with a folder makes it.",
        add_options=_add_options,
        names=("NAME",),
        examples=EXAMPLES,
    )
    project = project_folder(read.options.project)
    target = target_of(read.names[0], project)
    if target.exists() or target.is_symlink():
        raise RefusedError(
            "there is a config of that name",
            where=seen_from_here(target),
            remedy=f"choose another name, or change it: workbench edit {seen_from_here(target)}",
        )
    parent = find_config(read.options.config, project=project)
    text = child_text(
        read.resolved,
        read.overrides,
        parent=parent,
        target=target,
        project=project,
        description=read.options.description,
    )
    _write(target, text)
    name = name_of(target, config_folders(project))
    if name == target.stem and not target.parent.samefile(_configs_folder(project)):
        name = seen_from_here(target)
    if read.options.json:
        output.result_json({"name": name, "file": str(target), "extends": str(parent)})
        return 0
    output.result(seen_from_here(target))
    before = [] if project is None else ["-p", read.options.project]
    for told, verb in (("see it", "show"), ("change it", "edit"), ("train", "train")):
        command = shlex.join(["workbench", *before, verb, "-t", name])
        output.narrate(f"{told + ':':<10} {command}")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--description",
        metavar="TEXT",
        help="its line in `workbench ls`; default: made of the rest",
    )
    parser.add_argument("--json", action="store_true", help="name and file as one JSON object")


# ---- where it goes ------------------------------------------------------------------------------


def _configs_folder(project: Path | None) -> Path:
    return absolute((project or Path()) / "configs")


def target_of(name: str, project: Path | None) -> Path:
    """Give the file of a new config: below the project's ``configs``, or where a path says.

    Raises:
        ConfigError: no config could have that name.
    """
    is_path = name.startswith(("./", "../", "/", "~", "$"))
    path = typed_path(name, "config") if is_path else Path(name.removeprefix("configs/"))
    if path.suffix != ".yaml":
        path = path.with_name(f"{path.name}.yaml") if path.name else path
    parts = path.parts if not is_path else (path.name,)
    for part in parts or ("",):
        if not part or part.startswith(".") or not part.isprintable() or part == ".yaml":
            raise ConfigError(
                "cannot be the name of a config",
                where=f"NAME {name!r}",
                remedy="give one like mine, or 7b/mine",
            )
    return absolute(path if is_path else _configs_folder(project) / path)


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, text.encode())
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=str(target),
            remedy="name the folder of your project: -p PROJECT",
        ) from error


# ---- what is written ----------------------------------------------------------------------------


def child_text(
    resolved: ResolvedConfig,
    overrides: Sequence[Override],
    *,
    parent: Path,
    target: Path,
    project: Path | None,
    description: str | None = None,
) -> str:
    """Write a config that extends ``parent`` and, once at ``target``, resolves to ``resolved``.

    Args:
        resolved: the parent with the overrides, and perhaps another description.
        overrides: in the order given; of one key the last counts.
        parent: absolute path of the config to extend.
        target: absolute path of the new file, which need not be there.
        project: as for ``resolve``.
        description: its own line; None: that of the overrides, else made of name and overrides.

    Raises:
        ConfigProblems: the new config would have a mistake.
        ConfigError: no way to name the parent, or a path, leads back to it.
    """
    stated = {
        override.key: _value_for(target, override, resolved)
        for override in sorted(overrides, key=lambda override: _place(override.key))
    }
    told = stated.pop("description", None)
    if description is None:
        description = told if isinstance(told, str) else _described(resolved, stated)
    expected = msgspec.structs.replace(resolved.config, description=description)
    problems: ConfigProblems | None = None
    for name in _names_of_parent(parent, target):
        text = "".join(f"{line}\n" for line in _lines(name, description, stated, target))
        try:
            child = resolve_text(text, target, project=project)
        except ConfigProblems as error:
            problems = problems or error
            continue
        if child.config == expected and child.files.parents[0].path == parent:
            return text
    if problems is not None:
        raise problems
    raise ConfigError(
        "a file written there would not come to the same values",
        where=seen_from_here(target),
        remedy="give paths as absolute ones, or choose another NAME",
    )


def _place(key: str) -> int:
    """Give the place of a key in the schema; one below a free name has that of its mapping."""
    keys = all_keys()
    mapping = ".".join(key.split(".")[:2])
    return keys.index(mapping) if mapping in keys else len(keys)


def _described(resolved: ResolvedConfig, stated: dict[str, object]) -> str:
    """Say what a child is in one line: what it changes of which config."""
    changes = ", ".join(
        f"{key.rpartition('.')[2]} {write_scalar(value)}" for key, value in stated.items()
    )
    if len(changes) > 70:
        changes = f"{len(stated)} keys changed"
    return f"{resolved.name} with {changes}" if changes else f"as {resolved.name}"


def _value_for(target: Path, override: Override, resolved: ResolvedConfig) -> object:
    """Give a value as the new file has to state it: a path is seen from there, not from here."""
    value = override.value
    leaf = resolved.leaves.get(override.key)
    if not isinstance(value, str) or leaf is None or not isinstance(leaf.value, str):
        return value
    if leaf.value == value or value.startswith(_AS_TYPED):
        # No path; or one that means the same everywhere; `~` and variables stay as typed.
        return value
    return _seen_from(target, Path(leaf.value)) if Path(leaf.value).is_absolute() else value


def _seen_from(target: Path, path: Path) -> str:
    """Write a path relative to a file in the same tree of folders, else as it is."""
    tree = _tree_of(target)
    if path.is_relative_to(tree):
        return Path(os.path.relpath(path, target.parent)).as_posix()
    return str(path)


def _tree_of(target: Path) -> Path:
    """Give the project that a config lies in: the folder that holds ``configs``, else its own."""
    for folder in target.parents:
        if folder.name == "configs":
            return folder.parent
    return target.parent


def _names_of_parent(parent: Path, target: Path) -> Iterator[str]:
    """Give the ways to name a parent in ``extends:``, the best first."""
    relative = _seen_from(target, parent)
    if not Path(relative).is_absolute():
        yield relative
    shipped = shipped_configs()
    if parent.is_relative_to(shipped):
        name = parent.relative_to(shipped).as_posix()
        # A name is looked for beside the file first: there it would be the new file itself.
        if absolute(target.parent / name) != target:
            yield name
    yield str(parent)


def _lines(parent: str, description: str, stated: dict[str, object], target: Path) -> Iterator[str]:
    # One beside the project's own configs (`workbench schema -o`) can be named relative to them.
    own = _tree_of(target) / "configs" / SCHEMA
    schema = own if own.is_file() else shipped_configs() / SCHEMA
    if schema.is_file():
        yield f"# yaml-language-server: $schema={_seen_from(target, schema)}"
    yield f"extends: {write_scalar(parent)}"
    yield f"description: {write_scalar(description)}"
    tree: dict[str, object] = {}
    for key, value in stated.items():
        *sections, last = key.split(".")
        inside = tree
        for section in sections:
            below = inside.setdefault(section, {})
            assert isinstance(below, dict), key
            inside = below
        inside[last] = value
    for section, entries in tree.items():
        yield ""
        yield from _nested({section: entries}, "")


def _nested(entries: dict[str, object], indent: str) -> Iterator[str]:
    for name, value in entries.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{write_scalar(name)}:"
            yield from _nested(value, indent + "  ")
        else:
            yield f"{indent}{write_scalar(name)}: {write_scalar(value)}"
