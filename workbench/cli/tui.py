"""``workbench`` without a verb: the terminal workbench.

Only its options are read here; the screens are imported once they are right, in a child of their
own, so that this process can give the terminal back whatever becomes of them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli import output, terminal_keeper
from workbench.cli.config_arguments import typed_path
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.tui.app import WorkbenchApp


def run(arguments: Sequence[str]) -> int:
    """Open the screens; give 0 once they were left, 128 + N where signal N ended them.

    Raises:
        ConfigError: a project that is no folder, no such config, or no terminal to draw on.
    """
    options = _parser().parse_args(list(arguments))
    project = typed_path(options.project, "project") if options.project else Path.cwd()
    if not project.is_dir():
        raise ConfigError(
            "is not a folder", where=f"project {project}", remedy="name a folder: -p PROJECT"
        )
    config = _name_of(options.config, project) if options.config else ""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "the screens need a terminal",
            where="workbench",
            remedy="without one use: workbench --batch -t CONFIG, or a verb of workbench --help",
        )
    keeper = terminal_keeper.split()
    if isinstance(keeper, int):
        if keeper > 128:
            name = signal.Signals(keeper - 128).name
            output.narrate(f"the screens were ended by {name}; every job keeps running")
        return keeper
    from workbench.tui.app import WorkbenchApp
    from workbench.tui.surroundings import Surroundings

    surroundings = replace(
        Surroundings(),
        project=project.absolute(),
        readonly=options.readonly,
        ascii=options.ascii,
        light=options.light,
    )
    app = WorkbenchApp(surroundings, screen="configs" if config else "")
    if config:
        app.remembered.config = config
    keeper.when_lost(lambda: _leave(app))
    app.run(mouse=not options.no_mouse)
    if app.parting:
        several = "s" if len(app.parting) > 1 else ""
        keep = "keep" if several else "keeps"
        output.narrate(f"{len(app.parting)} job{several} {keep} running: {', '.join(app.parting)}")
    return app.return_code or 0


def _name_of(config: str, project: Path) -> str:
    """Give the name by which the screens list a config that was typed, a path or a name.

    Raises:
        ConfigError: there is none.
    """
    from workbench.config.find import config_folders, find_config, name_of

    return name_of(find_config(config, project=project), config_folders(project))


def _leave(app: "WorkbenchApp") -> None:
    """End the screens from a thread: the process that kept the terminal is gone."""
    try:
        app.call_from_thread(app.exit)
    except RuntimeError:  # they are not shown yet
        os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="The terminal workbench.", allow_abbrev=False
    )
    parser.add_argument("-t", "--config", metavar="CONFIG", help="begin with this config selected")
    parser.add_argument(
        "-p", "--project", metavar="PROJECT", help="folder of configs/ and output/, else this one"
    )
    parser.add_argument("--readonly", action="store_true", help="look only: no key acts on a job")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    parser.add_argument("--light", action="store_true", help="begin with the light theme")
    parser.add_argument(
        "--no-mouse", action="store_true", help="leave the mouse to the terminal's own selection"
    )
    return parser
