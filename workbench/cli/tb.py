"""``workbench tb``: TensorBoard on the curves and texts of a run, or of all runs in a folder.

It becomes TensorBoard: keys, signals and exit status are its own. Invariant: nobody but this
machine is served unless the command line says so.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import examples_text, typed_path
from workbench.errors import RunError
from workbench.runs.catalog import is_run, runs_under
from workbench.runs.layout import RunFolder
from workbench.runs.registry import find_job

DESCRIPTION = """\
Start TensorBoard on the newest run of a folder, on a run, or on all runs of a folder.
It is reached from this machine alone, unless its own --bind_all or --host says otherwise: it asks
nobody who they are.
"""

EXAMPLES = (
    ("tb", "the newest run in output/"),
    ("tb output/demo-1", "this run"),
    ("tb --output-dir output --all", "every run there, beside each other"),
    ("tb -- --port 6007 --bind_all", "what follows -- goes to TensorBoard"),
)

_DEFAULT_FOLDER = Path("output")
_HOSTS = ("--bind_all", "--host")


def run(arguments: list[str]) -> int:
    """Become TensorBoard; does not return."""
    ours, theirs = arguments, list[str]()
    if "--" in arguments:
        at = arguments.index("--")
        ours, theirs = arguments[:at], arguments[at + 1 :]
    options = _parser().parse_args(ours)
    folder = folder_of(options.run, options.output_dir, takes_all=options.all)
    command = tensorboard_command(folder, theirs)
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "TensorBoard is not installed",
            where=sys.executable,
            remedy="install it: pip install tensorboard",
        )
    output.narrate(f"TensorBoard on {folder}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench tb",
        usage="workbench tb [RUN] [--output-dir DIR] [--all] [-- TENSORBOARD_ARGS]",
        description=DESCRIPTION,
        epilog=examples_text(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "run", nargs="?", metavar="RUN", help="a run folder, or the beginning of a job's id"
    )
    shown.add_argument(
        "--output-dir",
        metavar="DIR",
        help="a run, or a folder of runs, whose newest is shown (default: output)",
    )
    parser.add_argument(
        "--all", action="store_true", help="every run of the folder, or beside the run"
    )
    return parser


def folder_of(run: str | None, output_dir: str | None, *, takes_all: bool) -> Path:
    """Find the folder with event files that a command line means.

    Args:
        run: a run folder, or a job; None without one.
        output_dir: a run, or a folder of runs.
        takes_all: all runs of the folder, not the newest alone.

    Raises:
        RunError: there is no run.
        ControlError: there is no such job.
    """
    if run is not None:
        typed = typed_path(run, "run")
        found = typed if typed.is_dir() else find_job(run).folder.path
    else:
        found = typed_path(output_dir or _DEFAULT_FOLDER, "output folder")
    runs = runs_under(found) if found.is_dir() else []
    if not runs:
        raise RunError(
            "there is no run" if found.is_dir() else "there is no such folder",
            where=str(found),
            remedy="name a run, or a folder with runs: workbench tb --output-dir DIR",
        )
    if takes_all:
        return (found.parent if is_run(found) else found).absolute()
    return _board_of(runs[0])


def _board_of(run: RunFolder) -> Path:
    if not run.tensorboard.is_dir():
        output.narrate(f"{run.path}: nothing is drawn yet; curves appear with the first record")
    return run.tensorboard


def tensorboard_command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Give the command line of TensorBoard; on this machine alone unless ``arguments`` bind it."""
    is_bound = any(each.partition("=")[0] in _HOSTS for each in arguments)
    # -P: a folder called tensorboard where the command was typed is a run's, not the program.
    return [
        sys.executable, "-P", "-m", "tensorboard.main",
        "--logdir", str(folder),
        *([] if is_bound else ["--host", "127.0.0.1"]),
        *arguments,
    ]  # fmt: skip
