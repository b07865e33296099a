"""``workbench schema``: the JSON Schema by which an editor completes and checks config files."""

import argparse

from workbench.cli import output
from workbench.cli.config_arguments import ConfigArgumentParser, examples_text, typed_path
from workbench.cli.text_result import write_result
from workbench.config.json_schema import json_schema, schema_text


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
        write_result(typed_path(options.output, "output"), schema_text().rstrip("\n"))
    elif options.json:
        output.result_json(json_schema())
    else:
        output.result(schema_text().rstrip("\n"))
    return 0
