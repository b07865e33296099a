"""``workbench edit``: open configs and chat templates in the editor, then read the configs again.

Invariant: either every file that was picked is opened, in one call of the editor, or none is.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArgumentParser,
    examples_text,
    project_folder,
    typed_path,
)
from workbench.config.editable import check_editable, comes_with_workbench
from workbench.config.find import BASE_FOLDER, config_names, find_config, template_names
from workbench.config.inherit import FileCache, absolute
from workbench.config.load import ConfigProblems, files_of, resolve
from workbench.config.problems import seen_from_here
from workbench.errors import ConfigError
from workbench.jobs.editor import VSCODE_SOCKET, editor_command, run_editor

DESCRIPTION = """\
Open configs and chat templates in the editor; without a name, pick them from a list. When the files
are closed, every config that was changed, and every one that extends it, is read again and its
mistakes are shown.
"""

EXAMPLES = (
    ("edit", "pick from a list: 3,5-7"),
    ("edit base/samantha.yaml chatml", "a config that others extend, a chat template"),
    ("edit -t demo --with-bases", "a config and all it extends"),
)

EPILOG = f"""\
The editor is VS Code where {VSCODE_SOCKET} names a socket that answers, else $VISUAL, $EDITOR, vi.
"""


@dataclass(frozen=True)
class EditableFile:
    """A file that can be picked.

    Attributes:
        group: heading above it in the list.
        name: how a verb knows it: ``base/samantha``, ``chatml``.
        path: absolute.
    """

    group: str
    name: str
    path: Path


CONFIGS, BASES, TEMPLATES = "configs", "what configs extend", "chat templates"


def run(arguments: list[str]) -> int:
    """Open files and check configs afterwards; 2 where one has a mistake."""
    options = _parse(arguments)
    project = project_folder(options.project)
    offered = list(editable_files(project))
    if options.json:
        output.result_json(
            [{"group": each.group, "name": each.name, "path": str(each.path)} for each in offered]
        )
        return 0
    if options.config is not None or options.files:
        picked = [_find(name, project, offered) for name in options.files]
        if options.config is not None:
            of_config = files_of(find_config(options.config, project=project))
            picked = (of_config if options.with_bases else of_config[:1]) + picked
    else:
        picked = _pick(offered)
    picked = list(dict.fromkeys(picked))
    if not picked:
        output.narrate("nothing picked, nothing opened")
        return 0
    for path in picked:
        check_editable(path, project)
    return _edit(picked, project)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ConfigArgumentParser(
        prog="workbench edit",
        usage="workbench edit [FILE …] [-t CONFIG [--with-bases]] [-p PROJECT]",
        description=DESCRIPTION,
        epilog=f"{EPILOG}\n{examples_text(EXAMPLES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="a path, or the name of a config or template"
    )
    parser.add_argument("-t", "--config", metavar="CONFIG", help="the file of this config")
    parser.add_argument(
        "--with-bases", action="store_true", help="with -t: and every file it extends"
    )
    parser.add_argument(
        "-p", "--project", metavar="PROJECT", help="the folder that holds configs/; default: here"
    )
    parser.add_argument("--json", action="store_true", help="list what can be edited; open nothing")
    options = parser.parse_args(arguments)
    if options.with_bases and options.config is None:
        parser.error("--with-bases goes with -t CONFIG")
    return options


# ---- what can be edited -------------------------------------------------------------------------


def editable_files(project: Path | None) -> Iterator[EditableFile]:
    """Give the configs and templates that are the user's own: those of the project or checkout."""
    configs = [
        (name, path)
        for name, path in config_names(project, with_bases=True)
        if not comes_with_workbench(path)
    ]
    for group, is_base in ((CONFIGS, False), (BASES, True)):
        for name, path in configs:
            if name.startswith(f"{BASE_FOLDER}/") == is_base:
                yield EditableFile(group, name, path)
    for name, path in sorted(template_names(project).items()):
        if not comes_with_workbench(path):
            yield EditableFile(TEMPLATES, name, path)


def _find(name: str, project: Path | None, offered: Sequence[EditableFile]) -> Path:
    """Find the file a user means: a config by path or name, else a chat template, else any path.

    Raises:
        ConfigError: there is none; the nearest names are in the remedy.
    """
    try:
        return find_config(name, project=project)
    except ConfigProblems as error:
        if error.problems[0].source != f"config {name}":
            raise
    path = absolute(typed_path(name, "file"))
    templates = template_names(project)
    stem = name.removeprefix("chat_templates/").removesuffix(".jinja")
    if path.suffix == ".jinja" and path.is_file():
        return path
    if stem in templates:
        return templates[stem]
    names = [each.name for each in offered] + list(templates)
    near = difflib.get_close_matches(stem.removesuffix(".yaml").removeprefix("configs/"), names)
    raise ConfigError(
        "no such config or chat template",
        where=name,
        remedy=f"did you mean {' or '.join(dict.fromkeys(near))}?"
        if near
        else "pick one from the list: workbench edit; or make one: workbench new -t PARENT NAME",
    )


