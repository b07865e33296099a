"""A text as a result: on stdout, in a file (``-o``), or in the editor (``-e``).

Shared by show, tree and code. Invariant: a file is written whole or not at all.
"""

import argparse
import os
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import typed_path
from workbench.errors import RunError
from workbench.runs.atomic import write_atomically


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add ``-o FILE`` and ``-e``, which exclude each other."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="FILE", help="write it there")
    where.add_argument("-e", "--edit", action="store_true", help="open it in the editor")


def give_text(text: str, options: argparse.Namespace, *, name: str) -> None:
    """Give a text where the options ask for it.

    Args:
        text: without the end of its last line.
        options: parsed with those of ``add_text_options``.
        name: of the file in the editor; its suffix tells the language.

    Raises:
        RunError: the file cannot be written, or the editor failed.
        ConfigError: there is no editor.
    """
    if options.edit:
        # Here, so that showing a config does not wait for what starts an editor.
        from workbench.jobs.editor import edit_text

        edit_text(f"{text}\n", name, os.environ, tell=output.narrate)
    elif options.output is not None:
        write_result(typed_path(options.output, "output"), text)
    else:
        output.result(text)


def write_result(path: Path, text: str) -> None:
    """Write a text into a file and say so.

    A link stays a link, its file is written. What is no file (``/dev/null``, ``/dev/stdout``, a
    named pipe) is written to, never replaced.

    Raises:
        RunError: the file cannot be written.
    """
    # A path may hold bytes that are no UTF-8; they are written as they are.
    content = f"{text}\n".encode(errors="surrogateescape")
    try:
        if path.is_file() or not path.exists():
            write_atomically(Path(os.path.realpath(path)), content)
        else:
            path.write_bytes(content)
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="name a file in a folder that can be written",
        ) from error
    output.narrate(f"wrote {path}")
