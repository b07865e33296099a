"""Where configs and chat templates are: the project's own folders first, then the shipped ones.

Knows names and paths, and opens no file. Invariant: of two files of one name the first that is
looked at counts, and it is the project's.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from workbench.config.inherit import absolute, expand, is_file, is_folder
from workbench.config.problems import ConfigProblems, Problem, seen_from_here

BASE_FOLDER = "base"
"""Folder of configs that are only extended; ``ls`` leaves it out."""

_OF_A_RUN = "origins.json"
"""Lies beside the resolved config in every run folder: that one is no config to start from."""


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
        if (found := file_in(folder, wanted)) is not None:
            return found
    names = [listed for listed, _ in config_files(folders, with_bases=True)]
    near = nearest_names(name, names)
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
    return config_files(config_folders(project), with_bases=with_bases)


def template_names(project: Path | None = None) -> dict[str, Path]:
    """Give the file of every chat template by its name; one of the project hides a shipped one."""
    names = templates_of(project)
    return {name: path or shipped_templates() / f"{name}.jinja" for name, path in names.items()}


def file_in(folder: Path, name: str) -> Path | None:
    """Find a config file by name below a folder, with or without its suffix."""
    if not name:
        return None
    exact = absolute(folder / name)
    for candidate in (exact, exact.with_name(exact.name + ".yaml") if exact.name else exact):
        if is_file(candidate):
            return candidate
    return None


def nearest_names(name: str, names: Sequence[str]) -> list[str]:
    """Give up to three names like the one typed.

    Those with this very last part come first (``default``), then those in a folder of this name,
    then by spelling, then those that contain it (``zb``), then by the spelling of the last part.
    """
    wanted = name.removesuffix(".yaml").removeprefix("configs/").strip("/")
    last = wanted.rsplit("/", 1)[-1]
    by_last_part = {each.rsplit("/", 1)[-1]: each for each in reversed(names)}
    near = [each for each in names if each.rsplit("/", 1)[-1].lower() == wanted.lower()]
    near += [each for each in names if wanted and each.startswith(f"{wanted}/")]
    near += difflib.get_close_matches(wanted, names, n=3, cutoff=0.7)
    near += [each for each in names if wanted and wanted.lower() in each.lower()]
    near += [by_last_part[each] for each in difflib.get_close_matches(last, by_last_part, n=2)]
    return list(dict.fromkeys(near))[:3]


def config_files(folders: Sequence[Path], with_bases: bool = False) -> Iterator[tuple[str, Path]]:
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
        if _OF_A_RUN in names:  # of one that was started from within configs/
            below.clear()
            continue
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


def shower(folders: Sequence[Path]) -> Callable[[Path], str]:
    """Give how a path is shown in an origin: short below ``configs/``, else from here."""

    def show(path: Path) -> str:
        for folder in folders:
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return seen_from_here(path)

    return show


def templates_of(project: Path | None) -> dict[str, Path | None]:
    """Name the chat templates: the project's with their path, the shipped ones by name alone."""
    shipped: dict[str, Path | None] = {
        path.stem: None for path in sorted(shipped_templates().glob("*.jinja"))
    }
    own = absolute((project or Path()) / "chat_templates")
    if own.resolve() == shipped_templates().resolve():
        return shipped
    return shipped | {path.stem: path for path in sorted(own.glob("*.jinja"))}
