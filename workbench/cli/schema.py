"""``workbench schema``: the JSON Schema by which an editor completes and checks config files."""

import argparse

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArgumentParser, examples_text, typed_path
from workbench.config.json_schema import json_schema, schema_text
from workbench.errors import RunError
from workbench.runs.atomic import write_atomically


def run(arguments: list[str]) -> int:
    """Show the JSON Schema of config files, or write it into a file."""
    parser = ConfigArgumentParser(
        prog="workbench schema",
        description="Show the JSON Schema of config files, for completion in an editor.",
        epilog="A config names it in its first line:  # yaml-language-server: $schema=FILE\n\n"
        + (examples_text([("schema -o configs/schema.json", "for the editors")]) or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write it there")
    parser.add_argument("--json", action="store_true", help="one JSON object in one line")
    options = parser.parse_args(arguments)
    if options.output is not None:
        _write(options.output)
    elif options.json:
        output.result_json(json_schema())
    else:
        output.result(schema_text().rstrip("\n"))
    return 0


def _write(path: str) -> None:
    target = typed_path(path, "output")
    try:
        write_atomically(target, schema_text().encode())
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror or error}",
            where=str(target),
            remedy="name a file in a folder that can be written",
        ) from error
    output.narrate(f"wrote {target}")
