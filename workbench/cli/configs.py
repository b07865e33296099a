"""The verbs that look at configs: ls, show.

Invariant: no file is written that was not asked for with ``-o``.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.cli import output
from workbench.cli.config_arguments import (
    ConfigArgumentParser,
    examples_text,
    project_folder,
    read_config_arguments,
)
from workbench.cli.text_result import add_text_options, give_text
from workbench.config.inherit import Leaf, Origin
from workbench.config.load import ConfigListing, ResolvedConfig, config_lines, list_configs
from workbench.config.yaml_reader import write_scalar

LS_EXAMPLES = (
    ("ls", "of this project, and those that come with workbench"),
    ("ls -r --json", "also of the projects below, for machines"),
)


# ---- ls -----------------------------------------------------------------------------------------


def run_ls(arguments: list[str]) -> int:
    """List the configs: name, GPUs, context, description; a broken one with its first mistake."""
    parser = ConfigArgumentParser(
        prog="workbench ls",
        description="List the configs: name, GPUs, tokens of a row, description.\n"
        "A broken one shows its first mistake with file:line.",
        epilog=examples_text(LS_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-p", "--project", metavar="PROJECT", help="the folder that holds configs/")
    parser.add_argument("-t", "--config", help=argparse.SUPPRESS)
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="also of every project below the folder"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list")
    options = parser.parse_args(arguments)
    project = project_folder(options.project)
    found: list[tuple[Path | None, ConfigListing]]
    found = [(None, listing) for listing in list_configs(project)]
    if options.recursive:
        known = {listing.path.resolve() for _, listing in found}
        for below in projects_below(project or Path()):
            for listing in list_configs(below):
                if listing.path.resolve() not in known:
                    known.add(listing.path.resolve())
                    found.append((below, listing))
    if options.json:
        output.result_json([_listing_json(below, listing) for below, listing in found])
        return 0
    for line in listing_lines(found):
        output.result(line)
    return 0


def projects_below(folder: Path) -> Iterator[Path]:
    """Give the folders below that hold a ``configs`` folder; runs and hidden ones are skipped."""
    for where, below, _ in os.walk(folder):
        at = Path(where)
        below[:] = sorted(
            name
            for name in below
            if not name.startswith((".", "__")) and not (at / name / "metrics.jsonl").exists()
        )
        if "configs" in below:
            below.remove("configs")
            if at != folder:
                yield at


def listing_lines(found: Sequence[tuple[Path | None, ConfigListing]]) -> list[str]:
    """Give the lines of ``ls``, a heading above each project below the current one."""
    rows = [["config", "GPUs", "context", "description"]]
    for below, listing in found:
        name = listing.name if below is None else f"{below}: {listing.name}"
        if listing.problem is not None:
            rows.append([name, "", "", f"! {listing.problem}"])
        else:
            gpus = "CPU" if listing.num_gpus == 0 else str(listing.num_gpus)
            rows.append([name, gpus, f"{listing.context:,}", " ".join(listing.description.split())])
    return output.columns(rows, right=(1, 2))


def _listing_json(below: Path | None, listing: ConfigListing) -> dict[str, object]:
    return {
        "name": listing.name,
        "project": None if below is None else str(below),
        "path": str(listing.path),
        "description": listing.description,
        "num_gpus": listing.num_gpus,
        "context": listing.context,
        "problem": listing.problem,
    }


# ---- show ---------------------------------------------------------------------------------------


def run_show(arguments: list[str]) -> int:
    """Show the resolved config as YAML, each value with who states it and what it overrode."""
    read = read_config_arguments(
        arguments,
        verb="show",
        summary="Show a config with every key, and where each value comes from.",
        add_options=_add_show_options,
        examples=(
            ("show -t demo", "all of it"),
            ("show -t demo optimizer.learning_rate=1e-4", "with a value of yours"),
            ("show -t demo -e", "in the editor"),
        ),
    )
    text, suffix = show_text(read.resolved), "yaml"
    if read.options.json:
        text, suffix = output.as_json(config_json(read.resolved)), "json"
    give_text(text, read.options, name=f"{read.resolved.name}.resolved.{suffix}")
    return 0


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    add_text_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, with origins")


def show_text(resolved: ResolvedConfig) -> str:
    """Give the resolved config as YAML with origins as comments; it loads to an equal one."""
    lines = list(config_lines(resolved.config))
    width = min(48, max(len(line) for line, key in lines if key is not None))
    shown = [f"# {resolved.name}: every key, and who states it"]
    for line, key in lines:
        leaf = resolved.leaves[key] if key is not None else None
        shown.append(f"{line.ljust(width)}  # {history(leaf)}" if leaf else line)
    return "\n".join(shown)


def history(leaf: Leaf) -> str:
    """Say in one line who states a value and what it overrode, nearest first."""
    overrode = ", ".join(
        f"{each.origin.source} ({write_scalar(each.value)})" for each in leaf.overrode
    )
    return leaf.origin.source + (f", overrides {overrode}" if overrode else "")


def config_json(resolved: ResolvedConfig) -> dict[str, object]:
    """Give the resolved config for machines: each key with value, origin and history."""
    return {
        "name": resolved.name,
        "file": str(resolved.file),
        "keys": {
            key: {
                "value": leaf.value,
                "origin": origin_json(leaf.origin),
                "overrode": [
                    {"value": each.value, "origin": origin_json(each.origin)}
                    for each in leaf.overrode
                ],
            }
            for key, leaf in resolved.leaves.items()
        },
    }


def origin_json(origin: Origin) -> dict[str, object]:
    """Give who states a value, for machines."""
    return {
        "source": origin.source,
        "file": None if origin.file is None else str(origin.file),
        "line": origin.line,
    }