# ---- picking ------------------------------------------------------------------------------------


def menu_lines(offered: Sequence[EditableFile]) -> list[str]:
    """Give the numbered list, a heading above each group."""
    lines = []
    group = None
    for number, each in enumerate(offered, start=1):
        if each.group != group:
            group = each.group
            lines.append(f"{group}:")
        lines.append(f"{number:5}  {seen_from_here(each.path)}")
    return lines


def _pick(offered: Sequence[EditableFile]) -> list[Path]:
    """Let a person pick from the list.

    Raises:
        ConfigError: there is nothing to pick from, or a number is not in the list.
    """
    if not offered:
        raise ConfigError(
            "there is no config and no chat template of yours here",
            where="workbench edit",
            remedy="make one: workbench new -t demo NAME; or name the project: -p PROJECT",
        )
    for line in menu_lines(offered):
        output.result(line)
    try:
        answer = output.ask(f"files to edit (1-{len(offered)}, such as 3,5-7): ")
    except EOFError:
        return []
    return [offered[number - 1].path for number in parse_numbers(answer, len(offered))]


def parse_numbers(text: str, largest: int) -> list[int]:
    """Read numbers and ranges, ``3,5-7``, in the order given, each once.

    Args:
        text: separated by commas or blanks.
        largest: of the numbers there are; the smallest is 1.

    Raises:
        ConfigError: a word is no number, or is not in the list.
    """
    found: list[int] = []
    for word in re.sub(r"\s*-\s*", "-", text.strip()).replace(",", " ").split():
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 1 <= first <= last <= largest:
            raise ConfigError(
                "is no number of the list" if match else "is no number",
                where=f"selection {word}",
                remedy=f"give numbers from 1 to {largest}, such as 3,5-7; nothing was opened",
            )
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


# ---- editing and checking -----------------------------------------------------------------------


def _edit(picked: Sequence[Path], project: Path | None) -> int:
    command = editor_command(picked, os.environ, wait=True)
    if command.note:
        output.narrate(command.note)
    if command.is_graphical:
        output.narrate(f"opened in {command.name}; close the files there to have them checked")
    before = {path: _content(path) for path in picked}
    status = run_editor(command)
    if not command.waits:
        output.narrate(f"{command.name} does not say when the files are closed; to check a config:")
        output.narrate("workbench show -t CONFIG")
        return 0
    if status:
        output.narrate(f"{command.argv[0]} ended with status {status}")
    changed = [path for path in picked if _content(path) != before[path]]
    found = check_again(picked, changed, project)
    for line in report_lines(picked, changed, found):
        output.result(line)
    if found.mistakes:
        return ConfigError.exit_status
    return 1 if status else 0


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@dataclass(frozen=True)
class Checked:
    """What reading configs again has found.

    Attributes:
        configs: names of those that were read.
        mistakes: each mistake, and the configs that have it.
    """

    configs: list[str]
    mistakes: dict[str, list[str]]


def check_again(picked: Sequence[Path], changed: Sequence[Path], project: Path | None) -> Checked:
    """Resolve every picked config anew, and every one that extends a changed one."""
    cache = FileCache()
    suspects = {
        path: name
        for name, path in config_names(project, with_bases=True)
        if path in picked or (changed and set(changed).intersection(files_of(path, cache)))
    }
    for path in picked:
        if path.suffix == ".yaml":
            suspects.setdefault(path, seen_from_here(path))
    mistakes: dict[str, list[str]] = {}
    for path, name in suspects.items():
        try:
            resolve(str(path), project=project)
        except ConfigProblems as error:
            for problem in error.problems:
                mistakes.setdefault(str(problem), []).append(name)
    return Checked(list(suspects.values()), mistakes)


def report_lines(picked: Sequence[Path], changed: Sequence[Path], found: Checked) -> Iterator[str]:
    """Tell which files were changed, and the mistakes or that there are none."""
    for path in picked:
        yield f"{'changed' if path in changed else 'unchanged'}  {seen_from_here(path)}"
    for mistake, names in found.mistakes.items():
        yield mistake
        if len(names) > 1:
            yield f"  in {', '.join(names)}"
    if found.configs and not found.mistakes:
        several = "s" if len(found.configs) > 1 else ""
        yield f"{len(found.configs)} config{several} read again, no mistake"
